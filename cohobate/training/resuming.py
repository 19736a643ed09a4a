"""Training checkpoints: what a run of training that was killed goes on from.

They lie outside of what any stage writes, below a hash of all that decides the run:

    .cohobate/training/kd/seed-1/<key>/fit-0/update-000400/
        weights.safetensors, optimizer.safetensors, state.json    (training_state.py)
        manifest.json                                             size and sha256 of each file

Each is staged, synced, sealed by its manifest and renamed (`sealed_folder.staged`); the newest two
are kept. A run goes on from the newest that is sound, file by file; one that is not is named and
thrown away. They are deleted once the phase is published.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from cohobate import sealed_folder
from cohobate.errors import UserError
from cohobate.progress import say

TRAINING = Path(".cohobate/training")
KEPT = 2
"""Training checkpoints of a run that are on disk at once."""


@dataclass(frozen=True)
class CheckpointDir:
    """The checkpoints of one training run."""

    folder: Path
    every: int
    """Updates between two checkpoints."""

    def due(self, update: int, updates: int) -> bool:
        """Return whether a checkpoint follows this update; the last one ends a run for good."""
        return update % self.every == 0 or update == updates

    def write(self, update: int, fill: Callable[[Path], None]) -> None:
        """Publish a checkpoint with the files that `fill` writes; drop what is too old.

        Raises:
            UserError: the disk is full; the checkpoints before this one are as they were.
        """
        with sealed_folder.staged(self.folder / f"update-{update:06}") as partial:
            fill(partial)
        for old in self._found()[KEPT:]:
            shutil.rmtree(old)

    def newest(self) -> Path | None:
        """Return the newest sound checkpoint; damaged ones are named and removed."""
        for leftover in self.folder.glob(".*"):  # of a process that was killed while it wrote
            shutil.rmtree(leftover, ignore_errors=True)
        for folder in self._found():
            try:
                sealed_folder.verify(folder)
            except UserError as error:
                say(f"{error.what}: {folder} is not used")
                shutil.rmtree(folder)
            else:
                return folder
        return None

    def _found(self) -> list[Path]:
        return sorted(self.folder.glob("update-*"), reverse=True)


class TrainingRun:
    """One phase and seed, by name and by all that decides it; each fit in it has a keeper."""

    def __init__(self, name: str, key: str) -> None:
        self.name, self.key = name, key
        self._fits = count()

    def keeper(self, every: int, examples: str) -> CheckpointDir:
        """Return where the next fit of this run keeps its checkpoints.

        Args:
            every: updates between two of them.
            examples: hash of what is learnt from; checkpoints of other examples are not found.
        """
        number = next(self._fits)
        folder = TRAINING / self.name / self.key / f"fit-{number}-{examples[:8]}"
        return CheckpointDir(folder, every)


_current: ContextVar[TrainingRun | None] = ContextVar("training_run", default=None)


def current() -> TrainingRun | None:
    """Return the run that this is part of; None where nobody would resume it."""
    return _current.get()


@contextmanager
def resumable(name: str, *decided_by: Any) -> Iterator[None]:
    """Let what is trained in this block go on where a killed process left it.

    Args:
        name: such as `kd/seed-1`: a path below `.cohobate/training`.
        decided_by: everything that decides the result, as JSON values.
    """
    text = json.dumps(decided_by, sort_keys=True)
    key = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
    token = _current.set(TrainingRun(name, key))
    try:
        yield
    finally:
        _current.reset(token)


def forget(name: str) -> None:
    """Delete the checkpoints of a run that has been published, and of its other keys."""
    shutil.rmtree(TRAINING / name, ignore_errors=True)


def content_hash(path: Path) -> str:
    """Return a hash of a file, or of a folder: of its manifest where it has one, else of all."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    if (path / sealed_folder.MANIFEST).exists():
        return content_hash(path / sealed_folder.MANIFEST)
    found = {str(p.relative_to(path)): content_hash(p) for p in path.rglob("*") if p.is_file()}
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()
