"""What the predictions tell beside the score: a file each, and the figures worth comparing.

robustness.json (with perturbed.jsonl), forgetting.json, memorisation.json, router.csv and .json,
errors.jsonl and clusters.json, all below data/evaluate.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cohobate.data.records import (
    CURRICULUM,
    EVALUATE,
    Row,
    TrainingRow,
    read_rows,
    write_json,
    write_rows,
)
from tasks.evaluate.mistakes import CLUSTERS, ERRORS, Mistake
from tasks.evaluate.robustness import ROBUSTNESS, VARIED, Scores, longest, read_variants
from tasks.evaluate.router import ROUTED, ROUTER, write_curve
from tasks.evaluate.settings import EvaluateParams
from tasks.evaluate.statistics import Findings, Measured

FORGETTING = EVALUATE / "forgetting.json"
MEMORISATION = EVALUATE / "memorisation.json"
LESSONS = CURRICULUM / "train.jsonl"


def write_behaviour(
    params: EvaluateParams,
    findings: Findings,
    rows: Sequence[Row],
    measured: Mapping[str, Measured],
) -> dict[str, Any]:
    """Write the files; return what goes into reports/metrics.json."""
    lessons = list(read_rows(LESSONS, TrainingRow)) if LESSONS.exists() else []
    found = {
        "robustness": _robustness(params, findings, rows),
        "forgetting": _forgetting(findings, measured),
        "memorisation": _memorisation(params, findings, lessons),
        "router": _router(params, findings),
    }
    clusters = _mistakes(params, findings, rows, lessons)
    return found | {"mistakes": sum(cluster["rows"] for cluster in clusters)}


def _robustness(
    params: EvaluateParams, findings: Findings, rows: Sequence[Row]
) -> dict[str, dict[str, float]]:
    scores, name = findings.predictions.scores(findings.metric), findings.names
    places = {row.id: place for place, row in enumerate(rows)}
    table = Scores(
        test={role: scores[name[role]] for role in VARIED},
        variants=read_variants(),
        chosen=[places[row.id] for row in params.robustness.chosen(rows)],
        long=longest(rows, params.robustness.longest),
        draws=params.bootstrap,
        seed=params.seed,
    ).table()
    write_json(ROBUSTNESS, table)
    return {
        line["variant"]: {
            "teacher_drop": line["drop"]["teacher"]["mean"],
            "student_drop": line["drop"]["student"]["mean"],
        }
        for line in table
    }


def _forgetting(findings: Findings, measured: Mapping[str, Measured]) -> dict[str, float | None]:
    table = [
        {"arm": arm.name, "role": arm.role, "seed": seed, **figures}
        for arm in findings.arms
        for seed, figures in measured[arm.name].general.items()
    ]
    write_json(FORGETTING, table)
    by_role = {row["role"]: row["bits_per_byte"] for row in findings.rows()}
    return {
        "bits_per_byte_before": by_role["initial"],
        "bits_per_byte_after": by_role["student"],
        "bits_per_byte_teacher": by_role["teacher"],
    }


def _memorisation(
    params: EvaluateParams, findings: Findings, lessons: Sequence[TrainingRow]
) -> dict[str, Any]:
    copies = params.memorisation.index(lesson.answer or "" for lesson in lessons)
    by_arm = findings.predictions.by_arm
    found = {
        role: copies.figures([p.answer for rows in by_arm[arm].values() for p in rows])
        for role, arm in findings.names.items()
    }
    write_json(MEMORISATION, {"words": copies.words, "lessons": len(lessons), "by_role": found})
    return {f"{role}_copied_share": found[role]["copied_share"] for role in ("teacher", "student")}


def _router(params: EvaluateParams, findings: Findings) -> dict[str, Any] | None:
    name, metric, router = findings.names, findings.metric, params.router
    student = findings.predictions.by_arm[name["student"]]
    given = [[p.confidence for p in rows] for rows in student.values()]
    if any(confidence is None for rows in given for confidence in rows):
        for path in (ROUTER, ROUTED):
            path.unlink(missing_ok=True)
        return None
    sure_KN = np.array(given, dtype=np.float64)
    scores = findings.predictions.scores(metric)
    student_KN, teacher_N = scores[name["student"]], scores[name["teacher"]][0]
    write_curve(router.curve(sure_KN, student_KN, teacher_N))
    found = router.judge(sure_KN, student_KN, teacher_N, params.bootstrap)
    write_json(ROUTED, found)
    return {name: found[name] for name in ("floor", "share", "score", "kept")}


def _mistakes(
    params: EvaluateParams, findings: Findings, rows: Sequence[Row], lessons: Sequence[TrainingRow]
) -> list[dict[str, Any]]:
    name, metric = findings.names, findings.metric
    first = {arm: next(iter(found.values())) for arm, found in findings.predictions.by_arm.items()}
    answered = zip(rows, first[name["teacher"]], first[name["student"]], strict=True)
    mistakes = [
        Mistake(
            id=row.id,
            prompt=row.prompt,
            group=row.group,
            reference=row.answer or "",
            teacher=teacher.answer,
            student=student.answer,
            confidence=student.confidence,
        )
        for row, teacher, student in answered
        if student.scores[metric] < teacher.scores[metric]
    ]
    found, clusters = params.mistakes.sorted_out(mistakes, lessons)
    write_rows(ERRORS, found)
    write_json(CLUSTERS, clusters)
    return clusters
