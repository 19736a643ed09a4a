"""The filter on how much a prompt helps to its answer (IFD)."""

from array import array
from itertools import count
from typing import Literal

from pydantic import Field

from cohobate.data.records import Response
from cohobate.models.number_formats import Precision
from tasks.filter.verdicts import KEPT, Context, Filter, Keep, Refused, Rows, Verdict


class InstructionFollowing(Filter):
    """Refuse answers that a small model finds as likely without the prompt (IFD).

    Li et al. 2024, "Superfiltering": a small scorer ranks rows nearly as a large one does. An IFD
    of 1 and more means that the prompt is of no help: prompt and answer do not belong together.
    Of the others those with the highest IFD teach most.
    """

    type: Literal["ifd"]
    max_ifd: float = Field(1.0, gt=0)
    """Rows of this IFD or a higher one are refused."""
    keep_share: float = Field(1.0, gt=0, le=1)
    """Share of the others to keep, those with the highest IFD."""
    precision: Precision = "auto"
    threads: int = Field(2, ge=1)
    """Batches side by side on a CPU; the figures do not depend on it."""

    def over(self, rows: Rows, context: Context) -> Keep:
        """Score all rows with the model that `filter.scorer` names; return what compares."""
        from cohobate.generation.likelihood import Likelihood

        scorer = Likelihood.of(context.scorer(), self.precision, self.threads)
        found = (round(s, 4) for s in scorer.instruction_following_difficulty(rows))
        scores = array("d", found)
        below = sorted((score for score in scores if score < self.max_ifd), reverse=True)
        fewest = below[max(1, round(self.keep_share * len(below))) - 1] if below else 0.0
        places = count()

        def keep(row: Response) -> Verdict:
            score = scores[next(places)]
            if score >= self.max_ifd:
                return Refused("the prompt does not help (IFD)", score)
            return KEPT if score >= fewest else Refused("among the lowest IFD", score)

        return keep
