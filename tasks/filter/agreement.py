"""Filters on whether an answer is right: by a reference, or by the other samples of its prompt."""

from typing import Literal

from pydantic import Field, model_validator

from cohobate.data.records import Response
from cohobate.scoring.votes import hash_of, votes_of
from tasks.filter.verdicts import KEPT, Context, Filter, Keep, Refused, Rows, Verdict


class Verified(Filter):
    """Refuse wrong answers to prompts whose right answer is known, by the task's verifier."""

    type: Literal["verified"]
    unknown: Literal["keep", "refuse"] = "keep"
    """What to do with answers to prompts of which no right answer is known."""

    def over(self, rows: Rows, context: Context) -> Keep:
        """Return what asks the verifier."""
        verifier = context.task.verifier

        def keep(row: Response) -> Verdict:
            reference = context.references.get(row.id)
            if reference is None:
                return KEPT if self.unknown == "keep" else Refused("no right answer is known")
            right = verifier.correct(row.answer or "", reference)
            return KEPT if right else Refused(f"wrong ({verifier.type})")

        return keep


class Agreement(Filter):
    """Refuse answers outvoted by the other samples (self-consistency, Wang et al. 2023).

    The share of a prompt's samples that give the commonest answer is its agreement. Prompts with
    one sample have none, and are kept.
    """

    type: Literal["agreement"]
    min_share: float = Field(0.5, ge=0, le=1)
    """Lowest agreement: below it the teacher does not know."""
    max_share: float = Field(1.0, ge=0, le=1)
    """Highest agreement: above it there is nothing left to learn."""

    @model_validator(mode="after")
    def _a_span(self) -> "Agreement":
        if self.min_share > self.max_share:
            raise ValueError("min_share is above max_share")
        return self

    def over(self, rows: Rows, context: Context) -> Keep:
        """Return what compares an answer with the commonest one to its prompt."""
        votes = votes_of(rows, context.answer)

        def keep(row: Response) -> Verdict:
            if row.id not in votes:
                return KEPT
            answer, share = votes[row.id]
            if not self.min_share <= share <= self.max_share:
                few = share < self.min_share
                return Refused("samples disagree" if few else "samples agree too well", share)
            return KEPT if hash_of(context.answer(row)) == answer else Refused("outvoted", share)

        return keep
