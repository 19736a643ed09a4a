"""A vision tower and a projector before a causal LM: LLaVA's form, with small random sizes."""

from typing import Any

import torch
from transformers import (
    AutoModelForImageTextToText,
    LlavaConfig,
    LlavaProcessor,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    SiglipVisionConfig,
)

from cohobate.errors import UserError
from cohobate.students.vision_tower import VisionTower

_WHERE = "params.yaml, section init_student"


def choose_image_token(tokenizer: PreTrainedTokenizerBase, name: str = "") -> str:
    """Return the token that stands for a part of a picture.

    A vocabulary that grew by one would no longer be the teacher's.

    Args:
        tokenizer: the student's.
        name: a token of it; else the last special token that is no part of its chat template and
            neither begins, ends nor pads a text.

    Raises:
        UserError: it has no such token.
    """
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    if name:
        if vocabulary.get(name):
            return name
        raise UserError(
            f"the tokenizer has no token {name!r} but the first that could stand for pictures",
            where=f"{_WHERE}.image_token",
            fix="name a special token that no text has",
        )
    named = (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.unk_token)
    used = {*named, None}
    template = str(tokenizer.chat_template or "")
    special = sorted(
        (token for token in tokenizer.added_tokens_decoder.items() if token[1].special),
        key=lambda token: -token[0],
    )
    free: list[str] = [t.content for n, t in special if n and t.content not in used]
    unused = [token for token in free if token not in template]
    if not free:
        raise UserError(
            "the tokenizer has no special token that could stand for pictures",
            where=_WHERE,
            fix="init_student.image_token: a token of the tokenizer that no text has",
        )
    return (unused or free)[0]


def with_vision(
    text: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    vision: VisionTower,
    image_token: str,
    seed: int,
) -> PreTrainedModel:
    """Return a model that sees: a causal LM's weights, behind a random vision tower.

    Raises:
        UserError: LLaVA's form has no place for some of the causal LM's weights.
    """
    token = tokenizer.convert_tokens_to_ids(image_token)
    config = _config(text.config, vision, token)
    with torch.random.fork_rng(devices=[]):  # the caller's random numbers stay as they are
        torch.manual_seed(seed)
        model: Any = AutoModelForImageTextToText.from_config(config, dtype=torch.float32).eval()
    try:
        model.base_model.language_model.load_state_dict(text.base_model.state_dict())
        model.lm_head.load_state_dict(text.get_output_embeddings().state_dict())
    except (RuntimeError, AttributeError) as error:
        raise UserError(
            f"{type(text).__name__} cannot be the text part of a model of LLaVA's form: "
            f"{str(error).splitlines()[0]}",
            where=_WHERE,
            fix="use a Llama, Qwen or Mistral as the teacher, or init_student: {type: pretrained}",
        ) from error
    if config.text_config.tie_word_embeddings:
        model.tie_weights()
    model.generation_config = text.generation_config
    model.processor = _processor(tokenizer, vision, image_token)
    return model  # type: ignore[no-any-return]


def vision_parameters(vision: VisionTower, width: int) -> int:
    """Return the number of weights that a vision tower and its projector add to a causal LM."""
    from transformers import LlamaConfig

    sizes = {"num_hidden_layers": 0, "vocab_size": 1, "intermediate_size": 1}
    heads = {"num_attention_heads": 1, "num_key_value_heads": 1}
    text = LlamaConfig(hidden_size=width, tie_word_embeddings=True, **sizes, **heads)
    with torch.device("meta"):
        model: Any = AutoModelForImageTextToText.from_config(_config(text, vision, 0))
    # of the empty causal LM there are an embedding of one token, and the last norm
    return int(model.num_parameters()) - 2 * width


def _config(text: Any, vision: VisionTower, token: int) -> LlavaConfig:
    tower = SiglipVisionConfig(
        image_size=vision.image_size,
        patch_size=vision.patch_size,
        num_hidden_layers=vision.layers,
        hidden_size=vision.width,
        intermediate_size=4 * vision.width,
        num_attention_heads=vision.heads,
        vision_use_head=False,
    )
    return LlavaConfig(
        vision_config=tower,
        text_config=text,
        image_token_index=token,
        image_seq_length=vision.patches,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",  # SigLIP has no CLS token to leave out
        tie_word_embeddings=bool(text.tie_word_embeddings),
    )


def _processor(
    tokenizer: PreTrainedTokenizerBase, vision: VisionTower, image_token: str
) -> LlavaProcessor:
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    side = {"height": vision.image_size, "width": vision.image_size}
    return LlavaProcessor(
        SiglipImageProcessorPil(size=side),
        tokenizer,
        patch_size=vision.patch_size,
        vision_feature_select_strategy="full",
        image_token=image_token,
    )
