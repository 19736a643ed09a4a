"""Frozen models: checkpoints that are read and never trained, packed for products on a CPU."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cohobate.models import checkpoints
from cohobate.models.number_formats import Precision, resolve

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PACKED_BYTES = 2 * 2**30
"""Bytes of linear layers up to which those of a frozen model are packed."""


def load_frozen(
    folder: Path,
    *,
    precision: Precision = "float32",
    attention: Literal["eager", "sdpa"] = "sdpa",
    device: str = "cpu",
    sharded: bool = False,
) -> tuple["PreTrainedModel", "PreTrainedTokenizerBase"]:
    """Load a verified checkpoint that will not be trained; its linear layers are packed on a CPU.

    Args:
        folder: the checkpoint.
        precision: of its weights, chosen for `device`.
        attention: as transformers names it.
        device: where it will run.
        sharded: leave it in its files, and unpacked: it is then shared among workers
            (cohobate/models/sharding.py), and none has to hold all of it.

    Raises:
        UserError: the folder is damaged, or does not hold every weight of the model.
    """
    from cohobate.fast.packed_linear import pack

    number_format = resolve(precision, device)
    place = "cpu" if sharded else device
    model, tokenizer = checkpoints.load(
        folder, precision=number_format, attention=attention, device=place, mapped=sharded
    )
    if not sharded:
        pack(model, PACKED_BYTES)
    return model, tokenizer
