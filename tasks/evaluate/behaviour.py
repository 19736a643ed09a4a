"""Behaviour beside the score: robustness, forgetting, memorisation, router, mistakes.

Files below data/evaluate: robustness.json (with perturbed.jsonl), forgetting.json,
memorisation.json, router.csv, router.json, errors.jsonl and clusters.json.
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
from cohobate.scoring.verifiers import Ranking
from tasks.evaluate.mistakes import CLUSTERS, ERRORS, Mistake
from tasks.evaluate.robustness import (
    PERTURBED_ROLES,
    ROBUSTNESS,
    RobustnessScores,
    longest,
    read_variants,
)
from tasks.evaluate.router import ROUTED, ROUTER, write_curve
from tasks.evaluate.settings import EvaluateParams
from tasks.evaluate.statistics import ModelResults, Statistics

FORGETTING = EVALUATE / "forgetting.json"
MEMORISATION = EVALUATE / "memorisation.json"
TRAINING_ROWS = CURRICULUM / "train.jsonl"


def write_behaviour(
    params: EvaluateParams,
    statistics: Statistics,
    rows: Sequence[Row],
    results: Mapping[str, ModelResults],
) -> dict[str, Any]:
    """Write the files; return the figures for reports/metrics.json."""
    training_rows = list(read_rows(TRAINING_ROWS, TrainingRow)) if TRAINING_ROWS.exists() else []
    figures = {
        "robustness": _robustness(params, statistics, rows),
        "forgetting": _forgetting(statistics, results),
        "memorisation": _memorisation(params, statistics, training_rows),
        "router": _router(params, statistics),
    }
    clusters = _mistakes(params, statistics, rows, training_rows)
    return figures | {"mistakes": sum(cluster["rows"] for cluster in clusters)}


def _robustness(
    params: EvaluateParams, statistics: Statistics, rows: Sequence[Row]
) -> dict[str, dict[str, float]]:
    if statistics.likelihood:  # answers have no score: nothing is perturbed
        write_json(ROBUSTNESS, [])
        return {}
    scores, names = statistics.predictions.scores(statistics.metric), statistics.names
    positions = {row.id: position for position, row in enumerate(rows)}
    table = RobustnessScores(
        test={role: scores[names[role]] for role in PERTURBED_ROLES},
        variants=read_variants(),
        # the same rows as when they were perturbed: `chosen` is a function of its seed
        chosen=[positions[row.id] for row in params.robustness.chosen(rows)],
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


def _forgetting(
    statistics: Statistics, results: Mapping[str, ModelResults]
) -> dict[str, float | None]:
    table = [
        {"arm": arm.name, "role": arm.role, "seed": seed, **figures}
        for arm in statistics.arms
        for seed, figures in results[arm.name].general_loss.items()
    ]
    write_json(FORGETTING, table)
    by_role = {row["role"]: row["bits_per_byte"] for row in statistics.table()}
    return {
        "bits_per_byte_before": by_role["initial"],
        "bits_per_byte_after": by_role["student"],
        "bits_per_byte_teacher": by_role["teacher"],
    }


def _memorisation(
    params: EvaluateParams, statistics: Statistics, training_rows: Sequence[TrainingRow]
) -> dict[str, Any]:
    if isinstance(statistics.task.verifier, Ranking):  # no document is the model's own text
        MEMORISATION.unlink(missing_ok=True)
        return {}
    # an answer could copy the other answers alone: there is no answer to raw text
    answers = (row.answer or "" for row in training_rows if not row.is_raw_text)
    training_answers = params.memorisation.index(answers)
    by_arm = statistics.predictions.by_arm
    by_role = {
        role: training_answers.figures([p.answer for rows in by_arm[arm].values() for p in rows])
        for role, arm in statistics.names.items()
    }
    write_json(
        MEMORISATION,
        {"words": training_answers.words, "lessons": len(training_rows), "by_role": by_role},
    )
    return {
        f"{role}_copied_share": by_role[role]["copied_share"] for role in ("teacher", "student")
    }


def _router(params: EvaluateParams, statistics: Statistics) -> dict[str, Any] | None:
    names, metric, router = statistics.names, statistics.metric, params.router
    student = statistics.predictions.by_arm[names["student"]]
    confidences = [[p.confidence for p in rows] for rows in student.values()]
    if any(confidence is None for rows in confidences for confidence in rows):
        # no router without confidences; files of an earlier run must not stay in the report
        for path in (ROUTER, ROUTED):
            path.unlink(missing_ok=True)
        return None
    confidence_ZR = np.array(confidences, dtype=np.float64)
    scores = statistics.predictions.scores(metric)
    # the teacher has one checkpoint: its first row of scores is all
    student_ZR, teacher_R = scores[names["student"]], scores[names["teacher"]][0]
    write_curve(router.curve(confidence_ZR, student_ZR, teacher_R))
    figures = router.judge(confidence_ZR, student_ZR, teacher_R, params.bootstrap)
    write_json(ROUTED, figures)
    return {name: figures[name] for name in ("floor", "share", "score", "kept")}


def _mistakes(
    params: EvaluateParams,
    statistics: Statistics,
    rows: Sequence[Row],
    training_rows: Sequence[TrainingRow],
) -> list[dict[str, Any]]:
    names, metric = statistics.names, statistics.metric
    first = {
        # the first seed of each arm: a mistake is one student's, with its own answer
        arm: next(iter(by_seed.values()))
        for arm, by_seed in statistics.predictions.by_arm.items()
    }
    answers = zip(rows, first[names["teacher"]], first[names["student"]], strict=True)
    mistakes = [
        Mistake(
            id=row.id,
            prompt=row.prompt,
            teacher_prompt=row.teacher_prompt if row.images else None,
            images=row.images,
            group=row.group,
            reference=row.full_answer,
            teacher=statistics.shown(row, teacher.answer),
            student=statistics.shown(row, student.answer),
            confidence=student.confidence,
        )
        for row, teacher, student in answers
        if student.scores[metric] < teacher.scores[metric] and not statistics.likelihood
    ]
    clustered, clusters = params.mistakes.clustered(mistakes, training_rows)
    write_rows(ERRORS, clustered)
    write_json(CLUSTERS, clusters)
    return clusters
