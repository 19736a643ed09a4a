"""Models that see: pictures before the text of a row, in models of LLaVA's form.

LLaVA (Liu et al. 2023): a vision tower, a projector, and a causal LM in whose input each patch of a
picture has the place of one token. Rows carry the names of their pictures (`Row.images`) and the
ids of their text alone; the places of the patches are put before the text here, behind the token
that begins a text where there is one. Pictures are read when their batch goes through the model.
"""

# ruff: noqa: N815 (fields that are tensors carry shape suffixes too)

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from cohobate.data.images import load_image
from cohobate.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MODEL_TYPE = "llava"
"""`model_type` of the models that see."""
PROCESSOR = "processor_config.json"


def is_seeing(folder: Path) -> bool:
    """Say whether a model folder holds a model that sees, by its configuration."""
    path = folder / "config.json"
    return path.exists() and json.loads(path.read_bytes()).get("model_type") == MODEL_TYPE


def sees(model: Any) -> bool:
    """Say whether a loaded model sees."""
    return getattr(model.config, "model_type", "") == MODEL_TYPE


def load_processor(folder: Path) -> Any:
    """Load the processor of a model that sees: what makes its input of pictures and text.

    Raises:
        UserError: the folder holds none.
    """
    from transformers import AutoProcessor

    try:
        return AutoProcessor.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # each part of a processor raises its own
        raise UserError(
            f"cannot load the processor of pictures: {error}",
            where=str(folder),
            fix=f"copy the model's {PROCESSOR} and preprocessor_config.json into the folder",
        ) from error


def save_processor(model: Any, tokenizer: "PreTrainedTokenizerBase", folder: Path) -> None:
    """Write the processor of a model that sees, with the tokenizer, into a folder."""
    from cohobate.data.records import write_json

    model.processor.tokenizer = tokenizer
    model.processor.save_pretrained(folder)
    path = folder / PROCESSOR
    fields = json.loads(path.read_text())
    fields.pop("name_or_path", None)  # where it was loaded from
    write_json(path, fields)


def image_tokens(model: Any, images: Sequence[str]) -> int:
    """Return how many places of a row its pictures take.

    Raises:
        UserError: there are pictures, and the model does not see.
    """
    if not images:
        return 0
    _check_sees(model)
    return len(images) * int(model.config.image_seq_length)


class _Joined(NamedTuple):
    """Rows with the places of their pictures."""

    ids_BS: "Tensor"
    counts_B: "Tensor"
    """Places before the text of each row."""


def forward(
    model: "PreTrainedModel",
    ids_BS: "Tensor",
    positions_N: "Tensor",
    images: Sequence[tuple[str, ...]],
) -> "Tensor":
    """Return what the head reads at the selected tokens of rows with pictures, (N, D).

    Args:
        model: a model that sees.
        ids_BS: the rows' texts, padded on the right.
        positions_N: the selected tokens of the texts, counted through B·S.
        images: names of the pictures of each row.

    Raises:
        UserError: the model does not see, a picture is missing, or a text has the token that
            stands for pictures.
    """
    _check_sees(model)
    features = _features(model, _pixels(model, images))
    joined = _join(model, ids_BS, images, len(features.pooler_output[0]))
    hidden_BSD: Tensor = model.base_model(
        input_ids=joined.ids_BS, mm_encoder_outputs={"image": features}, use_cache=False
    ).last_hidden_state
    width, longer = ids_BS.shape[1], joined.ids_BS.shape[1]
    row_N = positions_N // width
    places_N = row_N * longer + positions_N % width + joined.counts_B[row_N]
    return hidden_BSD.flatten(0, 1)[places_N]


def inputs_of(
    model: "PreTrainedModel", ids_BS: "Tensor", images: Sequence[tuple[str, ...]]
) -> dict[str, Any]:
    """Return the inputs of a pass over the prompts of rows that have as many pictures each.

    Raises:
        UserError: as `forward`.
    """
    if not any(images):
        return {"input_ids": ids_BS}
    _check_sees(model)
    return _inputs(model, ids_BS, images, _pixels(model, images))


def blank_inputs(model: "PreTrainedModel", ids_BS: "Tensor") -> dict[str, Any]:
    """Return the inputs of a pass over rows with one blank picture each, of a model that sees.

    Its work is that of any picture: it is what timings and counts of work are of.
    """
    import torch

    if not sees(model):
        return {"input_ids": ids_BS}
    side = model.config.vision_config.image_size
    pixels_BCHW = torch.zeros(len(ids_BS), 3, side, side, dtype=model.dtype, device=model.device)
    return _inputs(model, ids_BS, [("blank",)] * len(ids_BS), pixels_BCHW)


def _inputs(
    model: "PreTrainedModel",
    ids_BS: "Tensor",
    images: Sequence[tuple[str, ...]],
    pixels_BCHW: "Tensor",
) -> dict[str, Any]:
    features = _features(model, pixels_BCHW)
    joined = _join(model, ids_BS, images, len(features.pooler_output[0]))
    return {"input_ids": joined.ids_BS, "mm_encoder_outputs": {"image": features}}


def _check_sees(model: Any) -> None:
    if not sees(model):
        raise UserError(
            f"rows have pictures, and {type(model).__name__} does not see",
            where="rows with images",
            fix="a teacher of text reads captions: collect.teacher_prompt, and "
            "evaluate.teacher_reads: teacher_prompt; a student that sees: "
            "init_student: {type: seeing, ...}",
        )


def _pixels(model: Any, images: Sequence[tuple[str, ...]]) -> "Tensor":
    """Return the pictures of all rows, one after the other, as the vision tower reads them."""
    pictures = [load_image(name) for names in images for name in names]
    pixels_BCHW: Tensor = model.processor.image_processor(pictures, return_tensors="pt")[
        "pixel_values"
    ]
    return pixels_BCHW.to(model.device, model.dtype)


def _features(model: Any, pixels_BCHW: "Tensor") -> Any:
    """Return the outputs of vision tower and projector; `pooler_output` has (patches, D) each."""
    return model.get_image_features(pixel_values=pixels_BCHW, return_dict=True)


def _join(model: Any, ids_BS: "Tensor", images: Sequence[tuple[str, ...]], patches: int) -> _Joined:
    """Put the places of the pictures before the rows' texts; padding stays on the right."""
    import torch

    token, begins = int(model.config.image_token_id), _begins(model)
    if bool((ids_BS == token).any()):
        name = model.processor.tokenizer.convert_ids_to_tokens(token)
        raise UserError(
            f"the text of a row has {name!r}, which stands for a part of a picture",
            where="rows with images",
            fix=f"take {name!r} out of the data, or choose another init_student.image_token",
        )
    counts = [patches * len(names) for names in images]
    rows, width = ids_BS.shape
    # padding with any id but that of the pictures
    padding = 1 if token == 0 else 0
    joined_BS = ids_BS.new_full((rows, width + max(counts)), padding)
    for row, count in enumerate(counts):
        start = int(begins is not None and int(ids_BS[row, 0]) == begins)
        joined_BS[row, :start] = ids_BS[row, :start]
        joined_BS[row, start : start + count] = token
        joined_BS[row, start + count : count + width] = ids_BS[row, start:]
    return _Joined(joined_BS, torch.tensor(counts, device=ids_BS.device))


def _begins(model: Any) -> int | None:
    """Return the id that the tokenizer puts before each text, if it does."""
    tokenizer = model.processor.tokenizer
    first: list[int] = tokenizer("a").input_ids[:1]
    return first[0] if first == [tokenizer.bos_token_id] else None
