"""Longest row that is learnt or captured, and what becomes of longer ones."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from cohobate.data.tokenized import Encoded
from cohobate.errors import UserError
from cohobate.progress import say

TooLong = Literal["drop", "truncate_left", "truncate_right"]


@dataclass
class LengthLimit:
    """Limits rows to a number of tokens, and counts those that were longer.

    Example:
        limit = LengthLimit(1024, "truncate_right")
        examples = examples_of(rows, limit.apply(encode_all(tokenizer, rows)))
        limit.report("train kd, seed 1")
        limit.refuse_none(len(examples), "train.kd.max_tokens")
    """

    max_tokens: int | None = None
    """Longest row, prompt and answer; None: any."""
    too_long: TooLong = "drop"
    """truncate_left keeps a row's last tokens, truncate_right its first ones."""
    rows: int = 0
    without_answer: int = 0
    longer: int = 0
    """Rows of more than `max_tokens`."""
    dropped: int = 0
    """Those of them that are left out, as nothing that is learnt is within the limit."""
    longest: int = 0

    def apply(self, encoded_rows: Iterator[Encoded]) -> Iterator[Encoded]:
        """Yield every row within the limit; a row that is left out has no spans."""
        for encoded in encoded_rows:
            yield self._limited(encoded)

    def _limited(self, encoded: Encoded) -> Encoded:
        self.rows += 1
        if not encoded.spans:
            self.without_answer += 1
            return encoded
        self.longest = max(self.longest, len(encoded.ids))
        if self.max_tokens is None or len(encoded.ids) <= self.max_tokens:
            return encoded
        self.longer += 1
        kept = _NOTHING if self.too_long == "drop" else self._cut(encoded, self.max_tokens)
        self.dropped += not kept.spans
        return kept

    def _cut(self, encoded: Encoded, size: int) -> Encoded:
        start = len(encoded.ids) - size if self.too_long == "truncate_left" else 0
        # the first id that is left has none before it that could predict it
        moved = [(max(1, a - start), min(size, b - start)) for a, b in encoded.spans]
        spans = tuple((a, b) for a, b in moved if a < b)
        return (
            replace(encoded, ids=encoded.ids[start : start + size], spans=spans)
            if spans
            else _NOTHING
        )

    def report(self, label: str) -> None:
        """Log how many rows were cut or left out; `label` names the run."""
        if self.without_answer:
            say(f"{label}: {self.without_answer} of {self.rows} rows left out: they have no answer")
        if not self.longer:
            return
        share, cut = self.longer / self.rows, self.longer - self.dropped
        kept = "last" if self.too_long == "truncate_left" else "first"
        outcome = [f"{cut} cut to their {kept} {self.max_tokens}"] if cut else []
        outcome += [f"{self.dropped} left out"] if self.dropped else []
        say(
            f"{label}: {self.longer} of {self.rows} rows ({share:.1%}) have more than "
            f"{self.max_tokens} tokens, the longest {self.longest}: {', '.join(outcome)}"
        )

    def refuse_none(self, left: int, where: str) -> None:
        """Refuse a run of which no row is left because all were too long.

        Args:
            left: number of rows that are left.
            where: where the limit is set.

        Raises:
            UserError: none, as all that had an answer were too long.
        """
        if left or not self.dropped:
            return
        raise UserError(
            f"all {self.dropped} rows have more than {self.max_tokens} tokens (the longest "
            f"{self.longest}): none is left",
            where=where,
            fix=f"raise max_tokens there, such as to {self.longest}; or cut the rows: "
            "too_long: truncate_right",
        )


_NOTHING = Encoded([], ())
