"""Training checkpoints: what a killed training run resumes from.

They lie outside of what any stage writes, below a hash of everything that decides the run:

    .cohobate/training/kd/seed-1/<key>/fit-0-<examples>/update-000400/
        weights.safetensors      trained weights, and buffers
        optimizer.safetensors    the optimizer's moments, `<parameter>.<name>`
        shard-00001-model-….safetensors, one a worker: its share of both, where they are sharded
        moments-00001.safetensors, one a worker, in place of those: in 8 bits, or offloaded
        state.json               history, learning rate schedule, random states of each worker
        manifest.json            size and sha256 of each file

A checkpoint is staged, synced, sealed by its manifest and renamed (`sealed_folder.staged`). The
newest two are kept. A run resumes from the newest sound one, checked file by file; a damaged one is
named and deleted. All are deleted once the phase is published.

transformers' own `resume_from_checkpoint` is not used: it trains on in silence where a file of the
state is missing, and it unpickles. Nothing here is ever unpickled.
"""

import hashlib
import json
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cohobate import sealed_folder
from cohobate.errors import UserError
from cohobate.progress import say
from cohobate.training import shares

if TYPE_CHECKING:
    from torch import Tensor, nn

TRAINING = Path(".cohobate/training")
KEPT = 2
"""Training checkpoints of a run that are on disk at once."""
WEIGHTS, OPTIMIZER, STATE = "weights.safetensors", "optimizer.safetensors", "state.json"


@dataclass(frozen=True)
class CheckpointDir:
    """The folder with the checkpoints of one training run."""

    folder: Path
    every: int
    """Updates between two checkpoints."""

    def is_due(self, update: int, updates: int) -> bool:
        """Return whether a checkpoint follows this update; one always follows the last."""
        return update % self.every == 0 or update == updates

    def save(self, update: int, write: Callable[[Path], None]) -> None:
        """Publish a checkpoint with the files that `write` puts into a folder; delete old ones.

        All workers call it, and `write` is called in each of them.

        Raises:
            UserError: the disk is full; the checkpoints before this one are as they were.
        """
        from cohobate import processes

        publish(self.folder / f"update-{update:06}", write)
        # only after the new one is complete: two are left after a kill at any moment
        processes.on_first_worker(self._delete_old)

    def _delete_old(self) -> None:
        for old in self._newest_first()[KEPT:]:
            shutil.rmtree(old)

    def latest(self) -> Path | None:
        """Return the newest sound checkpoint; delete damaged ones, and name them in the log."""
        for leftover in self.folder.glob(".*"):  # of a process that was killed while it wrote
            shutil.rmtree(leftover, ignore_errors=True)
        for folder in self._newest_first():
            try:
                sealed_folder.verify(folder)
            except UserError as error:
                say(f"{error.what}: {folder} is not used")
                shutil.rmtree(folder)
            else:
                return folder
        return None

    def _newest_first(self) -> list[Path]:
        # the numbers have leading zeros: names sort as updates do
        return sorted(self.folder.glob("update-*"), reverse=True)


def publish(folder: Path, write: Callable[[Path], None]) -> None:
    """Publish a folder with the files that `write` puts into it, in each of all workers.

    Raises:
        UserError: the disk is full.
    """
    from cohobate import processes

    staged = sealed_folder.staged(folder)
    with ExitStack() as stack:
        partial = processes.on_first_worker(lambda: stack.enter_context(staged))
        processes.on_all_workers(lambda: write(partial))
        # sealed and renamed by the first worker; the others wait
        processes.on_first_worker(stack.close)


class TrainingRun:
    """One phase and seed: its name, and a hash of all that decides it.

    A run may call `fit` several times; each call has a checkpoint folder of its own.
    """

    def __init__(self, name: str, key: str) -> None:
        self.name, self.key = name, key
        self._fits = count()
        self._checked = count()

    def best_folder(self) -> Path:
        """Return where the next training that is checked on dev rows keeps its best weights."""
        return TRAINING / self.name / self.key / f"best-{next(self._checked)}"

    def checkpoint_dir(self, every: int, examples: str) -> CheckpointDir:
        """Return where the next `fit` of this run keeps its checkpoints.

        Args:
            every: updates between two of them.
            examples: fingerprint of the examples; checkpoints of other examples are not found.
        """
        # the trainings of a phase come in one order, so a resumed run counts the same
        number = next(self._fits)
        folder = TRAINING / self.name / self.key / f"fit-{number}-{examples[:8]}"
        return CheckpointDir(folder, every)


_current: ContextVar[TrainingRun | None] = ContextVar("training_run", default=None)


def current_run() -> TrainingRun | None:
    """Return the run of the enclosing `resumable` block; None outside of one."""
    return _current.get()


@contextmanager
def resumable(name: str, *decided_by: Any) -> Iterator[None]:
    """Let the trainings within the block keep checkpoints, and resume from those of a killed run.

    Args:
        name: such as `kd/seed-1`: a path below `.cohobate/training`.
        decided_by: everything that decides the result, as JSON values. Where one of them changes,
            the run starts anew.
    """
    text = json.dumps(decided_by, sort_keys=True)
    key = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
    token = _current.set(TrainingRun(name, key))
    try:
        yield
    finally:
        _current.reset(token)


def delete_checkpoints(name: str) -> None:
    """Delete the checkpoints of a run that has been published, those of other keys included."""
    shutil.rmtree(TRAINING / name, ignore_errors=True)


