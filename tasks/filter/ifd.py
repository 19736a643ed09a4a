"""The filter on instruction-following difficulty (IFD)."""

from array import array
from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from cohobate.models.number_formats import Precision
from tasks.filter.base_filter import KEEP, Context, Drop, Filter, Rows, Verdict


class IfdFilter(Filter):
    """Drop answers that a small model finds as likely without the prompt as with it.

    IFD is the loss on the answer with the prompt, over the loss without it (Li et al. 2024,
    "Superfiltering": a small scorer ranks rows nearly as a large one does). An IFD of 1 or more
    means that the prompt does not help: prompt and answer do not belong together. Of the others,
    those with the highest IFD teach most.
    """

    type: Literal["ifd"]
    max_ifd: float = Field(1.0, gt=0)
    """Rows with this IFD or a higher one are dropped."""
    keep_share: float = Field(1.0, gt=0, le=1)
    """Share of the other rows to keep, those with the highest IFD."""
    precision: Precision = "auto"
    threads: int = Field(2, ge=1)
    """Batches in parallel on a CPU; the scores do not depend on it."""

    def verdicts(self, rows: Rows, context: Context) -> Iterator[Verdict]:
        """Score all rows with the model that `filter.scorer` names, then compare."""
        from cohobate.generation.likelihood import Likelihood

        scorer = Likelihood.of(context.scorer(), self.precision, self.threads)
        ifds = scorer.instruction_following_difficulty(rows)
        scores = array("d", (round(ifd, 4) for ifd in ifds))
        below = sorted((score for score in scores if score < self.max_ifd), reverse=True)
        lowest = below[max(1, round(self.keep_share * len(below))) - 1] if below else 0.0
        for row, score in zip(rows, scores, strict=True):
            if row.is_raw_text:  # there is no prompt that could help
                yield KEEP
            elif score >= self.max_ifd:
                yield Drop("the prompt does not help (IFD)", score)
            else:
                yield KEEP if score >= lowest else Drop("not selected (low IFD)", score)
