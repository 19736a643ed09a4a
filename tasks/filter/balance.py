"""Filters on quantities: the least confident answers, a random sample, balanced classes."""

from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Collection, Iterator
from hashlib import sha256
from typing import Literal

from pydantic import Field, model_validator

from cohobate.data.records import Response
from cohobate.errors import UserError
from tasks.filter.base_filter import KEEP, Context, Drop, Filter, Rows, Verdict


class ConfidenceFilter(Filter):
    """Drop the answers with the lowest mean log-probability under the teacher.

    Rows without a log-probability (a teacher behind an API) are kept.
    """

    type: Literal["confidence"]
    min_logprob: float | None = Field(None, le=0)
    """Lowest mean log-probability, in nats per token."""
    drop_lowest: float | None = Field(None, gt=0, lt=1)
    """Or: share of the rows that reach this filter to drop, those with the lowest."""

    @model_validator(mode="after")
    def _one_threshold(self) -> "ConfidenceFilter":
        if (self.min_logprob is None) == (self.drop_lowest is None):
            raise ValueError("give either min_logprob or drop_lowest")
        return self

    def verdicts(self, rows: Rows, context: Context) -> Iterator[Verdict]:
        """Compare each log-probability with the threshold; rows equal to it are kept."""
        threshold = self.min_logprob
        if self.drop_lowest is not None:
            logprobs = sorted(array("d", (r.logprob for r in rows if r.logprob is not None)))
            threshold = logprobs[int(self.drop_lowest * len(logprobs))] if logprobs else None
        for row in rows:
            if threshold is None or row.logprob is None or row.logprob >= threshold:
                yield KEEP
            else:
                yield Drop("low confidence of the teacher", row.logprob)


class RandomSampleFilter(Filter):
    """Keep a random share of the rows: the control that a filter of the same size has to beat."""

    type: Literal["sample"]
    share: float = Field(gt=0, lt=1)
    """Of the rows that reach this filter; each is drawn by itself, so the share is approximate."""
    seed: int = 0

    def verdict(self, row: Response) -> Verdict:
        """Draw a row by the hash of its prompt: other rows do not change it."""
        digest = sha256(f"{self.seed} {row.id}".encode()).digest()
        drawn = int.from_bytes(digest[:8], "big") < self.share * 2**64
        return KEEP if drawn else Drop("not selected (random sample)")


class ClassBalanceFilter(Filter):
    """Drop the surplus of common classes: no answer, or group, makes up more than a share."""

    type: Literal["class_balance"]
    max_share: float = Field(gt=0, lt=1)
    """Largest share of one answer, or group, among the kept rows."""
    of: Literal["answer", "group", "task"] = "answer"
    """Whether answers (classes), groups (topics) or the tasks of several sources are balanced."""

    def verdicts(self, rows: Rows, context: Context) -> Iterator[Verdict]:
        """Keep the first rows of each class, up to the largest number allowed."""
        limit = self._limit(Counter(self._class(row, context) for row in rows).values())
        seen: Counter[str] = Counter()
        for row in rows:
            name = self._class(row, context)
            seen[name] += 1
            yield KEEP if seen[name] <= limit else Drop(f"over the limit of its {self.of}")

    def _class(self, row: Response, context: Context) -> str:
        if self.of == "task":
            return row.task or ""
        return row.group if self.of == "group" else context.answer(row)

    def _limit(self, counts: Collection[int]) -> int:
        """Return the largest n with n <= max_share * (sum over answers of min(count, n))."""

        def too_many(n: int) -> bool:
            return n > self.max_share * sum(min(count, n) for count in counts) + 1e-9

        limit = bisect_left(range(1, max(counts, default=0) + 1), True, key=too_many)
        if counts and not limit:
            raise UserError(
                f"{len(counts)} different {self.of}s cannot each stay below {self.max_share:.0%}",
                where="filter.filters: class_balance",
                fix=f"give a max_share of {1 / len(counts):.2f} or more"
                if len(counts) > 1
                else f"leave the filter out: there is one {self.of} alone",
            )
        return limit
