"""Predictions: the models' answers to the test rows, with their scores."""

from collections.abc import Iterable, Iterator, Sequence
from math import exp
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pydantic import BaseModel, ConfigDict

from cohobate.data.records import EVALUATE, TEST, Row, read_rows, write_rows
from cohobate.errors import UserError
from cohobate.evaluation.bootstrap import Floats, shares_of_loss
from cohobate.evaluation.text_losses import TextLosses
from cohobate.generation.requests import Answer
from cohobate.progress import say
from cohobate.scoring.metrics import AnswerScore, LikelihoodScore, refuse_raw_text
from cohobate.scoring.verifiers import Task
from tasks.evaluate.arms import Arm

if TYPE_CHECKING:
    from torch import Tensor

PREDICTIONS = EVALUATE / "predictions"


class Prediction(BaseModel):
    """One model's answer to one test row.

    {"id": "9f8a…", "answer": " animal", "finish": "stop", "confidence": 0.93,
     "scores": {"verifier": 1.0}}
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    id: str
    """Id of the test row."""
    answer: str
    """Without its reasoning; calls of tools are text. Of an embedder: the ranking, a document a
    line."""
    reasoning: str | None = None
    finish: str
    """`stop`, or `length` where the answer was cut off."""
    confidence: float | None = None
    """exp of the mean log-probability of the answer's tokens."""
    scores: dict[str, float]
    """By metric, 0 to 1, without the metrics that are for other tasks; by one of a likelihood the
    row's own figure."""
    nats: float | None = None
    """Loss of the reference answer, where a metric of its likelihood decides."""
    size: float | None = None
    """Tokens or bytes of the reference answer, as that metric divides by."""


def test_rows(answers: str = "", likelihood: bool = False) -> list[Row]:
    """Return the test rows that have a reference answer.

    Args:
        answers: name of the first metric that scores answers; empty without one.
        likelihood: whether a metric of the likelihood decides.

    Raises:
        UserError: there are none, or raw text would be scored as an answer.
    """
    rows = [row for row in read_rows(TEST, Row) if row.answer is not None]
    raw = sum(row.is_raw_text for row in rows)
    if raw and answers and (likelihood or raw == len(rows)):
        refuse_raw_text(rows, answers, "test")
    if raw and not likelihood:
        say(f"{raw} test rows are raw text and are not scored: {len(rows) - raw} are left")
        rows = [row for row in rows if not row.is_raw_text]
    if not rows:
        raise UserError(
            "no test row has an answer: nothing can be scored",
            where=str(TEST),
            fix="collect.template.answer in params.yaml must name the column of the answer",
        )
    return rows


def scored(
    rows: Sequence[Row],
    answers: Iterable[Answer],
    metrics: Sequence[AnswerScore],
    task: Task,
) -> Iterator[Prediction]:
    """Yield the prediction of each row: its answer, scored."""
    for row, answer in zip(rows, answers, strict=True):
        scores = {
            metric.type: metric.score_row(row, answer.full_text, task)
            for metric in metrics
            if metric.scores_task(row.task)
        }
        confidence = None if answer.logprob is None else round(exp(answer.logprob), 4)
        yield Prediction(
            id=row.id,
            answer=answer.full_text,
            reasoning=answer.reasoning,
            finish=answer.finish,
            confidence=confidence,
            scores=scores,
        )


