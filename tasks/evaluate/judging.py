"""Scores by a judge: added to the predictions when all models have answered.

Out: data/evaluate/judged.json      outcomes of each model, replies, tokens and cost

    {"evaluate.metrics.0": {"judge": "large-1", "replies": 1890, "cost_usd": 0.41,
        "models": {"kd": {"won": 112, "lost": 240, "tie": 96, "inconsistent": 40}}}}
"""

import json
import random
from collections.abc import Mapping, Sequence
from typing import Any

from cohobate.data.records import EVALUATE, Row, write_json
from cohobate.evaluation.deciding_metric import AnswerScorer, is_judged, judged_metrics
from cohobate.evaluation.judged_metrics import WinRate
from cohobate.progress import say
from cohobate.scoring.metrics import AnswerScore
from cohobate.scoring.verifiers import Task
from tasks.evaluate import predictions
from tasks.evaluate.arms import Arm
from tasks.evaluate.predictions import Prediction, Predictions
from tasks.evaluate.settings import EvaluateParams

JUDGED = EVALUATE / "judged.json"


def say_mean(name: str, rows: Sequence[Prediction], metric: str) -> None:
    """Print the mean score of one checkpoint."""
    say(f"{name}: {sum(row.scores[metric] for row in rows) / len(rows):.3f}")


def judge_predictions(
    params: EvaluateParams, task: Task, arms: Sequence[Arm], rows: Sequence[Row]
) -> None:
    """Add the scores by a judge to the predictions on disk; write the outcomes.

    Raises:
        UserError: the judge cannot be used, its cap is reached, or too many replies are no verdict.
    """
    if not params.judged_metrics:
        JUDGED.unlink(missing_ok=True)
        return
    whole = Predictions.read(arms).by_arm
    record: dict[str, Any] = {}
    for place, metric in params.judged_metrics.items():
        scorer = AnswerScorer(metric, task, place)
        for arm in arms:
            for seed in arm.checkpoints:
                positions = _sample(metric, params.seed, rows)
                own, others = whole[arm.name][seed], _opponents(metric, arms, seed, whole)
                opponents = [others[n].answer for n in positions] if others else None
                some = [rows[n] for n in positions]
                texts = [own[n].answer for n in positions]
                scores = scorer.scores(some, texts, opponents, arm.called(seed))
                added = dict(zip(positions, scores, strict=True))
                whole[arm.name][seed] = _with_scores(own, added, metric.type)
                if metric == params.metrics[0]:
                    say_mean(arm.called(seed), whole[arm.name][seed], metric.type)
        record |= scorer.record()
    for arm in arms:
        for seed, own in whole[arm.name].items():
            predictions.write(arm, seed, own)
    write_json(JUDGED, record)
    for place, figures in record.items():
        for name, outcomes in figures["models"].items():
            counted = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.items())
            say(f"{place}: {name}: {counted}")


def variant_scores(
    params: EvaluateParams,
    task: Task,
    rows: Sequence[Row],
    answers: Mapping[str, Sequence[Sequence[str]]],
) -> dict[str, list[list[float]]]:
    """Return the scores of the answers to other prompts, by the metric that decides.

    Args:
        params: name the metric.
        task: its verifiers.
        rows: the perturbed and out-of-distribution rows.
        answers: by role and seed.
    """
    metric = params.answer_metrics[0]
    scorer = AnswerScorer(metric, task)
    others = answers.get(_against(metric), [])
    scores = {
        role: [
            # a teacher has one checkpoint, a baseline one for each seed
            scorer.scores(rows, texts, others[min(n, len(others) - 1)] if others else None, role)
            for n, texts in enumerate(seeds)
        ]
        for role, seeds in answers.items()
    }
    if record := scorer.record():
        other_prompts = {f"{place}, other prompts": figures for place, figures in record.items()}
        write_json(JUDGED, json.loads(JUDGED.read_bytes()) | other_prompts)
    return scores


def _opponents(
    metric: AnswerScore,
    arms: Sequence[Arm],
    seed: int,
    whole: Mapping[str, Mapping[int, Sequence[Prediction]]],
) -> Sequence[Prediction]:
    """Return the predictions that a win rate compares with; empty: it is the reference answers."""
    role = _against(metric)
    if not role:
        return ()
    others = next(whole[arm.name] for arm in arms if arm.role == role)
    # of the same training seed where there is one
    return others.get(seed) or next(iter(others.values()))


def _with_scores(
    rows: Sequence[Prediction], added: Mapping[int, float], metric: str
) -> list[Prediction]:
    """Return predictions with a score at some positions."""
    return [
        row.model_copy(update={"scores": row.scores | {metric: round(added[n], 6)}})
        if n in added
        else row
        for n, row in enumerate(rows)
    ]


def _sample(metric: AnswerScore, seed: int, rows: Sequence[Row]) -> list[int]:
    """Return the positions of the rows that are judged."""
    positions = [n for n, row in enumerate(rows) if metric.scores_task(row.task)]
    most = getattr(metric, "rows", None)
    if most is None or most >= len(positions):
        return positions
    return sorted(random.Random(seed).sample(positions, most))


def _against(metric: AnswerScore) -> str:
    """Return the role that a win rate compares with; empty where it is none, or the references."""
    if not is_judged(metric):
        return ""
    roles = {m.against for m in judged_metrics(metric).values() if isinstance(m, WinRate)}
    return "".join(roles - {"reference"}) if len(roles) == 1 else ""
