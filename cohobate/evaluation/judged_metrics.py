"""Metrics by a judge, for answers without one right text: win rate and rubric."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import Field

from cohobate.data.records import Row
from cohobate.errors import UserError
from cohobate.evaluation.judge_model import JudgeModel, JudgeRequests
from cohobate.scoring.judge import Comparison, Outcome
from cohobate.scoring.metrics import AnswerScore
from cohobate.scoring.verifiers import Verifier

Against = Literal["teacher", "baseline", "reference"]
_POINTS: Mapping[Outcome, float] = {"first": 1.0, "second": 0.0}
"""Of a row; every other outcome counts half, for neither answer was found better."""


class JudgedMetric(AnswerScore):
    """Base class of the metrics by a judge."""

    judge: JudgeModel
    """What judges."""
    rows: int | None = Field(None, ge=1)
    """So many test rows are judged, chosen by `evaluate.seed`; all where it is not given. The
    metric that decides judges all."""
    without_verdict: float = Field(0.1, ge=0, le=1)
    """Most judged rows, as a share, to which the judge gives no reply of the form that is asked
    for. More end the stage."""

    def score(self, answer: str, reference: str, verifier: Verifier) -> float:
        """Refuse: answers are judged together (`score_all`)."""
        raise TypeError(f"{self.type} scores answers together, with a judge")

    def score_all(
        self,
        rows: Sequence[Row],
        answers: Sequence[str],
        opponents: Sequence[str],
        session: "JudgeSession",
    ) -> list[float]:
        """Return the score of each answer, from 0 to 1.

        Args:
            rows: the rows that are answered.
            answers: what is scored.
            opponents: answers to compare with, where the metric compares.
            session: sends the requests, and counts the outcomes.
        """
        raise NotImplementedError


class WinRate(JudgedMetric):
    """Share of the rows whose answer the judge finds better than another model's; a tie is half.

    Every two answers are shown in both orders (Zheng et al. 2023, section 3.4): a verdict counts
    where both agree, else the row is a tie. The same text twice is a tie without a request. 0.5
    says that the two are as good.
    """

    type: Literal["win_rate"]
    against: Against = "teacher"
    """Whose answers these are compared with in `evaluate`: those of a model of the same name in the
    report, or the reference answers. `challenge` compares the new student with the champion,
    `export` a form with the checkpoint that it was made from, `adapt` a teacher with the reference
    answers."""

    def score_all(
        self,
        rows: Sequence[Row],
        answers: Sequence[str],
        opponents: Sequence[str],
        session: "JudgeSession",
    ) -> list[float]:
        """Return 1 for each row that is won, 0 for one that is lost, else a half."""
        pairs = [*zip(rows, answers, opponents, strict=True)]
        differ = [n for n, (_, a, b) in enumerate(pairs) if a.strip() != b.strip()]
        outcomes: list[Outcome] = ["tie"] * len(pairs)
        compared = [Comparison(pairs[n][0].full_prompt, *pairs[n][1:]) for n in differ]
        judged = self.judge.judge.compare(compared, session.requests.replies) if compared else []
        for n, outcome in zip(differ, judged, strict=True):
            outcomes[n] = outcome
        session.count(_named(outcomes), identical=len(pairs) - len(differ))
        session.refuse(outcomes.count("no verdict"), len(differ), self.without_verdict)
        return [_POINTS.get(outcome, 0.5) for outcome in outcomes]


class Rubric(JudgedMetric):
    """Mean rating of the answers by a judge, from 0 (worst) to 1 (best of the scale).

    A row without a valid rating has the worst one.
    """

    type: Literal["rubric"]
    scale: int = Field(10, ge=2, le=100)
    """The best rating; 1 is the worst."""
    reference: bool = False
    """Whether the judge reads the reference answer too."""

    def score_all(
        self,
        rows: Sequence[Row],
        answers: Sequence[str],
        opponents: Sequence[str],
        session: "JudgeSession",
    ) -> list[float]:
        """Return the ratings, from 0 to 1."""
        pairs = [(row.full_prompt, answer) for row, answer in zip(rows, answers, strict=True)]
        references = [row.full_answer for row in rows] if self.reference else []
        ratings = self.judge.judge.rate(pairs, session.requests.replies, self.scale, references)
        session.count(Counter("rated" if rating else "no verdict" for rating in ratings))
        session.refuse(ratings.count(None), len(ratings), self.without_verdict)
        return [((rating or 1) - 1) / (self.scale - 1) for rating in ratings]


@dataclass
class JudgeSession:
    """The requests of one metric in one stage, and the outcomes by model."""

    requests: JudgeRequests
    outcomes: dict[str, Counter[str]] = field(default_factory=dict)
    """By the name of what was scored."""
    scored: str = ""
    """What is scored now: an arm, with its seed where it has several."""

    @classmethod
    def of(cls, metric: JudgedMetric, place: str) -> "JudgeSession":
        """Return the session of a metric; `place`: such as `evaluate.metrics.0`."""
        return cls(JudgeRequests(metric.judge, f"{place}.judge"))

    def count(self, outcomes: Mapping[str, int], identical: int = 0) -> None:
        """Add outcomes; `identical`: ties of the same text, without a request."""
        own = self.outcomes.setdefault(self.scored, Counter())
        own.update(outcomes)
        own.update({"identical": identical} if identical else {})

    def refuse(self, without: int, judged: int, allowed: float) -> None:
        """Refuse too many replies that are no verdict.

        Raises:
            UserError: they are a larger share than is allowed.
        """
        if without > allowed * judged:
            metric = self.requests.place.removesuffix(".judge")
            raise UserError(
                f"the judge gave no verdict on {without} of {judged} rows: its replies are not the "
                "JSON that is asked for",
                where=f"params.yaml, {metric}",
                fix=f"another judge; more tokens for one that reasons first: cohobate run --set "
                f"{metric}.judge.max_tokens=512; or {metric}.without_verdict=1",
            )

    def figures(self) -> dict[str, Any]:
        """Return outcomes by model, and the figures of the replies."""
        models = {name: dict(sorted(counts.items())) for name, counts in self.outcomes.items()}
        return {"judge": self.requests.model.model, "models": models, **self.requests.figures()}


def _named(outcomes: Sequence[Outcome]) -> Counter[str]:
    names = {"first": "won", "second": "lost"}
    return Counter(names.get(outcome, outcome) for outcome in outcomes)
