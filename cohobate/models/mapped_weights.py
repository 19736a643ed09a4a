"""Weights that are left in their files, as a memory map, until they are sharded.

A worker that holds a share of a model loads no whole copy of it. Its weights are a map of the files
at first, in the number format in which they are stored: what is read of them are pages of the file,
which the workers of a machine have in common, and which the system takes back where memory is
short. The number format that a weight is to have is noted, and set as `sharding.shard` takes its
block. Until then the weights are read by the trials of a model (`lm_head.check_head`,
`forward_pass.find_fast_paths`) alone.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.weak import WeakIdKeyDictionary

from cohobate.models.folder_formats import weight_files
from cohobate.models.number_formats import NumberFormat

_FORMATS: Any = WeakIdKeyDictionary()
"""The number format that each mapped weight is to have."""
_STORED: dict[str, NumberFormat] = {"BF16": "bfloat16", "F32": "float32"}


def stored_format(folder: Path) -> NumberFormat | None:
    """Return the number format of all weights of a model folder; None where they have several."""
    kinds = {kind for path in weight_files(folder) for kind in _kinds(path)}
    return _STORED.get(next(iter(kinds))) if len(kinds) == 1 else None


def note_format(model: nn.Module, number_format: torch.dtype) -> None:
    """Note the number format of a model whose weights are a map of its files."""
    for weight in model.parameters():
        _FORMATS[weight] = number_format
    _cast_buffers(model, number_format)


def is_mapped(model: nn.Module) -> bool:
    """Say whether weights of a model are still those of its files."""
    return any(weight in _FORMATS for weight in model.parameters())


def format_of(model: nn.Module) -> torch.dtype:
    """Return the number format of a model's weights, or the one that mapped ones are to have."""
    weight = next(model.parameters())
    number_format: torch.dtype = _FORMATS.get(weight, weight.dtype)
    return number_format


def cast(model: nn.Module, number_format: torch.dtype) -> None:
    """Set the number format of a model's weights; of mapped ones it is set later."""
    if is_mapped(model):
        note_format(model, number_format)
        return
    # not model.to, which rounds rotary frequencies too
    for weight in model.parameters():
        weight.data = weight.data.to(number_format)


def settle(module: nn.Module) -> None:
    """Give the mapped weights of a module the number format that they are to have."""
    for weight in module.parameters():
        if weight in _FORMATS:
            weight.data = weight.data.to(_FORMATS.pop(weight))


@contextmanager
def shown_as_cast(model: nn.Module) -> Iterator[None]:
    """Let mapped weights look as if they had their number format, within the block.

    PEFT gives new weights the number format of those beside them, and reads nothing else of those.
    """
    mapped = [(weight, weight.data) for weight in model.parameters() if weight in _FORMATS]
    for weight, stored in mapped:
        # one number in memory, whatever the shape
        weight.data = torch.zeros((), dtype=_FORMATS[weight]).expand(stored.shape)
    try:
        yield
    finally:
        for weight, stored in mapped:
            weight.data = stored


def _cast_buffers(model: nn.Module, number_format: torch.dtype) -> None:
    """Cast what a checkpoint has beside weights; rotary frequencies are in none, and stay."""
    persistent = model.state_dict().keys()
    for name, buffer in model.named_buffers():
        if name in persistent and buffer.is_floating_point():
            buffer.data = buffer.data.to(number_format)


def _kinds(path: Path) -> set[str]:
    """Return the number formats of the tensors of a safetensors file, as its header names them."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header: dict[str, Any] = json.loads(file.read(size))
    return {tensor["dtype"] for name, tensor in header.items() if name != "__metadata__"}
