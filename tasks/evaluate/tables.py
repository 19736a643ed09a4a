"""The tables behind the report's and DVC's plots: groups, losses, intervals, sample rows."""

import csv
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from cohobate.data.records import EVALUATE, Row
from tasks.evaluate.arms import Arm
from tasks.evaluate.predictions import Prediction
from tasks.evaluate.statistics import Findings

GROUPS = EVALUATE / "groups.csv"
INTERVALS = EVALUATE / "intervals.csv"
LOSSES = EVALUATE / "losses"
RELIABILITY = EVALUATE / "reliability.csv"
SAMPLES = EVALUATE / "samples.json"
CURVE = ["step", "loss", "stage"]


def write_groups(findings: Findings, rows: Sequence[Row]) -> None:
    """Write each group's rows and every arm's score on them, the student's largest gaps first."""
    members: dict[str, list[int]] = defaultdict(list)
    for place, row in enumerate(rows):
        members[row.group].append(place)
    scores = findings.predictions.scores(findings.metric)
    columns = {arm.name: arm.column for arm in findings.arms}
    table: list[dict[str, Any]] = [
        {"group": group, "rows": len(places)}
        | {columns[arm]: round(float(s_KN[:, places].mean()), 6) for arm, s_KN in scores.items()}
        for group, places in members.items()
    ]
    table.sort(key=lambda line: (line["student"] - line["teacher"], line["group"]))
    _write_csv(GROUPS, ["group", "rows", *columns.values()], table)


def write_intervals(findings: Findings) -> None:
    """Write each arm's score and its interval."""
    table = [{"arm": row["arm"], **row["score"]} for row in findings.rows()]
    _write_csv(INTERVALS, ["arm", "mean", "low", "high"], table)


def write_losses(arms: Iterable[Arm]) -> None:
    """Copy the loss of each phase and seed out of the checkpoints, a file each."""
    for arm in arms:
        for seed, checkpoint in arm.checkpoints.items():
            history = checkpoint / "history.csv"
            if not history.exists():
                continue
            with history.open(newline="") as lines:
                steps = [{c: step.get(c, 0) for c in CURVE} for step in csv.DictReader(lines)]
            _write_csv(LOSSES / f"{arm.name}-seed-{seed}.csv", CURVE, steps)


def write_reliability(findings: Findings) -> None:
    """Write, for teacher and student, mean confidence and score in each bin of confidence."""
    table = []
    for arm in findings.arms:
        known = findings.predictions.confidence_and_score(arm.name, findings.metric)
        if known is None or arm.role not in ("teacher", "student"):
            continue
        confidence, score = known
        for low in range(findings.bins):
            inside = (confidence * findings.bins).astype(int).clip(max=findings.bins - 1) == low
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


def samples(findings: Findings, rows: Sequence[Row], each: int, seed: int) -> list[dict[str, Any]]:
    """Return test rows worth reading, with every arm's answer (its first seed's).

    The kinds: what distillation won and lost against the baseline, where the student falls behind
    the teacher (its most confident mistakes first) and where it gets ahead, and rows at random.
    """
    first = {arm: next(iter(s.values())) for arm, s in findings.predictions.by_arm.items()}
    name = {arm.role: arm.name for arm in findings.arms if arm.role != "other"}
    order = list(range(len(rows)))
    random.Random(seed).shuffle(order)

    def ahead(one: str, other: str) -> Callable[[int], float]:
        return lambda n: _score(first[one][n], findings) - _score(first[other][n], findings)

    student, baseline = name["student"], name["baseline"]
    kinds: dict[str, Callable[[int], float]] = {
        "won": ahead(student, baseline),
        "lost": ahead(baseline, student),
        "behind": ahead("teacher", student),
        "ahead": ahead(student, "teacher"),
    }
    chosen: list[tuple[str, int]] = []
    for kind, lead in kinds.items():
        shown = {n for _, n in chosen}
        found = [n for n in order if lead(n) > 0 and n not in shown]
        if kind == "behind":
            found.sort(key=lambda n: -(first[student][n].confidence or 0.0))
        chosen += [(kind, n) for n in found[:each]]
    chosen += [("random", n) for n in order[::-1][:each]]
    return [
        _sample(kind, rows[n], {a: p[n] for a, p in first.items()}, findings) for kind, n in chosen
    ]


def _sample(
    kind: str, row: Row, answers: dict[str, Prediction], findings: Findings
) -> dict[str, Any]:
    return {
        "kind": kind,
        **row.model_dump(mode="json", include={"id", "prompt", "group"}),
        "reference": row.answer,
        "answers": {
            arm: {
                "answer": given.answer,
                "score": _score(given, findings),
                "confidence": given.confidence,
            }
            for arm, given in answers.items()
        },
    }


def _score(prediction: Prediction, findings: Findings) -> float:
    return prediction.scores[findings.metric]


def _write_csv(path: Path, columns: list[str], table: Iterable[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as out:
        writer = csv.DictWriter(out, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)
