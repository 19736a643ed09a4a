"""Scores by capability, and gaps by group: where the student keeps less of the teacher.

    data/evaluate/capabilities.json   a line for each capability of `evaluate.capabilities`
    data/evaluate/gaps.json           a line for each group, where `evaluate.groups` names a field

Intervals are those of cohobate/evaluation/bootstrap.py, each on the rows of its line.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator

from cohobate.data.records import EVALUATE, Row, write_json
from cohobate.errors import UserError
from cohobate.evaluation.bootstrap import Bootstrap, Floats
from cohobate.params import Section, nearest
from tasks.evaluate.robustness import longest
from tasks.evaluate.statistics import Statistics

CAPABILITIES = EVALUATE / "capabilities.json"
GAPS = EVALUATE / "gaps.json"
WHOLE = "all rows"
_ROLES = ("teacher", "initial", "baseline", "student")
GroupField = Literal["", "group", "task"]


class Capability(Section):
    """Test rows, and by which metric they are scored."""

    tasks: tuple[str, ...] = ()
    """Rows of these sources."""
    groups: tuple[str, ...] = ()
    """Rows of these groups, such as categories of prompts."""
    longest: float | None = Field(None, gt=0, lt=1)
    """So large a share of these rows, those with the longest prompts."""
    metric: str = ""
    """A metric of `evaluate.metrics` that scores them, such as `format`, or a figure of all answers
    such as `distinct_2`, which has no interval; the deciding metric where it is not given."""

    @model_validator(mode="after")
    def _selects_something(self) -> "Capability":
        if not (self.tasks or self.groups or self.longest or self.metric):
            raise ValueError("give tasks, groups, longest or metric: all rows are there anyway")
        return self

    def positions(self, rows: Sequence[Row]) -> list[int]:
        """Return the positions of its rows."""
        own = [
            n
            for n, row in enumerate(rows)
            if (not self.tasks or row.task in self.tasks)
            and (not self.groups or row.group in self.groups)
        ]
        if self.longest is None:
            return own
        return [own[n] for n in longest([rows[n] for n in own], self.longest)]


def write_capabilities(
    capabilities: Mapping[str, Capability],
    groups: GroupField,
    statistics: Statistics,
    draws: int,
    seed: int,
) -> dict[str, Any]:
    """Write the tables that params.yaml asks for; return the figures for reports/metrics.json.

    Raises:
        UserError: a capability has no row, or a metric that is none.
    """
    for path in (CAPABILITIES, GAPS):
        path.unlink(missing_ok=True)
    figures: dict[str, Any] = {}
    if capabilities:
        lines = [_line(WHOLE, None, statistics, draws, seed)]
        lines += [_line(name, own, statistics, draws, seed) for name, own in capabilities.items()]
        write_json(CAPABILITIES, lines)
        figures["capabilities"] = {
            line["capability"]: {key: line[key] for key in ("rows", "retention", "student")}
            for line in lines
        }
    if groups:
        gaps = _gaps(groups, statistics, draws, seed)
        write_json(GAPS, gaps)
        figures["group_gaps"] = gaps
    return figures


def _line(
    name: str, capability: Capability | None, statistics: Statistics, draws: int, seed: int
) -> dict[str, Any]:
    rows = statistics.rows
    positions = capability.positions(rows) if capability else [*range(len(rows))]
    if not positions:
        raise UserError(
            f"the capability {name!r} has no test row",
            where=f"params.yaml, evaluate.capabilities.{name}",
            fix="tasks are names of collect.sources, groups those of the rows (data/collect/"
            "test.jsonl)",
        )
    metric = (capability.metric if capability else "") or statistics.metric
    if metric in {figure.name for figure in statistics.figures}:
        return _figure_line(name, metric, positions, statistics)
    scores = _scores(name, metric, positions, statistics)
    bootstrap = Bootstrap(scores, draws, seed)
    kept = bootstrap.ratio("student", "teacher")
    return {
        "capability": name,
        "metric": metric,
        "rows": next(iter(scores.values())).shape[1],
        **{role: bootstrap.score(role).rounded() for role in _ROLES},
        "retention": kept and kept.rounded(),
    }


def _figure_line(
    name: str, metric: str, positions: Sequence[int], statistics: Statistics
) -> dict[str, Any]:
    figure = next(figure for figure in statistics.figures if figure.name == metric)
    rows = [statistics.rows[n] for n in positions]
    values: dict[str, float | None] = {}
    for role in _ROLES:
        seeds = statistics.predictions.by_arm[statistics.names[role]].values()
        own = [
            figure.measure(rows, [answers[n].answer for n in positions], statistics.task)
            for answers in seeds
        ]
        known = [value for value in own if value is not None]
        values[role] = sum(known) / len(known) if known else None
    teacher, student = values["teacher"], values["student"]
    # resampled rows repeat n-grams: a bootstrap of these figures would be wrong
    kept = None if not teacher or student is None else {"mean": round(student / teacher, 6)}
    line = {role: None if v is None else {"mean": round(v, 6)} for role, v in values.items()}
    return {"capability": name, "metric": metric, "rows": len(rows), **line, "retention": kept}


def _scores(
    name: str, metric: str, positions: Sequence[int], statistics: Statistics
) -> dict[str, Floats]:
    """Return scores by role, (Z, R), of those rows that the metric scores."""
    by_arm, names = statistics.predictions.by_arm, statistics.names
    first = next(iter(by_arm["teacher"].values()))
    scored = [n for n in positions if metric in first[n].scores]
    if not scored:
        known = sorted({key for prediction in first for key in prediction.scores})
        raise UserError(
            f"no row of the capability {name!r} is scored by {metric!r}{nearest(metric, known)}",
            where=f"params.yaml, evaluate.capabilities.{name}.metric",
            fix=f"one of {', '.join(known)}, or another of evaluate.metrics",
        )
    seeds = {role: by_arm[names[role]].values() for role in _ROLES}
    return {
        role: np.array([[answers[n].scores[metric] for n in scored] for answers in own])
        for role, own in seeds.items()
    }


def _gaps(
    groups: GroupField, statistics: Statistics, draws: int, seed: int
) -> list[dict[str, Any]]:
    """Return how far the student is behind the teacher on each group, the largest gap first."""
    members: defaultdict[str, list[int]] = defaultdict(list)
    for position, row in enumerate(statistics.rows):
        members[(row.task if groups == "task" else row.group) or ""].append(position)
    lines = []
    for group, positions in members.items():
        scores = _scores(group, statistics.metric, positions, statistics)
        bootstrap = Bootstrap(scores, draws, seed)
        lines.append(
            {
                "group": group,
                "rows": len(positions),
                "teacher": round(bootstrap.score("teacher").mean, 6),
                "student": round(bootstrap.score("student").mean, 6),
                "gap": bootstrap.difference("student", "teacher").rounded(),
            }
        )
    return sorted(lines, key=lambda line: (line["gap"]["mean"], line["group"]))
