"""Filters on whether an answer is right: by a reference, or by the other samples of its prompt."""

from collections.abc import Iterator
from typing import Literal

from pydantic import Field, model_validator

from cohobate.data.records import Response
from cohobate.scoring.votes import hash_of, votes_of
from tasks.filter.base_filter import KEEP, Context, Drop, Filter, Rows, Verdict


class VerifierFilter(Filter):
    """Drop wrong answers to prompts whose right answer is known, by the task's verifier."""

    type: Literal["verified"]
    unknown: Literal["keep", "refuse"] = "keep"
    """What to do with answers to prompts without a known right answer."""

    def verdicts(self, rows: Rows, context: Context) -> Iterator[Verdict]:
        """Compare each answer with its reference."""
        for row in rows:
            yield self._verdict(row, context)

    def _verdict(self, row: Response, context: Context) -> Verdict:
        reference, verifier = context.references.get(row.id), context.verifier(row)
        if row.is_raw_text:
            return KEEP
        if reference is None:
            return KEEP if self.unknown == "keep" else Drop("no right answer is known")
        right = verifier.correct(row.full_answer, reference)
        return KEEP if right else Drop(f"wrong ({verifier.type})")


class AgreementFilter(Filter):
    """Drop answers outvoted by the other samples (self-consistency, Wang et al. 2023).

    The agreement of a prompt is the share of its samples that give the commonest answer. Prompts
    with one sample have none, and are kept.
    """

    type: Literal["agreement"]
    min_share: float = Field(0.5, ge=0, le=1)
    """Lowest agreement: below it the teacher is not sure enough."""
    max_share: float = Field(1.0, ge=0, le=1)
    """Highest agreement: above it the prompt is too easy to learn from."""

    @model_validator(mode="after")
    def _a_span(self) -> "AgreementFilter":
        if self.min_share > self.max_share:
            raise ValueError("min_share is above max_share")
        return self

    def verdicts(self, rows: Rows, context: Context) -> Iterator[Verdict]:
        """Compare each answer with the commonest one to its prompt."""
        votes = votes_of(rows, context.answer)
        for row in rows:
            if row.id not in votes:
                yield KEEP
                continue
            commonest, share = votes[row.id]
            if share < self.min_share:
                yield Drop("samples disagree", share)
            elif share > self.max_share:
                yield Drop("samples agree too well", share)
            elif hash_of(context.answer(row)) == commonest:
                yield KEEP
            else:
                yield Drop("outvoted", share)
