"""The shares of sharded weights and moments in a training checkpoint, by torch's checkpointing.

Each worker writes its own share as safetensors, whose headers say where in the whole a share lies
(torch.distributed.checkpoint; its own format would be unpickled). So any number of workers can read
them. What is not sharded is in the files of cohobate/training/checkpointing.py.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

_WEIGHT, _MOMENT = "weight", "moment"


def whole(tensors: "Mapping[str, Any]") -> dict[str, Any]:
    """Return the entries that are not sharded."""
    return {name: value for name, value in tensors.items() if not _is_share(value)}


def write(folder: Path, weights: "Mapping[str, Tensor]", moments: Mapping[int, Any]) -> None:
    """Write this worker's share of each weight and moment; all workers together.

    Args:
        folder: the checkpoint's.
        weights: by name.
        moments: the optimizer's state of each weight, by number and name.
    """
    shares = {f"{_WEIGHT}.{name}": weight for name, weight in weights.items() if _is_share(weight)}
    shares |= {
        f"{_MOMENT}.{number}.{name}": moment
        for number, state in moments.items()
        for name, moment in state.items()
        if _is_share(moment)
    }
    if not shares:
        return
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    writer = HuggingFaceStorageWriter(path=str(folder), save_distributed=True)
    save(shares, storage_writer=writer)


def read_weights(folder: Path, weights: "Mapping[str, Tensor]") -> None:
    """Copy the stored values into the sharded weights."""
    shares = {f"{_WEIGHT}.{name}": weight for name, weight in weights.items() if _is_share(weight)}
    _read(folder, shares)


def read_moments(folder: Path, weights: "Sequence[Tensor]") -> "dict[int, dict[str, Tensor]]":
    """Return the stored moments of sharded weights, by number and name.

    Args:
        folder: the checkpoint's.
        weights: the optimizer's, in its order.
    """
    import torch
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

    if not any(map(_is_share, weights)):
        return {}
    stored = HuggingFaceStorageReader(path=str(folder)).read_metadata().state_dict_metadata
    moments: dict[int, dict[str, Tensor]] = {}
    for key in stored:
        kind, _, rest = key.partition(".")
        if kind == _MOMENT:
            number, name = rest.split(".", 1)
            # a moment is sharded as its weight is
            share = torch.zeros_like(weights[int(number)].detach())
            moments.setdefault(int(number), {})[name] = share
    _read(
        folder,
        {
            f"{_MOMENT}.{number}.{name}": moment
            for number, state in moments.items()
            for name, moment in state.items()
        },
    )
    return moments


def _read(folder: Path, shares: "dict[str, Tensor]") -> None:
    if not shares:
        return
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    load(shares, storage_reader=HuggingFaceStorageReader(path=str(folder)))


def _is_share(value: Any) -> bool:
    from torch.distributed.tensor import DTensor

    return isinstance(value, DTensor)
