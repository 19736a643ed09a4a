"""The rows of the result table: which checkpoints are scored, and what each stands for.

Always four: the teacher, the student before distillation (`initial`), the baseline that had equally
many updates on labels, and the distilled student. Every other phase found on disk is a row more.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cohobate.data.records import ADAPT, ENDPOINT, INIT_STUDENT, TRAIN
from cohobate.errors import UserError
from cohobate.models import checkpoints
from cohobate.params import nearest
from cohobate.progress import say

Role = Literal["teacher", "initial", "baseline", "student", "other"]
TEACHER, INITIAL = "teacher", "initial"


@dataclass(frozen=True)
class Arm:
    """One row of the result table."""

    name: str
    """`teacher`, `initial`, or the phase that trained it."""
    role: Role
    checkpoints: dict[int, Path]
    """By seed; the teacher and the initial student have one checkpoint and no seed: key 0."""

    @property
    def has_weights(self) -> bool:
        """Whether its weights are here: a teacher behind an endpoint has but an address."""
        return not any((folder / ENDPOINT).exists() for folder in self.checkpoints.values())

    @property
    def updates(self) -> int:
        """Optimiser steps that led to it, those of earlier phases and rounds included."""
        return max(checkpoints.updates(folder) for folder in self.checkpoints.values())

    @property
    def column(self) -> str:
        """What the arm is called in tables by role: its role, or its phase where it has none."""
        if self.role != "other":
            return self.role
        return f"phase {self.name}" if self.name in ("baseline", "student") else self.name

    def called(self, seed: int) -> str:
        """Return what one checkpoint is called in the log."""
        return f"{self.name} seed {seed}" if seed else self.name

    def predictions(self, seed: int) -> Path:
        """Return where the answers of one checkpoint lie, below `data/evaluate/predictions`."""
        return Path(f"{self.name}/seed-{seed}.jsonl" if seed else f"{self.name}.jsonl")


def arms_on_disk(teacher: str, baseline: str, student: str, seeds: list[int]) -> list[Arm]:
    """Return teacher, initial, baseline, student, then the other phases by name.

    Raises:
        UserError: a checkpoint that the four rows need is not there.
    """
    phases = sorted(path.name for path in TRAIN.glob("*") if path.is_dir())
    if taken := {TEACHER, INITIAL}.intersection(phases):
        raise UserError(
            f"a phase must not be called {taken.pop()!r}: that is another row's name",
            where="params.yaml, section train",
        )
    if baseline == student:
        raise UserError(
            f"baseline and student are both {student!r}: nothing to compare",
            where="params.yaml, section evaluate",
        )
    roles: dict[str, Role] = {baseline: "baseline", student: "student"}
    for phase, role in roles.items():
        if phase not in phases:
            raise UserError(
                f"no phase is called {phase!r}{nearest(phase, phases)}",
                where=f"params.yaml, evaluate.{role}",
                fix=f"cohobate run --stage train@{phase}",
            )
    others = [phase for phase in phases if phase not in roles and _complete(phase, seeds)]
    return [
        Arm(TEACHER, "teacher", {0: _present(ADAPT / teacher, "adapt")}),
        Arm(INITIAL, "initial", {0: _present(INIT_STUDENT, "init_student")}),
        *(Arm(phase, role, _by_seed(phase, seeds)) for phase, role in roles.items()),
        *(Arm(phase, "other", _by_seed(phase, seeds)) for phase in others),
    ]


def _by_seed(phase: str, seeds: list[int]) -> dict[int, Path]:
    return {seed: _present(TRAIN / phase / f"seed-{seed}", f"train@{phase}") for seed in seeds}


def _complete(phase: str, seeds: list[int]) -> bool:
    """Say whether a phase that no comparison needs can be a row; it may be left from before."""
    absent = [seed for seed in seeds if not (TRAIN / phase / f"seed-{seed}").is_dir()]
    if absent:
        say(f"no row for the phase {phase}: it has no checkpoint of seed {absent[0]}")
    return not absent


def _present(folder: Path, stage: str) -> Path:
    if not folder.is_dir():
        raise UserError(
            "a checkpoint is not there", where=str(folder), fix=f"cohobate run --stage {stage}"
        )
    return folder
