"""Check on dev rows that an exported form agrees with the original."""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, isfinite
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from cohobate.data.messages import tools_of
from cohobate.data.reasoning import split
from cohobate.data.records import DEV, Row, read_rows
from cohobate.data.tool_calls import calls_in
from cohobate.errors import UserError
from cohobate.evaluation.deciding_metric import AnswerScorer
from cohobate.evaluation.model_under_test import kind_of
from cohobate.scoring.metrics import AnswerScore, LikelihoodScore
from cohobate.scoring.verifiers import Task
from tasks.export.form import Form, Questions


def dev_sample(rows: int) -> list[Row]:
    """Return at most `rows` dev rows with an answer, always the same ones.

    Raises:
        UserError: there are none.
    """
    dev_rows = read_rows(DEV, Row) if DEV.exists() else ()
    answered_rows = [row for row in dev_rows if row.answer is not None]
    if not answered_rows:
        raise UserError(
            "no dev row has an answer: no exported form can be checked",
            where=str(DEV),
            fix="collect.split.dev in params.yaml",
        )
    if rows >= len(answered_rows):
        return answered_rows
    places = random.Random(0).sample(range(len(answered_rows)), rows)
    return [answered_rows[place] for place in sorted(places)]


@dataclass(frozen=True)
class Rescored:
    """Figures of a form and of the original on the sample."""

    score: float
    original: float
    agreement: float
    """Share of the rows on which the greedy answers are the same to the letter."""
    rows: int
    bytes: int
    """Of all files of the form."""
    loss: float | None
    """Mean loss on the right answers that it can say, nats a token; None where its runtime gives
    none."""
    original_loss: float
    by_likelihood: bool = False
    """Whether the score is one of the likelihood, whose drift the loss shows."""
    unit: str = "token"
    """What the losses are means over; of a classifier `label`."""

    def figures(self) -> dict[str, Any]:
        """Return the figures as they go into files."""
        return {
            "score": round(self.score, 6),
            "original_score": round(self.original, 6),
            "agreement": round(self.agreement, 6),
            "dev_rows": self.rows,
            "bytes": self.bytes,
            "perplexity": None if self.loss is None else round(exp(self.loss), 6),
            "original_perplexity": round(exp(self.original_loss), 6),
            "log_prob_drift": None if self.loss is None else round(-self.rise, 6),
        }

    @property
    def rise(self) -> float:
        """Increase of the loss; 0 where it is not known."""
        return 0.0 if self.loss is None else self.loss - self.original_loss

    def refuse_drift(self, form: Form) -> None:
        """Refuse a form that deviates beyond its tolerance.

        Raises:
            UserError: it lost more of its score, agrees on fewer rows, or finds the right answers
                less likely, than its tolerance says.
        """
        allowed, lost = form.tolerance, self.original - self.score
        if self.by_likelihood:
            lost = 0.0
        near = lost <= allowed.score + 1e-9 and self.agreement >= allowed.agreement - 1e-9
        if near and self.rise <= allowed.loss + 1e-9:
            return
        raise UserError(
            f"the form {form.name} drifts from the original: score {self.score:.4f} against "
            f"{self.original:.4f} (may fall by {allowed.score:g}), the same answer on "
            f"{self.agreement:.2%} of {self.rows} dev rows (at least {allowed.agreement:.2%}), "
            f"loss on the right answers higher by {self.rise:.4f} nats a {self.unit} (at most "
            f"{allowed.loss:g}); nothing is published",
            where="params.yaml, export.forms",
            fix="take another form, or widen its tolerance there",
        )


class Original(NamedTuple):
    """Answers and losses of the exported checkpoint on the sample."""

    answers: Sequence[str]
    losses: Sequence[float]
    """Mean loss of each right answer, in nats a token."""


@dataclass(frozen=True)
class Check:
    """The check: dev rows that the original and every form answer."""

    rows: Sequence[Row]
    questions: Questions
    tokens: Sequence[int]
    """Tokens of each right answer."""
    metric: AnswerScore | LikelihoodScore
    task: Task

    def score(
        self,
        answers: Sequence[str],
        losses: Sequence[float],
        opponents: Sequence[str] | None = None,
    ) -> float:
        """Return the score by the metric that decides.

        Args:
            answers: to the rows.
            losses: mean losses of the right answers, in nats a token.
            opponents: answers that a win rate compares with; None: the reference answers.
        """
        if isinstance(self.metric, LikelihoodScore):
            return self._likelihood(self.metric, losses)
        return fmean(AnswerScorer(self.metric, self.task).scores(self.rows, answers, opponents))

    def quality(self, answers: Sequence[str], losses: Sequence[float]) -> float:
        """Return the score, or its negative where lower is better."""
        sign = -1 if isinstance(self.metric, LikelihoodScore) else 1
        return sign * self.score(answers, losses)

    def _likelihood(self, metric: LikelihoodScore, losses: Sequence[float]) -> float:
        triples = zip(self.rows, losses, self.tokens, strict=True)
        # infinite where an answer has a token that a form cannot generate
        readable = [triple for triple in triples if isfinite(triple[1])]
        nats = sum(loss * tokens for _, loss, tokens in readable)
        size = sum(metric.size(row.answer or "", tokens) for row, _, tokens in readable)
        return metric.figure(nats / size) if size else float("inf")

    def rescored(self, form: Form, folder: Path, original: "Original") -> Rescored:
        """Open what `form` wrote to `folder` and compare its answers with the original's.

        Raises:
            UserError: it drifts beyond the form's tolerance.
        """
        answers = [split(text)[0] for text in form.answers(folder, self.questions)]
        both = zip(self.rows, answers, original.answers, strict=True)
        same = [_comparable(row, one) == _comparable(row, other) for row, one, other in both]
        losses = form.losses(folder, self.rows, self.questions.threads)
        pairs = [*zip(losses or original.losses, original.losses, strict=True)]
        # infinite where an answer has a token that the form cannot generate
        finite = [pair for pair in pairs if isfinite(pair[0])]
        figures = Rescored(
            self.score(answers, losses or original.losses, original.answers),
            self.score(original.answers, original.losses, original.answers),
            sum(same) / len(same),
            len(same),
            sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
            fmean(loss for loss, _ in finite) if losses and finite else None,
            fmean(loss for _, loss in finite or pairs),
            isinstance(self.metric, LikelihoodScore),
            kind_of(folder).unit,
        )
        figures.refuse_drift(form)
        return figures


def _comparable(row: Row, answer: str) -> Any:
    """Return an answer as it is compared: calls of tools by what they say, not how they say it."""
    calls = calls_in(answer) if tools_of(row.prompt) else None
    return [(c.name, json.loads(c.arguments)) for c in calls] if calls else answer.strip()
