"""Scores by task, where a round has several sources, and their macro mean.

The overall score weighs each test row alike, and so each task by its rows. The macro mean weighs
each task alike. Both have intervals by the same bootstrap (cohobate/evaluation/bootstrap.py); the
rows of each task are resampled by themselves.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cohobate.data.records import EVALUATE, Row
from cohobate.evaluation.bootstrap import Bootstrap, Floats, macro_mean
from cohobate.evaluation.gate import ScoreComparison

TASKS = EVALUATE / "tasks.json"
MACRO_MEAN = "macro mean"


@dataclass(frozen=True)
class TaskScores:
    """The bootstrap of each task's rows, and of the mean over the tasks."""

    rows: Mapping[str, int]
    """Number of test rows of each task."""
    tasks: Mapping[str, Bootstrap]
    macro: Bootstrap
    names: Mapping[str, str]
    """Names of the arms by role."""

    @classmethod
    def of(
        cls,
        rows: Sequence[Row],
        scores: Mapping[str, Floats],
        names: Mapping[str, str],
        draws: int,
        seed: int,
    ) -> "TaskScores | None":
        """Return the scores by task; None where the rows name no task.

        Args:
            rows: the test rows.
            scores: scores by arm, (Z, R).
            names: names of the arms by role.
            draws: number of resamples.
            seed: of the bootstrap over all rows; each task has a seed of its own.
        """
        members: defaultdict[str, list[int]] = defaultdict(list)
        for position, row in enumerate(rows):
            if row.task is not None:
                members[row.task].append(position)
        if not members:
            return None
        tasks = {
            name: Bootstrap(
                {arm: scores_ZR[:, members[name]] for arm, scores_ZR in scores.items()},
                draws,
                # the rows of the tasks are drawn independently of each other
                seed + 1 + number,
            )
            for number, name in enumerate(sorted(members))
        }
        counts = {name: len(members[name]) for name in tasks}
        return cls(counts, tasks, macro_mean([*tasks.values()], seed), names)

    def table(self) -> list[dict[str, Any]]:
        """Return a line for each task and for the macro mean, as `data/evaluate/tasks.json`."""
        lines = [
            {"task": name, "rows": self.rows[name], "arms": self._arms(bootstrap)}
            for name, bootstrap in self.tasks.items()
        ]
        total = {"task": MACRO_MEAN, "rows": sum(self.rows.values())}
        return [*lines, {**total, "arms": self._arms(self.macro)}]

    def metrics(self) -> dict[str, Any]:
        """Return what `reports/metrics.json` holds of the tasks."""
        tasks = {
            name: self._brief(bootstrap) | {"test_rows": self.rows[name]}
            for name, bootstrap in self.tasks.items()
        }
        return {"tasks": tasks, "macro_mean": self._brief(self.macro)}

    def comparisons(self) -> dict[str, ScoreComparison]:
        """Return what the gate reads of each task."""
        compared = {}
        for name, bootstrap in self.tasks.items():
            gain = bootstrap.difference(self.names["student"], self.names["baseline"])
            kept = bootstrap.ratio(self.names["student"], self.names["teacher"])
            compared[name] = ScoreComparison(gain.low, kept.mean if kept else None)
        return compared

    def _arms(self, bootstrap: Bootstrap) -> dict[str, dict[str, Any]]:
        teacher, baseline = self.names["teacher"], self.names["baseline"]
        figures = {}
        for arm in bootstrap.arms:
            kept = bootstrap.ratio(arm, teacher)
            gain = bootstrap.difference(arm, baseline)
            figures[arm] = {
                "score": bootstrap.score(arm).rounded(),
                "retention": kept.rounded() if kept else None,
                "gain_over_baseline": gain.rounded() if arm != baseline else None,
            }
        return figures

    def _brief(self, bootstrap: Bootstrap) -> dict[str, Any]:
        scores = {role: bootstrap.score(arm).rounded() for role, arm in self.names.items()}
        student = self.names["student"]
        gain = bootstrap.difference(student, self.names["baseline"])
        kept = bootstrap.ratio(student, self.names["teacher"])
        return {
            **{
                role: {"score": s["mean"], "low": s["low"], "high": s["high"]}
                for role, s in scores.items()
            },
            "gain_over_baseline": gain.rounded(),
            "retention": kept and round(kept.mean, 6),
            "retention_low": kept and round(kept.low, 6),
            "retention_high": kept and round(kept.high, 6),
        }
