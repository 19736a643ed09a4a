"""The metric that decides: the first of `evaluate.metrics`, in every stage that compares answers.

`evaluate`, `challenge`, `adapt` and `export` score answers by an `AnswerScorer`, whatever the
metric is: one of a text, one by a judge, or one for each task.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from cohobate.data.records import Row
from cohobate.evaluation.judged_metrics import JudgedMetric, JudgeSession, Rubric, WinRate
from cohobate.params import ValueOf
from cohobate.scoring.metrics import (
    AnswerMetric,
    AnswerScore,
    BitsPerByte,
    Perplexity,
    VerifierAccuracy,
)
from cohobate.scoring.verifiers import Task, Verifier

MetricOfTask = Annotated[AnswerMetric | WinRate | Rubric, Field(discriminator="type")]
FIRST = "evaluate.metrics.0"


class ByTask(AnswerScore):
    """A metric for each task of a round with several sources; a row is scored by its task's."""

    type: Literal["by_task"]
    metrics: dict[str, MetricOfTask] = Field(min_length=1)
    """By the name of a source, of `collect.sources`."""
    otherwise: MetricOfTask = VerifierAccuracy()
    """Of the tasks that are not named."""

    @model_validator(mode="after")
    def _has_one_opponent(self) -> "ByTask":
        if len({m.against for m in judged_metrics(self).values() if isinstance(m, WinRate)}) > 1:
            raise ValueError("the win rates of a round compare with the same model (`against`)")
        if any(m.rows is not None for m in judged_metrics(self).values()):
            raise ValueError("all rows of a task are judged: leave out `rows` of its metric")
        return self

    def metric_of(self, task: str | None) -> AnswerScore:
        """Return the metric of a task's rows."""
        return self.metrics.get(task, self.otherwise) if task else self.otherwise

    def score_row(self, row: Row, answer: str, task: Task) -> float:
        """Score one answer by the metric of its task."""
        return self.metric_of(row.task).score_row(row, answer, task)

    def score(self, answer: str, reference: str, verifier: Verifier) -> float:
        """Refuse: the task of an answer decides."""
        raise TypeError("by_task needs the row (`score_row`)")


def is_judged(metric: AnswerScore) -> bool:
    """Return whether a judge is needed for some rows."""
    if isinstance(metric, ByTask):
        return any(map(is_judged, [*metric.metrics.values(), metric.otherwise]))
    return isinstance(metric, JudgedMetric)


def judged_metrics(metric: AnswerScore, place: str = FIRST) -> dict[str, JudgedMetric]:
    """Return the metrics by a judge that a metric is or has, by their places in params.yaml."""
    if isinstance(metric, JudgedMetric):
        return {place: metric}
    if not isinstance(metric, ByTask):
        return {}
    parts = {f"{place}.metrics.{task}": own for task, own in metric.metrics.items()}
    parts[f"{place}.otherwise"] = metric.otherwise
    return {at: own for at, own in parts.items() if isinstance(own, JudgedMetric)}


@dataclass
class AnswerScorer:
    """Scores answers by one metric; a judge's requests are sent for many rows at once."""

    metric: AnswerScore
    task: Task
    place: str = FIRST
    """Where the metric stands in params.yaml."""
    sessions: dict[str, JudgeSession] = field(default_factory=dict)
    """Of judges, by the places of their metrics."""

    def scores(
        self,
        rows: Sequence[Row],
        answers: Sequence[str],
        opponents: Sequence[str] | None = None,
        scored: str = "",
    ) -> list[float]:
        """Return the score of each answer, from 0 to 1.

        Args:
            rows: the rows that are answered.
            answers: what is scored.
            opponents: other answers, which a win rate compares with; None: the references.
            scored: names what is scored, in the record of a judge.
        """
        scores = [0.0] * len(rows)
        by_metric: defaultdict[str, list[int]] = defaultdict(list)
        for position, row in enumerate(rows):
            by_metric[self._place_of(row)].append(position)
        judged = judged_metrics(self.metric, self.place)
        for place, positions in by_metric.items():
            own = [rows[n] for n in positions]
            texts = [answers[n] for n in positions]
            if metric := judged.get(place):
                others = [(opponents[n] if opponents else rows[n].full_answer) for n in positions]
                session = self.sessions.setdefault(place, JudgeSession.of(metric, place))
                session.scored = scored
                figures = metric.score_all(own, texts, others, session)
            else:
                pairs = zip(own, texts, strict=True)
                figures = [self.metric.score_row(row, text, self.task) for row, text in pairs]
            for position, score in zip(positions, figures, strict=True):
                scores[position] = score
        return scores

    def record(self) -> dict[str, Any]:
        """Return what the judges' metrics have counted, by their places; empty without any."""
        return {place: session.figures() for place, session in self.sessions.items()}

    def _place_of(self, row: Row) -> str:
        if not isinstance(self.metric, ByTask):
            return self.place
        named = row.task in self.metric.metrics
        return f"{self.place}.metrics.{row.task}" if named else f"{self.place}.otherwise"


DecidingMetric = Annotated[
    AnswerMetric | WinRate | Rubric | ByTask | Perplexity | BitsPerByte,
    Field(discriminator="type"),
    ValueOf(FIRST),
]
"""The first metric of `evaluate.metrics`, as a parameter of a stage's function."""
