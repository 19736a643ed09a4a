"""Filters that ask a model how good an answer is: a judge, or a reward model."""

from array import array
from collections.abc import Iterator
from itertools import count, islice
from math import isnan, nan
from typing import Literal

from pydantic import Field, model_validator

from cohobate.data.records import Response
from cohobate.models.number_formats import Precision
from cohobate.scoring.judge import Judge
from tasks.filter.verdicts import KEPT, Context, Filter, Keep, Refused, Rows, Verdict

_WINDOW = 512


class Judged(Filter):
    """Refuse answers to which a judge gives a low score.

    Where the task's verifier knows the right answer, it decides and the judge is not asked.
    """

    type: Literal["judge"]
    judge: Judge = Judge()
    min_score: int = Field(6, ge=1, le=10)
    """Lowest score, of 1 to 10."""
    no_verdict: Literal["keep", "refuse"] = "refuse"
    """What to do where the judge's reply was no verdict."""

    def over(self, rows: Rows, context: Context) -> Keep:
        """Ask the model that `filter.scorer` names of all rows; return what compares."""
        scores = array("d", self._scores(rows, context))
        places = count()

        def keep(row: Response) -> Verdict:
            score = scores[next(places)]
            if isnan(score):
                return KEPT if self.no_verdict == "keep" else Refused("the judge gave no verdict")
            return KEPT if score >= self.min_score else Refused("the judge's score is low", score)

        return keep

    def _scores(self, rows: Rows, context: Context) -> Iterator[float]:
        rest, ask = iter(rows), self.judge.open(context.scorer())
        while window := list(islice(rest, _WINDOW)):
            known = {n: self._verified(row, context) for n, row in enumerate(window)}
            open_ones = [n for n, score in known.items() if score is None]
            asked = [(window[n].prompt, window[n].answer or "") for n in open_ones]
            rated = dict(zip(open_ones, self.judge.rate(asked, ask), strict=True))
            for n, score in known.items():
                found = rated[n] if score is None else score
                yield nan if found is None else found

    def _verified(self, row: Response, context: Context) -> int | None:
        reference = context.references.get(row.id)
        if reference is None:
            return None
        return 10 if context.task.verifier.correct(row.answer or "", reference) else 1


class Rewarded(Filter):
    """Refuse answers of low reward, by a reward model (a sequence classifier with one output)."""

    type: Literal["reward"]
    min_reward: float | None = None
    """Lowest reward."""
    drop_lowest: float | None = Field(None, gt=0, lt=1)
    """Or: share of the rows that reach this filter to refuse, those of lowest reward."""
    precision: Precision = "auto"

    @model_validator(mode="after")
    def _one_threshold(self) -> "Rewarded":
        if (self.min_reward is None) == (self.drop_lowest is None):
            raise ValueError("give either min_reward or drop_lowest")
        return self

    def over(self, rows: Rows, context: Context) -> Keep:
        """Score all rows with the model that `filter.scorer` names; return what compares."""
        from cohobate.scoring.reward_models import RewardModel

        model = RewardModel.of(context.scorer(), self.precision)
        rewards = array("d", model.scores((row.prompt, row.answer or "") for row in rows))
        lowest = self.min_reward
        if lowest is None:
            lowest = sorted(rewards)[int((self.drop_lowest or 0) * len(rewards))] if rewards else 0
        places = count()

        def keep(row: Response) -> Verdict:
            reward = rewards[next(places)]
            return KEPT if reward >= lowest else Refused("its reward is low", reward)

        return keep