class Predictions:
    """The predictions of all arms by seed, in the order of the test rows."""

    def __init__(self, by_arm: dict[str, dict[int, list[Prediction]]]) -> None:
        self.by_arm = by_arm

    @classmethod
    def read(cls, arms: Iterable[Arm], folder: Path = PREDICTIONS) -> "Predictions":
        """Read the predictions of all checkpoints of `arms`."""
        return cls(
            {
                arm.name: {
                    seed: list(read_rows(folder / arm.predictions(seed), Prediction))
                    for seed in arm.checkpoints
                }
                for arm in arms
            }
        )

    def scores(self, metric: str) -> dict[str, Floats]:
        """Return each arm's scores by one metric, (Z, R): Z seeds, R test rows."""
        return {
            arm: np.array([[p.scores[metric] for p in rows] for rows in by_seed.values()])
            for arm, by_seed in self.by_arm.items()
        }

    def loss_shares(self) -> dict[str, Floats]:
        """Return each arm's shares of the mean loss (`shares_of_loss`), (Z, R)."""
        return {
            arm: np.array([shares_of_loss(*_losses(rows)) for rows in by_seed.values()])
            for arm, by_seed in self.by_arm.items()
        }

    def mean_loss(self, arm: str, positions: Sequence[int]) -> float:
        """Return the mean loss of an arm on some test rows, for each token or byte."""
        seeds = self.by_arm[arm].values()
        losses = [_losses([rows[position] for position in positions]) for rows in seeds]
        return float(np.mean([nats_R.sum() / sizes_R.sum() for nats_R, sizes_R in losses]))

    def mean_score(self, arm: str, metric: str) -> float:
        """Return an arm's mean score by one metric, over the rows that have it."""
        rows = (p for by_seed in self.by_arm[arm].values() for p in by_seed)
        scores = [p.scores[metric] for p in rows if metric in p.scores]
        return float(np.array(scores).mean())

    def same_answer(self, arm: str, other: str, rows: Sequence[Row], task: Task) -> float:
        """Return how often `arm` gives the answer of `other`, an arm with one seed."""
        [reference] = self.by_arm[other].values()
        verifiers = [task.verifier_of(row.task) for row in rows]
        forms = [v.canonical(p.answer) for v, p in zip(verifiers, reference, strict=True)]
        same = [
            verifier.canonical(own.answer) == form
            for answers in self.by_arm[arm].values()
            for verifier, own, form in zip(verifiers, answers, forms, strict=True)
        ]
        return sum(same) / len(same)

    def calibration_error(self, arm: str, metric: str, bins: int) -> float | None:
        """Return the expected calibration error of an arm (Naeini et al. 2015; equal-width bins).

        The gap between confidence and score in each bin, weighted by the bin's share of rows; None
        where a prediction has no confidence.
        """
        table = self.confidence_and_score(arm, metric)
        if table is None:
            return None
        confidence, score = table
        # confidence 1 belongs to the last bin
        bin_of_row = np.minimum((confidence * bins).astype(int), bins - 1)
        # |mean confidence − mean score| of a bin times its rows is the |sum| of the differences
        gaps = [abs((confidence - score)[bin_of_row == b].sum()) for b in range(bins)]
        return float(sum(gaps) / len(confidence))

    def confidence_and_score(self, arm: str, metric: str) -> tuple[Floats, Floats] | None:
        """Return confidences and scores of all predictions of an arm; None where one is missing."""
        rows = [p for by_seed in self.by_arm[arm].values() for p in by_seed]
        if any(p.confidence is None for p in rows):
            return None
        confidence = np.array([p.confidence for p in rows], dtype=np.float64)
        return confidence, np.array([p.scores[metric] for p in rows])


def with_losses(
    predictions: Sequence[Prediction], losses: TextLosses, metric: LikelihoodScore
) -> list[Prediction]:
    """Return predictions with the losses of the reference answers."""
    pairs = zip(predictions, losses.nats_R.tolist(), losses.sizes_R.tolist(), strict=True)
    return [
        prediction.model_copy(
            update={
                "scores": prediction.scores | {metric.type: round(metric.figure(nats / size), 6)},
                "nats": round(nats, 6),
                "size": size,
            }
        )
        for prediction, nats, size in pairs
    ]


def with_similarity(
    predictions: Sequence[Prediction], teacher_RC: "Tensor", own_RC: "Tensor"
) -> list[Prediction]:
    """Return an embedder's predictions with the score `similarity`.

    It is Spearman's correlation of the teacher's and the model's cosines of a query with all
    documents, −1 to 1. R rows are compared; the rest have none.
    """
    from cohobate.generation.retrieval import rank_correlations

    values = rank_correlations(teacher_RC, own_RC)
    compared = [
        prediction.model_copy(update={"scores": prediction.scores | {"similarity": value}})
        for prediction, value in zip(predictions, values, strict=False)
    ]
    return [*compared, *predictions[len(values) :]]


def _losses(rows: Sequence[Prediction]) -> tuple[Floats, Floats]:
    """Return losses and sizes, (R,) each."""
    pairs = np.array([(row.nats, row.size) for row in rows], dtype=np.float64)
    return pairs[:, 0], pairs[:, 1]


def write(arm: Arm, seed: int, rows: Iterable[Prediction]) -> None:
    """Write the predictions of one checkpoint."""
    write_rows(PREDICTIONS / arm.predictions(seed), rows)
