"""The gate: the conditions under which a round passes."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from pydantic import Field

from cohobate.params import Section


class ScoreComparison(NamedTuple):
    """A student's score compared with that of another model."""

    gain_low: float
    """Lower end of the interval of the gain over the baseline, or over the champion."""
    retention: float | None
    """The student's score over the teacher's, or the champion's; None where that is 0."""


class TaskGate(Section):
    """Conditions that every task has to meet by itself, where the round has several sources."""

    min_gain: float = 0.0
    """The lower end of the gain on each task must lie above this; below 0, a loss is allowed."""
    min_retention: float = Field(0.0, ge=0)
    """The student's score on each task must be at least this share of the teacher's."""

    def passes(self, compared: ScoreComparison) -> bool:
        """Return whether a task meets the conditions."""
        if compared.retention is None:  # the teacher scores 0 on the task
            return compared.gain_low > self.min_gain and not self.min_retention
        kept = compared.retention >= self.min_retention
        return compared.gain_low > self.min_gain and kept


class Gate(Section):
    """A significant gain over the baseline, and enough of the teacher's score."""

    min_gain: float = 0.0
    """The lower end of the gain over the baseline must lie above this (share of 1); where the
    baseline also keeps its best checkpoint on dev, that of the gain over it too."""
    min_retention: float = Field(0.85, ge=0)
    """The student's score must be at least this share of the teacher's."""
    each_task: TaskGate | None = Field(None, exclude_if=lambda gate: gate is None)
    """What is asked of every task besides. `challenge` asks it too, of the new student against the
    champion on the dev rows."""

    def judge(
        self,
        whole: ScoreComparison,
        tasks: Mapping[str, ScoreComparison] | None = None,
        gain_over_best: float | None = None,
    ) -> dict[str, Any]:
        """Return whether the gate and each of its conditions is passed, with the conditions.

        Args:
            whole: student and baseline, student and teacher, on all rows.
            tasks: the same on the rows of each task.
            gain_over_best: lower end of the gain over the baseline's best checkpoint on dev; None
                where the baseline keeps none.
        """
        gained = whole.gain_low > self.min_gain
        retained = whole.retention is not None and whole.retention >= self.min_retention
        conditions = {"gain": gained, "retention": retained}
        if gain_over_best is not None:
            conditions["gain_over_best"] = gain_over_best > self.min_gain
        limits = {"min_gain": self.min_gain, "min_retention": self.min_retention}
        each: dict[str, Any] = {}
        if self.each_task:
            passed = self.by_task(tasks or {})
            conditions["every_task"] = bool(passed) and all(passed.values())
            each = {"each_task": {"passed": passed, **self.each_task.model_dump()}}
        return {"passed": all(conditions.values()), **conditions, **limits, **each}

    def by_task(self, tasks: Mapping[str, ScoreComparison]) -> dict[str, bool]:
        """Return for each task whether it meets `each_task`; empty where nothing is asked."""
        if self.each_task is None:
            return {}
        return {name: self.each_task.passes(compared) for name, compared in tasks.items()}
