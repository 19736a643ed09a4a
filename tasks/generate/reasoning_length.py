"""How long the reasoning of a teacher is, and whether the evaluation allows a student as much.

A student that learns reasoning writes about as much of it before it answers. Where
`evaluate.decoding.max_tokens` ends within it, no answer of the student counts, and the round is
lost. Tokens are estimated by the bytes of the text: the student's tokenizer is not loaded here.
"""

from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path

from cohobate.backends.prices import likely_tokens
from cohobate.data.records import Response, Row
from cohobate.errors import UserError
from cohobate.progress import say

_LIMIT = "evaluate.decoding.max_tokens"
_ROOM, _STEP = 1.25, 64  # of a suggested limit: so much more than nearly all rows need, rounded up
_NEARLY_ALL = 0.95


class ReasoningLengths:
    """Tokens of the reasoning of a teacher's answers, and of both together; estimated."""

    def __init__(self) -> None:
        self._reasoning, self._both = array("q"), array("q")

    def counted(self, responses: Iterable[Response]) -> Iterator[Response]:
        """Yield the responses, and count those with reasoning."""
        for row in responses:
            if row.reasoning:
                tokens = likely_tokens(row.reasoning)
                self._reasoning.append(tokens)
                self._both.append(tokens + likely_tokens(row.full_answer))
            yield row

    def summary(self) -> dict[str, int]:
        """Return the figures of `summary.json`; none where no answer has reasoning."""
        if not self._reasoning:
            return {}
        return {
            "with_reasoning": len(self._reasoning),
            "reasoning_tokens_median": _quantile(self._reasoning, 0.5),
            "reasoning_tokens_most": max(self._reasoning),
        }

    def check(self, teacher: str, allowed: int) -> None:
        """Print the lengths; refuse a limit of the evaluation that most of the reasoning exceeds.

        Args:
            teacher: its key.
            allowed: `evaluate.decoding.max_tokens`.

        Raises:
            UserError: the median of the reasoning alone is longer.
        """
        if not self._reasoning:
            return
        median, needed = _quantile(self._reasoning, 0.5), _quantile(self._both, _NEARLY_ALL)
        lengths = f"about {median} tokens (median of {len(self._reasoning)} answers)"
        if median > allowed:
            limit = -(-int(needed * _ROOM) // _STEP) * _STEP
            raise UserError(
                f"the reasoning of {teacher} has {lengths}, and {_LIMIT} is {allowed}: a student "
                "that learns it would be cut off before it answers",
                where=f"params.yaml, {_LIMIT}",
                fix=f"cohobate run --set {_LIMIT}={limit}   (or --set generate.reasoning=drop: the "
                "student learns the answers alone)",
            )
        say(
            f"{teacher}: the reasoning has {lengths}; with their answers {_NEARLY_ALL:.0%} have at "
            f"most {needed}, and {_LIMIT} is {allowed}"
        )


def warn_of_labelled(path: Path, allowed: int) -> None:
    """Print a warning where most of the labelled rows' reasoning is longer than is allowed."""
    lengths = array("q")
    with path.open("rb") as lines:
        for line in lines:
            # few files have reasoning: their rows are not parsed
            if b'"reasoning":' in line:
                row = Row.model_validate_json(line)
                lengths.append(likely_tokens(row.reasoning or ""))
    if lengths and (median := _quantile(lengths, 0.5)) > allowed:
        say(
            f"{path}: the reasoning of {len(lengths)} rows has about {median} tokens (median), and "
            f"{_LIMIT} is {allowed}: a student that learns these rows is cut off before it "
            f"answers; fix: cohobate run --set {_LIMIT}=..., or --set collect.reasoning=drop"
        )


def _quantile(values: "array[int]", share: float) -> int:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]
