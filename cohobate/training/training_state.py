"""The state of a training run between two updates, as files; nothing in them is ever unpickled.

weights.safetensors      the weights that are trained, and buffers
optimizer.safetensors    the optimiser's moments, `<parameter>.<name>`
state.json               update, history, learning rate schedule, random numbers of each worker
"""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

WEIGHTS, OPTIMIZER, STATE = "weights.safetensors", "optimizer.safetensors", "state.json"


def write(
    folder: Path, loss_fn: nn.Module, optimizer: Any, scheduler: Any, about: dict[str, Any]
) -> None:
    """Write the state of a run into an empty folder.

    Args:
        folder: it is published by `resuming.Keeper.write`.
        learner: whose trained weights are kept; the frozen ones are those of the start.
        optimizer: torch's, or accelerate's wrapper of it.
        scheduler: of the learning rate.
        about: what else to keep, as JSON values.
    """
    weights = {name: tensor.detach().cpu() for name, tensor in _trained(loss_fn).items()}
    save_file(weights, folder / WEIGHTS)
    state = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    plain: dict[str, Any] = {}
    for number, values in state["state"].items():
        for name, value in values.items():
            key = f"{number}.{name}"
            if isinstance(value, Tensor):
                tensors[key] = value.cpu()
            else:
                plain[key] = value
    save_file(tensors, folder / OPTIMIZER)
    rest = {"groups": state["param_groups"], "plain": plain, "schedule": scheduler.state_dict()}
    (folder / STATE).write_text(json.dumps(about | {"optimizer": rest}))


def read(folder: Path) -> dict[str, Any]:
    """Return what `write` was told about a run."""
    about: dict[str, Any] = json.loads((folder / STATE).read_bytes())
    return about


def restore_weights(folder: Path, loss_fn: nn.Module) -> None:
    """Give the trained weights their stored values."""
    stored, wanted = load_file(folder / WEIGHTS), _trained(loss_fn)
    assert stored.keys() == wanted.keys(), "the key of the run stands for the same model"
    with torch.no_grad():
        for name, tensor in wanted.items():
            tensor.copy_(stored[name])


def restore_optimizer(folder: Path, optimizer: Any, scheduler: Any) -> None:
    """Give optimiser and learning rate schedule their stored state."""
    kept = read(folder)["optimizer"]
    state: dict[int, dict[str, Any]] = {}
    for key, value in (kept["plain"] | load_file(folder / OPTIMIZER)).items():
        number, name = key.split(".", 1)
        state.setdefault(int(number), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": kept["groups"]})
    scheduler.load_state_dict(kept["schedule"])


def random_state() -> dict[str, Any]:
    """Return the state of every random number generator of this process, as JSON values."""
    kind, keys, *rest = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": [kind, np.asarray(keys).tolist(), *rest],
        "torch": torch.get_rng_state().numpy().tobytes().hex(),
        "cuda": [s.numpy().tobytes().hex() for s in torch.cuda.get_rng_state_all()],
    }


def restore_random(state: dict[str, Any]) -> None:
    """Set every random number generator of this process."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(_bytes(state["torch"]))
    if torch.cuda.is_available():
        torch.cuda.set_rng_state_all([_bytes(text) for text in state["cuda"]])


def _bytes(text: str) -> Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)


def _trained(loss_fn: nn.Module) -> dict[str, Tensor]:
    """Return the weights that move, each once, and the buffers that belong to the model."""
    moving = {name: p.detach() for name, p in loss_fn.named_parameters() if p.requires_grad}
    stored = loss_fn.state_dict().keys()
    buffers = {name: b for name, b in loss_fn.named_buffers() if name in stored}
    return moving | buffers