def content_hash(path: Path) -> str:
    """Return a hash of a file, or of a folder: of its manifest where it has one, else of all."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    if (path / sealed_folder.MANIFEST).exists():
        return content_hash(path / sealed_folder.MANIFEST)
    hashes = {str(p.relative_to(path)): content_hash(p) for p in path.rglob("*") if p.is_file()}
    return hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()


def write_state(
    folder: Path, module: "nn.Module", optimizer: Any, scheduler: Any, extra: dict[str, Any]
) -> None:
    """Write the state of a run between two updates into an empty folder.

    Args:
        folder: as `CheckpointDir.save` gives it.
        module: its trained weights are written; the frozen ones are those of the start.
        optimizer: torch's, or accelerate's wrapper of it.
        scheduler: of the learning rate.
        extra: further entries of state.json, as JSON values.
    """
    import torch
    from safetensors.torch import save_file

    from cohobate import processes
    from cohobate.training import eight_bit_adamw
    from cohobate.training.offloaded_adamw import is_offloaded

    # safetensors holds flat names of tensors; all that is no tensor goes into state.json
    moving, state = _moving(module), optimizer.state_dict()
    moments = state["state"]
    if eight_bit_adamw.is_eight_bit(optimizer) or is_offloaded(optimizer):
        eight_bit_adamw.write(folder, moments)
        moments = {}
    shares.write(folder, moving, moments)
    if processes.rank():
        return
    weights = {name: tensor.cpu() for name, tensor in shares.whole(moving).items()}
    save_file(weights, folder / WEIGHTS)
    tensors: dict[str, Tensor] = {}
    plain: dict[str, Any] = {}
    for number, values in moments.items():
        for name, value in shares.whole(values).items():
            key = f"{number}.{name}"
            if isinstance(value, torch.Tensor):
                tensors[key] = value.cpu()
            else:  # counters that some optimizers keep as Python numbers
                plain[key] = value
    save_file(tensors, folder / OPTIMIZER)
    rest = {"groups": state["param_groups"], "plain": plain, "schedule": scheduler.state_dict()}
    # learning rates may be tensors
    text = json.dumps(extra | {"optimizer": rest}, default=lambda tensor: tensor.item())
    (folder / STATE).write_text(text)


def write_weights(folder: Path, module: "nn.Module") -> None:
    """Write the trained weights of a module into an empty folder; all workers together."""
    from safetensors.torch import save_file

    from cohobate import processes

    moving = _moving(module)
    shares.write(folder, moving, {})
    if processes.rank() == 0:
        weights = {name: tensor.cpu() for name, tensor in shares.whole(moving).items()}
        save_file(weights, folder / WEIGHTS)


def read_state(folder: Path) -> dict[str, Any]:
    """Return state.json of a checkpoint: the `extra` of `write_state`, and `optimizer`."""
    state: dict[str, Any] = json.loads((folder / STATE).read_bytes())
    return state


def restore_weights(folder: Path, module: "nn.Module") -> None:
    """Copy the stored values into the trained weights."""
    import torch
    from safetensors.torch import load_file

    stored, moving = load_file(folder / WEIGHTS), _moving(module)
    whole = shares.whole(moving)
    assert stored.keys() == whole.keys(), "the key of the run stands for the same model"
    with torch.no_grad():
        for name, tensor in whole.items():
            tensor.copy_(stored[name])
        shares.read_weights(folder, moving)


def restore_optimizer(folder: Path, optimizer: Any, scheduler: Any) -> None:
    """Load the stored state into the optimizer and the learning rate schedule."""
    from safetensors.torch import load_file

    from cohobate.training import eight_bit_adamw
    from cohobate.training.offloaded_adamw import is_offloaded

    stored = read_state(folder)["optimizer"]
    # the inverse of `write_state`: "<parameter>.<name>" back to torch's two levels
    state: dict[int, dict[str, Any]] = {}
    for key, value in (stored["plain"] | load_file(folder / OPTIMIZER)).items():
        number, name = key.split(".", 1)
        state.setdefault(int(number), {})[name] = value
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    for number, moments in shares.read_moments(folder, weights).items():
        state.setdefault(number, {}).update(moments)
    if eight_bit_adamw.is_eight_bit(optimizer):
        state = eight_bit_adamw.read(folder, weights)
        eight_bit_adamw.restore_rates(stored, optimizer, scheduler)
    elif is_offloaded(optimizer):
        shares_here = [getattr(weight, "_local_tensor", weight) for weight in weights]
        state = eight_bit_adamw.read(folder, shares_here)
    optimizer.load_state_dict({"state": state, "param_groups": stored["groups"]})
    scheduler.load_state_dict(stored["schedule"])


def random_state() -> dict[str, Any]:
    """Return the states of this process's random number generators, as JSON values."""
    import numpy as np
    import torch

    # arrays and bytes as lists and hex: JSON, since nothing here is unpickled
    kind, keys, *rest = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": [kind, np.asarray(keys).tolist(), *rest],
        "torch": torch.get_rng_state().numpy().tobytes().hex(),
        "cuda": [s.numpy().tobytes().hex() for s in torch.cuda.get_rng_state_all()],
    }


def restore_random(state: dict[str, Any]) -> None:
    """Set this process's random number generators to what `random_state` returned."""
    import numpy as np
    import torch

    # JSON has no tuples, and setstate takes nothing else
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(_bytes(state["torch"]))
    if torch.cuda.is_available():
        torch.cuda.set_rng_state_all([_bytes(text) for text in state["cuda"]])


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Put this process's random number generators back as the block ends."""
    state = random_state()
    try:
        yield
    finally:
        restore_random(state)


def _bytes(text: str) -> "Tensor":
    import torch

    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)


def _moving(module: "nn.Module") -> "dict[str, Tensor]":
    """Return the weights that training changes, each once, and the buffers of the state dict."""
    trained = {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}
    persistent = module.state_dict().keys()
    return trained | {name: b for name, b in module.named_buffers() if name in persistent}
