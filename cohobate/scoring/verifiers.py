"""What counts as a right answer: the task's verifier, read by `filter` and `evaluate`.

A verifier first reduces an answer to its canonical form (`canonical`: what is compared, or None
where the text is no answer at all); two answers agree when their canonical forms do.

To add one: a class with `canonical`, and its name in `Verifier` at the bottom.
"""

import re
import threading
from collections.abc import Collection, Iterable
from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import Field

from cohobate.params import Section

_NUMBER = re.compile(
    r"(?<![\w.])[-+\u2212]?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d{1,3})?"
)


class Exact(Section):
    """The same text, apart from white space (and letter case, unless it matters)."""

    type: Literal["exact"]
    casefold: bool = True
    """Whether `Animal` and `animal` are the same answer."""
    after: str = ""
    """Mark before the answer, such as `Answer:` where a rationale comes first: what follows its
    last occurrence is compared; a text without the mark is compared whole."""

    def canonical(self, answer: str) -> str | None:
        """Return the text with single spaces and, if asked, without case; None when empty."""
        text = " ".join((answer.rpartition(self.after)[2] if self.after else answer).split())
        return (text.casefold() if self.casefold else text) or None

    def correct(self, answer: str, reference: str) -> bool:
        """Say whether `answer` is right, given the reference answer."""
        return self.canonical(answer) == self.canonical(reference) is not None

    def admissible(self, answer: str, labels: Collection[str]) -> bool:
        """Say whether `answer` could be right; `labels` are the canonical answers seen."""
        return self.canonical(answer) is not None


class Label(Exact):
    """One of a closed set of labels: those of the labelled rows."""

    type: Literal["label"]  # type: ignore[assignment]

    def admissible(self, answer: str, labels: Collection[str]) -> bool:
        """Say whether `answer` is one of the labels seen in the labelled rows."""
        return self.canonical(answer) in labels


class Numeric(Section):
    """The last number in the text, within a tolerance (`so it is 1,234.50 dollars` is 1234.5)."""

    type: Literal["numeric"]
    tolerance: float = Field(1e-6, ge=0)
    """Allowed difference: a share of the larger number, absolute below 1; 0 is to the digit."""

    def canonical(self, answer: str) -> str | None:
        """Return the last number in plain decimal digits; None when there is none."""
        numbers = _NUMBER.findall(answer)
        if not numbers:
            return None
        digits = format(Decimal(numbers[-1].replace(",", "").replace("\u2212", "-")), "f")
        plain = digits.rstrip("0").rstrip(".") if "." in digits else digits
        return "0" if plain in ("-0", "") else plain

    def correct(self, answer: str, reference: str) -> bool:
        """Say whether the last numbers of both texts agree."""
        given, wanted = self.canonical(answer), self.canonical(reference)
        if given is None or wanted is None:
            return False
        difference = abs(Decimal(given) - Decimal(wanted))
        scale = max(abs(Decimal(given)), abs(Decimal(wanted)), Decimal(1))
        return difference <= Decimal(self.tolerance) * scale

    def admissible(self, answer: str, labels: Collection[str]) -> bool:
        """Say whether there is a number at all."""
        return self.canonical(answer) is not None


class Mathematical(Section):
    """The same value as a formula, in LaTeX or plain (`\\frac{1}{2}` is 0.5), by math-verify."""

    type: Literal["math"]
    characters: int = Field(2000, ge=1)
    """Only so many characters at the end of an answer are read: that is where the result stands."""

    def canonical(self, answer: str) -> str | None:
        """Return the last formula in SymPy's spelling; None when there is none."""
        found = self._parsed(answer)
        return str(found[0]) if found else None

    def correct(self, answer: str, reference: str) -> bool:
        """Say whether the formulas are of equal value."""
        from math_verify import verify

        given, wanted = self._parsed(answer), self._parsed(reference)
        return bool(given and wanted and verify(wanted, given, **_limit("timeout_seconds")))

    def admissible(self, answer: str, labels: Collection[str]) -> bool:
        """Say whether there is a formula or a number at all."""
        return self.canonical(answer) is not None

    def _parsed(self, text: str) -> list[Any]:
        from math_verify import parse

        found: list[Any] = parse(text[-self.characters :], **_limit("parsing_timeout"))
        return found


def _limit(name: str) -> dict[str, int | None]:
    """Return the time limit of math-verify: it takes a signal, which only the main thread has."""
    main = threading.current_thread() is threading.main_thread()
    return {name: 5 if main else None}


Verifier = Annotated[Exact | Label | Numeric | Mathematical, Field(discriminator="type")]


class Task(Section):
    """What is asked of the models, as far as more than one stage must agree on it."""

    verifier: Verifier
    """Tells a right answer from a wrong one, and an answer from a non-answer."""

    def labels(self, answers: Iterable[str]) -> frozenset[str]:
        """Return the canonical forms of `answers`: the labels, when a closed set is asked for."""
        forms = (self.verifier.canonical(answer) for answer in answers)
        return frozenset(form for form in forms if form is not None)
