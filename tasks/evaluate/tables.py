"""Tables for the report and for DVC's plots: groups, losses, intervals, sample rows."""

import csv
import random
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from cohobate.data.records import EVALUATE, Row
from tasks.evaluate.arms import Arm
from tasks.evaluate.predictions import Prediction
from tasks.evaluate.statistics import Statistics

GROUPS = EVALUATE / "groups.csv"
INTERVALS = EVALUATE / "intervals.csv"
LOSSES = EVALUATE / "losses"
DEV = EVALUATE / "dev"
"""Checks on dev rows of the phases that have any."""
RELIABILITY = EVALUATE / "reliability.csv"
SAMPLES = EVALUATE / "samples.json"
CURVE = ["step", "loss", "stage"]


def write_groups(statistics: Statistics, rows: Sequence[Row]) -> None:
    """Write each group's rows and every arm's score on them, the student's largest gaps first."""
    members: dict[str, list[int]] = defaultdict(list)
    for position, row in enumerate(rows):
        members[_group_of(row)].append(position)
    columns = {arm.name: arm.column for arm in statistics.arms}
    table: list[dict[str, Any]] = [
        {"group": group, "rows": len(positions)}
        | {columns[arm]: round(statistics.mean_score(arm, positions), 6) for arm in columns}
        for group, positions in members.items()
    ]
    sign = -1 if statistics.likelihood else 1
    table.sort(key=lambda line: (sign * (line["student"] - line["teacher"]), line["group"]))
    _write_csv(GROUPS, ["group", "rows", *columns.values()], table)


def write_intervals(statistics: Statistics) -> None:
    """Write each arm's score and its interval."""
    table = [{"arm": row["arm"], **row["score"]} for row in statistics.table()]
    _write_csv(INTERVALS, ["arm", "mean", "low", "high"], table)


def write_losses(arms: Iterable[Arm]) -> None:
    """Copy the loss curves and the checks on dev rows out of the checkpoints, a file for each phase
    and seed."""
    for arm in arms:
        for seed, checkpoint in arm.checkpoints.items():
            history = checkpoint / "history.csv"
            if not history.exists():
                continue
            with history.open(newline="") as lines:
                # terms differ between methods: the plots have the columns that all share
                steps = [{c: step.get(c, 0) for c in CURVE} for step in csv.DictReader(lines)]
            name = f"{arm.name}-seed-{seed}.csv"
            _write_csv(LOSSES / name, CURVE, steps)
            if (checks := checkpoint / "dev.csv").exists():
                (DEV / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(checks, DEV / name)


def write_reliability(statistics: Statistics) -> None:
    """Write, for teacher and student, mean confidence and score in each bin of confidence."""
    table = []
    for arm in statistics.arms:
        pairs = statistics.predictions.confidence_and_score(arm.name, statistics.metric)
        if pairs is None or arm.role not in ("teacher", "student"):
            continue
        confidence, score = pairs
        for low in range(statistics.bins):
            # confidence 1 belongs to the last bin
            inside = (confidence * statistics.bins).astype(int).clip(max=statistics.bins - 1) == low
            if inside.any():
                table.append(
                    {
                        "arm": arm.name,
                        "rows": int(inside.sum()),
                        "confidence": round(float(confidence[inside].mean()), 6),
                        "score": round(float(score[inside].mean()), 6),
                    }
                )
    _write_csv(RELIABILITY, ["arm", "rows", "confidence", "score"], table)


def samples(
    statistics: Statistics, rows: Sequence[Row], each: int, seed: int
) -> list[dict[str, Any]]:
    """Return sample rows with every arm's answer (of its first seed).

    The kinds: rows won and lost against the baseline, rows where the student is behind the teacher
    (its most confident mistakes first) or ahead of it, and random rows. None where a likelihood
    decides: it does not score the answers.
    """
    if statistics.likelihood:
        return []
    first = {arm: next(iter(s.values())) for arm, s in statistics.predictions.by_arm.items()}
    names = statistics.names
    order = list(range(len(rows)))
    random.Random(seed).shuffle(order)

    def ahead(one: str, other: str) -> Callable[[int], float]:
        return lambda n: _score(first[one][n], statistics) - _score(first[other][n], statistics)

    student, baseline = names["student"], names["baseline"]
    kinds: dict[str, Callable[[int], float]] = {
        "won": ahead(student, baseline),
        "lost": ahead(baseline, student),
        "behind": ahead("teacher", student),
        "ahead": ahead(student, "teacher"),
    }
    selected: list[tuple[str, int]] = []
    for kind, lead in kinds.items():
        # a row is shown once, under the first kind that it fits
        taken = {n for _, n in selected}
        candidates = [n for n in order if lead(n) > 0 and n not in taken]
        if kind == "behind":
            candidates.sort(key=lambda n: -(first[student][n].confidence or 0.0))
        selected += [(kind, n) for n in candidates[:each]]
    # from the other end of the order: mostly other rows than the kinds took
    selected += [("random", n) for n in order[::-1][:each]]
    return [
        _sample(kind, rows[n], {a: p[n] for a, p in first.items()}, statistics)
        for kind, n in selected
    ]


def _sample(
    kind: str, row: Row, answers: dict[str, Prediction], statistics: Statistics
) -> dict[str, Any]:
    return {
        "kind": kind,
        **row.model_dump(mode="json", include={"id", "prompt", "images"}, exclude_none=True),
        "group": _group_of(row),
        "reference": row.full_answer,
        "answers": {
            arm: {
                "answer": statistics.shown(row, prediction.answer),
                "score": _score(prediction, statistics),
                "confidence": prediction.confidence,
                **({"reasoning": prediction.reasoning} if prediction.reasoning else {}),
            }
            for arm, prediction in answers.items()
        },
    }


def _group_of(row: Row) -> str:
    """Return the name of a row's group, behind that of its task where there are several."""
    return ": ".join(name for name in (row.task, row.group) if name)


def _score(prediction: Prediction, statistics: Statistics) -> float:
    return prediction.scores[statistics.metric]


def _write_csv(path: Path, columns: list[str], table: Iterable[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as out:
        writer = csv.DictWriter(out, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)
