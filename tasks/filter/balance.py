"""Filters on how many: of one answer or group, of what the teacher is least sure of, by lot."""

from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Collection
from hashlib import sha256
from typing import Literal

from pydantic import Field, model_validator

from cohobate.data.records import Response
from cohobate.errors import UserError
from tasks.filter.verdicts import KEPT, Context, Filter, Keep, Refused, Rows, Verdict


class Confidence(Filter):
    """Refuse answers of which the teacher itself was least sure, by mean log-probability.

    Rows without a log-probability (a teacher behind an API) cannot be judged, and are kept.
    """

    type: Literal["confidence"]
    min_logprob: float | None = Field(None, le=0)
    """Lowest mean log-probability, in nats a token."""
    drop_lowest: float | None = Field(None, gt=0, lt=1)
    """Or: share of the rows that reach this filter to refuse, those with the lowest."""

    @model_validator(mode="after")
    def _one_threshold(self) -> "Confidence":
        if (self.min_logprob is None) == (self.drop_lowest is None):
            raise ValueError("give either min_logprob or drop_lowest")
        return self

    def over(self, rows: Rows, context: Context) -> Keep:
        """Return what compares with the threshold; rows that equal it stay."""
        threshold = self.min_logprob
        if self.drop_lowest is not None:
            known = sorted(array("d", (r.logprob for r in rows if r.logprob is not None)))
            threshold = known[int(self.drop_lowest * len(known))] if known else None

        def keep(row: Response) -> Verdict:
            unknown = threshold is None or row.logprob is None
            sure = unknown or row.logprob >= threshold  # type: ignore[operator]
            return KEPT if sure else Refused("the teacher was not sure", row.logprob)

        return keep


class Sample(Filter):
    """Keep a share of the rows by lot: the control that a filter of the same size has to beat."""

    type: Literal["sample"]
    share: float = Field(gt=0, lt=1)
    """Of the rows that reach this filter; a lot each, so the number is near it, not equal."""
    seed: int = 0

    def keep(self, row: Response) -> Verdict:
        """Draw a row's lot from its prompt: other rows do not change it."""
        lot = sha256(f"{self.seed} {row.id}".encode()).digest()
        return KEPT if int.from_bytes(lot[:8], "big") < self.share * 2**64 else Refused("by lot")


class ClassBalance(Filter):
    """Refuse the surplus of what is too common: no answer, or no group, is more than a share."""

    type: Literal["class_balance"]
    max_share: float = Field(gt=0, lt=1)
    """Largest share of one answer, or group, among the rows that are kept."""
    of: Literal["answer", "group"] = "answer"
    """Whether answers (classes) or groups (topics, tasks) are balanced."""

    def over(self, rows: Rows, context: Context) -> Keep:
        """Return what keeps the first rows of each class, up to the largest number allowed."""
        most = self._most(Counter(self._class(row, context) for row in rows).values())
        kept: Counter[str] = Counter()

        def keep(row: Response) -> Verdict:
            name = self._class(row, context)
            kept[name] += 1
            return KEPT if kept[name] <= most else Refused(f"its {self.of} is too common")

        return keep

    def _class(self, row: Response, context: Context) -> str:
        return row.group if self.of == "group" else context.answer(row)

    def _most(self, counts: Collection[int]) -> int:
        """Return the largest n with n <= max_share * (sum over answers of min(count, n))."""

        def too_many(n: int) -> bool:
            return n > self.max_share * sum(min(count, n) for count in counts) + 1e-9

        most = bisect_left(range(1, max(counts, default=0) + 1), True, key=too_many)
        if counts and not most:
            raise UserError(
                f"{len(counts)} different {self.of}s cannot each stay below {self.max_share:.0%}",
                where="filter.filters: class_balance",
                fix=f"give a max_share of {1 / len(counts):.2f} or more"
                if len(counts) > 1
                else f"leave the filter out: there is one {self.of} alone",
            )
        return most
