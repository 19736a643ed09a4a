"""Heads of encoders: a model's body with a new head over labels, or one that predicts tokens."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from cohobate.errors import UserError
from cohobate.models import checkpoints
from cohobate.sealed_folder import MANIFEST, verify

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def with_label_head(folder: Path, config: Any, seed: int) -> "PreTrainedModel":
    """Load an encoder with a new head over the labels of a configuration, in float32.

    Args:
        folder: an encoder, whatever head it has.
        config: its configuration, with the labels in it.
        seed: of the head's weights.

    Raises:
        UserError: weights of its layers are missing.
    """
    from transformers import AutoModelForSequenceClassification

    config.problem_type = "single_label_classification"
    return _with_head(AutoModelForSequenceClassification, folder, config, seed)


def with_token_head(
    folder: Path, seed: int
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase, bool]":
    """Load an encoder as a masked language model, in float32, with its tokenizer.

    Where its folder has no head over tokens it gets one: the matrix is that of the word embeddings,
    a layer before it is new. The configuration keeps its labels.

    Args:
        folder: an encoder, whatever head it has.
        seed: of the new weights.

    Returns:
        The model, its tokenizer, and whether the head is new.

    Raises:
        UserError: it is no encoder that transformers knows a masked model of, or weights of its
            layers are missing.
    """
    from transformers import AutoConfig, AutoModelForMaskedLM
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    if config.model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        raise UserError(
            f"a {config.model_type} predicts no masked tokens",
            where=str(folder),
            fix="an encoder: all-minilm-l6-v2, or another BERT, RoBERTa, DistilBERT or ModernBERT",
        )
    if hasattr(config, checkpoints.SENTENCE_EMBEDDING):
        delattr(config, checkpoints.SENTENCE_EMBEDDING)  # else it would still be an embedder
    model = _with_head(AutoModelForMaskedLM, folder, config, seed)
    return model, tokenizer_of(folder, config), not checkpoints.is_masked(folder)


def _with_head(auto: Any, folder: Path, config: Any, seed: int) -> "PreTrainedModel":
    import torch
    from transformers.utils import logging

    # other folders, such as those of the hub, have no manifest
    if (folder / MANIFEST).exists():
        verify(folder)
    logging.disable_progress_bar()
    logging.set_verbosity_error()  # it reports that the head is new, as it must be
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model, loaded = auto.from_pretrained(
            folder,
            config=config,
            local_files_only=True,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # a head that was there is of other labels
            output_loading_info=True,
            dtype=torch.float32,
        )
    body = [key for key in sorted(loaded["missing_keys"]) if f"{model.base_model_prefix}." in key]
    if any(".layer" in key for key in body):
        raise UserError(f"weights are missing: {body[:3]}", where=str(folder))
    encoder: PreTrainedModel = model.eval()
    return encoder


def tokenizer_of(folder: Path, config: Any) -> "PreTrainedTokenizerBase":
    """Load an encoder's tokenizer, which cuts texts to the positions that the model has."""
    tokenizer = checkpoints.load_tokenizer(folder)
    context = getattr(config, "max_position_embeddings", None) or tokenizer.model_max_length
    tokenizer.model_max_length = min(tokenizer.model_max_length, context)
    return tokenizer
