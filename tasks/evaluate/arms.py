"""Arms: the groups of checkpoints that are compared, a row each in the result table.

Four are always there: the teacher, the student before distillation (`initial`), the baseline with
as many updates on labels alone, and the distilled student. Every other phase on disk is a further
arm, and so are the best checkpoints of a phase on dev, where it keeps both: `<phase>-best`, and the
whole models of one that publishes an early exit, where it keeps them: `<phase>-whole`. An arm has
one checkpoint for each seed.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cohobate.data.records import ADAPT, ENDPOINT, INIT_STUDENT, TRAIN
from cohobate.errors import UserError
from cohobate.methods.phase import BEST, WHOLE
from cohobate.models import checkpoints
from cohobate.params import nearest
from cohobate.progress import say

Role = Literal["teacher", "initial", "baseline", "baseline_best", "student", "other"]
TEACHER, INITIAL = "teacher", "initial"
BASELINE_BEST: Role = "baseline_best"


@dataclass(frozen=True)
class Arm:
    """One group of checkpoints: a model, or a phase's models over the seeds."""

    name: str
    """`teacher`, `initial`, or the phase that trained it; `<phase>-best`: its best on dev."""
    role: Role
    checkpoints: dict[int, Path]
    """By seed; the teacher and the initial student have one checkpoint, with key 0."""
    answers_only: bool = False
    """Whether only its answers are evaluated, although its weights are here."""

    @property
    def is_served(self) -> bool:
        """Whether it is behind an endpoint: there is only an address."""
        return any((folder / ENDPOINT).exists() for folder in self.checkpoints.values())

    @property
    def has_weights(self) -> bool:
        """Whether the weights are loaded for what needs them."""
        return not self.answers_only and not self.is_served

    @property
    def updates(self) -> int:
        """Optimiser steps, those of earlier phases and rounds included."""
        return max(checkpoints.updates(folder) for folder in self.checkpoints.values())

    @property
    def column(self) -> str:
        """Name in tables by role: the role, or the phase where it has none."""
        if self.role != "other":
            return self.role
        return f"phase {self.name}" if self.name in ("baseline", "student") else self.name

    def called(self, seed: int) -> str:
        """Return the name of one checkpoint in the log."""
        return f"{self.name} seed {seed}" if seed else self.name

    def predictions(self, seed: int) -> Path:
        """Return the file of one checkpoint's predictions, below data/evaluate/predictions."""
        return Path(f"{self.name}/seed-{seed}.jsonl" if seed else f"{self.name}.jsonl")


def arms_on_disk(teacher: str, baseline: str, student: str, seeds: list[int]) -> list[Arm]:
    """Return teacher, initial, baseline, its best on dev, student, then the other phases by name.

    Raises:
        UserError: a checkpoint of one of the four is missing.
    """
    phases = sorted(path.name for path in TRAIN.glob("*") if path.is_dir())
    if taken := {TEACHER, INITIAL}.intersection(phases):
        raise UserError(
            f"a phase must not be called {taken.pop()!r}: the report uses that name itself",
            where="params.yaml, section train",
            fix="rename the phase",
        )
    if baseline == student:
        raise UserError(
            f"baseline and student are both {student!r}: nothing to compare",
            where="params.yaml, section evaluate",
            fix="name two phases of the section train",
        )
    roles: dict[str, Role] = {baseline: "baseline", student: "student"}
    for phase, role in roles.items():
        if phase not in phases:
            raise UserError(
                f"no phase is called {phase!r}{nearest(phase, phases)}",
                where=f"params.yaml, evaluate.{role}",
                fix=f"cohobate run --stage train@{phase}",
            )
    # the two phases with a role must be complete, others may be left from earlier params
    others = [phase for phase in phases if phase not in roles and _complete(phase, seeds)]
    return [
        Arm(TEACHER, "teacher", {0: _existing(ADAPT / teacher, "adapt")}),
        Arm(INITIAL, "initial", {0: _existing(INIT_STUDENT, "init_student")}),
        Arm(baseline, "baseline", _by_seed(baseline, seeds)),
        *_beside(baseline, BEST, BASELINE_BEST, seeds),
        *_beside(baseline, WHOLE, "other", seeds),
        Arm(student, "student", _by_seed(student, seeds)),
        *(arm for kind in (BEST, WHOLE) for arm in _beside(student, kind, "other", seeds)),
        *(
            arm
            for phase in others
            for arm in (
                Arm(phase, "other", _by_seed(phase, seeds)),
                *(arm for kind in (BEST, WHOLE) for arm in _beside(phase, kind, "other", seeds)),
            )
        ),
    ]


def _beside(phase: str, kind: str, role: Role, seeds: list[int]) -> list[Arm]:
    """Return the arm of a phase's best checkpoints, or of its whole models, where it keeps them."""
    folders = {seed: TRAIN / phase / kind / f"seed-{seed}" for seed in seeds}
    if not all(folder.is_dir() for folder in folders.values()):
        return []
    name = f"{phase}-{kind}"
    if (TRAIN / name).is_dir():
        model = "best checkpoint" if kind == BEST else "whole model"
        raise UserError(
            f"a phase must not be called {name!r}: so is the {model} of {phase}",
            where="params.yaml, section train",
            fix="rename the phase",
        )
    return [Arm(name, role, folders)]


def _by_seed(phase: str, seeds: list[int]) -> dict[int, Path]:
    return {seed: _existing(TRAIN / phase / f"seed-{seed}", f"train@{phase}") for seed in seeds}


def _complete(phase: str, seeds: list[int]) -> bool:
    """Return whether a phase has all seeds; one without a role may be left from an earlier run."""
    absent = [seed for seed in seeds if not (TRAIN / phase / f"seed-{seed}").is_dir()]
    if absent:
        say(f"the phase {phase} is not evaluated: it has no checkpoint of seed {absent[0]}")
    return not absent


def _existing(folder: Path, stage: str) -> Path:
    if not folder.is_dir():
        raise UserError(
            "checkpoint not found", where=str(folder), fix=f"cohobate run --stage {stage}"
        )
    return folder
