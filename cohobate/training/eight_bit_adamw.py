"""AdamW with moments in 8 bits (torchao), and its state in a training checkpoint.

Each block of 256 moments has a scale, and each moment one of 256 values of a dynamic map (Dettmers
et al. 2021, "8-bit Optimizers via Block-wise Quantization"). Weights of fewer than 4,096 numbers
keep theirs in float32. The step computes in float32.

A worker writes the moments that it holds, sharded or not, into a file of its own:

    moments-00001.safetensors    <parameter>.<name>, or .codes and .scale of one in 8 bits
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cohobate import processes
from cohobate.training.hyperparameters import Hyperparameters


@contextmanager
def as_it_is_written(hyperparameters: Hyperparameters) -> Iterator[None]:
    """Run torchao's step within the block as it is written, unless the phase compiles.

    torchao compiles its step for each shape of weights: minutes on a CPU.
    """
    if hyperparameters.optimiser != "adamw_8bit" or hyperparameters.compiled:
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def is_eight_bit(optimizer: Any) -> bool:
    """Say whether an optimizer, or the one that accelerate wraps, has moments in 8 bits."""
    return type(getattr(optimizer, "optimizer", optimizer)).__name__ == "AdamW8bit"


def write(folder: Path, state: dict[int, Any]) -> None:
    """Write the moments that this worker holds.

    Args:
        folder: the checkpoint's.
        state: the optimizer's, by number of the weight and name.
    """
    from safetensors.torch import save_file

    tensors = {}
    for number, moments in state.items():
        for name, moment in moments.items():
            local = _local(moment)
            if hasattr(local, "codes"):
                tensors[f"{number}.{name}.codes"] = local.codes.cpu()
                tensors[f"{number}.{name}.scale"] = local.scale.cpu()
            else:
                tensors[f"{number}.{name}"] = local.cpu()
    save_file(tensors, _file(folder))


def read(folder: Path, weights: Sequence[Tensor]) -> dict[int, dict[str, Any]]:
    """Return the moments that `write` wrote in this worker, by number of the weight and name.

    Args:
        folder: the checkpoint's.
        weights: the optimizer's, in its order.
    """
    from safetensors.torch import load_file

    stored = load_file(_file(folder))
    state: dict[int, dict[str, Any]] = {}
    for key, tensor in stored.items():
        text, name, *part = key.split(".")
        if part == ["scale"]:
            continue
        weight, moment = weights[int(text)], tensor
        if part:
            scale = stored[f"{text}.{name}.scale"]
            moment = _of_codes(tensor, scale, weight, signed=name == "exp_avg")
        state.setdefault(int(text), {})[name] = moment if name == "step" else _as(weight, moment)
    return state


def restore_rates(stored: dict[str, Any], optimizer: Any, scheduler: Any) -> None:
    """Make tensors of stored learning rates, as this optimizer has them: they round to float32."""
    for group, current in zip(stored["groups"], optimizer.param_groups, strict=True):
        for name in ("lr", "initial_lr"):
            if isinstance(current.get(name), Tensor):
                group[name] = torch.tensor(group[name], dtype=torch.float32)
    if any(isinstance(rate, Tensor) for rate in getattr(scheduler, "base_lrs", ())):
        rates = stored["schedule"]["base_lrs"]
        stored["schedule"]["base_lrs"] = [torch.tensor(r, dtype=torch.float32) for r in rates]


def _file(folder: Path) -> Path:
    return folder / f"moments-{processes.rank() + 1:05}.safetensors"


def _local(moment: Any) -> Any:
    """Return what lies in this process of a moment."""
    return getattr(moment, "_local_tensor", moment)


def _of_codes(codes: Tensor, scale: Tensor, weight: Tensor, *, signed: bool) -> Any:
    from torchao.optim.subclass_8bit import OptimState8bit

    size = codes.numel() // scale.numel()
    moment = OptimState8bit.zeros(codes.shape, signed, size, weight.device, dtype=weight.dtype)
    moment.codes.copy_(codes)
    moment.scale.copy_(scale)
    return moment


def _as(weight: Tensor, moment: Any) -> Any:
    """Return this worker's moments as a share, where the weight is one."""
    from torch.distributed.tensor import DTensor

    if not isinstance(weight, DTensor):
        return moment
    return DTensor.from_local(
        moment,
        weight.device_mesh,
        weight.placements,
        run_check=False,
        shape=weight.shape,
        stride=weight.stride(),
    )
