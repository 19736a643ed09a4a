"""Filters on a model's score of the answer: a judge, or a reward model."""

from array import array
from collections.abc import Iterator
from itertools import islice
from math import isnan, nan
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from cohobate.data.records import Response
from cohobate.models.number_formats import Precision
from cohobate.scoring.judge import Judge
from tasks.filter.base_filter import KEEP, Context, Drop, Filter, Rows, Verdict

_WINDOW = 512
"""Rows that are judged at once."""


class JudgeFilter(Filter):
    """Drop answers to which a judge gives a low score.

    Where the right answer is known, the task's verifier decides (10 or 1) and no judge runs.
    """

    type: Literal["judge"]
    needs_prompt: ClassVar[bool] = True
    judge: Judge = Judge()
    min_score: int = Field(6, ge=1, le=10)
    """Lowest score, of 1 to 10."""
    no_verdict: Literal["keep", "refuse"] = "refuse"
    """What to do where the judge's reply could not be parsed."""

    def verdicts(self, rows: Rows, context: Context) -> Iterator[Verdict]:
        """Rate the rows, a window at a time, with the model that `filter.scorer` names."""
        for score in self._scores(rows, context):
            if isnan(score):
                unparsed = Drop("no verdict from the judge")
                yield KEEP if self.no_verdict == "keep" else unparsed
            else:
                yield KEEP if score >= self.min_score else Drop("low judge score", score)

    def _scores(self, rows: Rows, context: Context) -> Iterator[float]:
        """Yield each row's score from 1 to 10; nan where the judge gave none."""
        remaining, generate = iter(rows), self.judge.open(context.scorer())
        while window := list(islice(remaining, _WINDOW)):
            scores = [self._verified(row, context) for row in window]
            unverified = [n for n, score in enumerate(scores) if score is None]
            answers = [(window[n].prompt, window[n].full_answer) for n in unverified]
            for n, rating in zip(unverified, self.judge.rate(answers, generate), strict=True):
                scores[n] = rating
            yield from (nan if score is None else score for score in scores)

    def _verified(self, row: Response, context: Context) -> int | None:
        """Return the verifier's score; None where no right answer is known."""
        reference = context.references.get(row.id)
        if reference is None:
            return None
        return 10 if context.verifier(row).correct(row.full_answer, reference) else 1


class RewardFilter(Filter):
    """Drop answers with a low reward, by a reward model (a sequence classifier, one output)."""

    type: Literal["reward"]
    needs_prompt: ClassVar[bool] = True
    min_reward: float | None = None
    """Lowest reward."""
    drop_lowest: float | None = Field(None, gt=0, lt=1)
    """Or: share of the rows that reach this filter to drop, those with the lowest reward."""
    precision: Precision = "auto"

    @model_validator(mode="after")
    def _one_threshold(self) -> "RewardFilter":
        if (self.min_reward is None) == (self.drop_lowest is None):
            raise ValueError("give either min_reward or drop_lowest")
        return self

    def verdicts(self, rows: Rows, context: Context) -> Iterator[Verdict]:
        """Score all rows with the model that `filter.scorer` names, then compare."""
        from cohobate.scoring.reward_models import RewardModel

        model = RewardModel.of(context.scorer(), self.precision)
        rewards = array("d", model.scores((row.prompt, row.full_answer) for row in rows))
        lowest = self.min_reward
        if lowest is None:
            lowest = sorted(rewards)[int((self.drop_lowest or 0) * len(rewards))] if rewards else 0
        for reward in rewards:
            yield KEEP if reward >= lowest else Drop("low reward", reward)
