"""Verifiers: decide whether an answer is right.

A verifier reduces an answer to its canonical form, or None where the text is not a valid answer.
Two answers agree when their canonical forms do.

To add one: a class with `canonical`, and its name in `Verifier` at the bottom.
"""

import ast
import json
import re
import threading
import warnings
from collections.abc import Collection, Iterable
from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from cohobate.data.reasoning import split
from cohobate.data.tool_calls import calls_in
from cohobate.params import Section
from cohobate.scoring.rankings import DEPTH, document_line, rank_of, ranked_documents
from cohobate.scoring.sandbox import Sandbox

_NUMBER = re.compile(
    r"(?<![\w.])[-+\u2212]?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d{1,3})?"
)


class AnswerVerifier(Section):
    """Base class of the verifiers."""

    type: str
    after: str = ""
    """Pattern before the answer, such as `Answer:` after a rationale: a regular expression. The
    text behind its last match is compared; a text without a match is compared as a whole."""

    @field_validator("after")
    @classmethod
    def _compiles(cls, after: str) -> str:
        try:
            matches_nothing = after and re.compile(after).search("") is not None
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from None
        if matches_nothing:
            raise ValueError("the pattern also matches where nothing stands")
        return after

    def answer_in(self, text: str) -> str:
        """Return the answer in a text: what stands behind the reasoning, and behind `after`."""
        answer, _ = split(text)
        if self.after:
            ends = [match.end() for match in re.finditer(self.after, answer)]
            answer = answer[ends[-1] :] if ends else answer
        return answer

    def canonical(self, answer: str) -> str | None:
        """Return the form in which answers are compared; None where the text is no answer."""
        raise NotImplementedError

    def correct(self, answer: str, reference: str) -> bool:
        """Return whether `answer` agrees with the reference answer."""
        return self.canonical(answer) == self.canonical(reference) is not None

    def shown(self, answer: str, reference: str) -> str:
        """Return an answer to a prompt with this reference as reports show it."""
        return answer

    def admissible(self, answer: str, labels: Collection[str]) -> bool:
        """Return whether `answer` could be right; `labels` are the known canonical answers."""
        return self.canonical(answer) is not None


class Exact(AnswerVerifier):
    """Compares texts, apart from white space and, by default, letter case."""

    type: Literal["exact"]
    casefold: bool = True
    """Whether `Animal` and `animal` are the same answer."""

    def canonical(self, answer: str) -> str | None:
        """Return the text with single spaces and, if configured, case folded; None when empty."""
        text = " ".join(self.answer_in(answer).split())
        return (text.casefold() if self.casefold else text) or None


class Label(Exact):
    """Compares labels of a closed set: those of the labelled rows."""

    type: Literal["label"]  # type: ignore[assignment]

    def admissible(self, answer: str, labels: Collection[str]) -> bool:
        """Return whether `answer` is one of the labels of the labelled rows."""
        return self.canonical(answer) in labels


class Ranking(AnswerVerifier):
    """Compares the first documents of rankings: those that an embedder finds nearest to a query."""

    type: Literal["ranking"]

    def canonical(self, answer: str) -> str | None:
        """Return the first document; None where there is none."""
        return next(iter(ranked_documents(answer)), None)

    def correct(self, answer: str, reference: str) -> bool:
        """Return whether the reference is the first document."""
        return self.canonical(answer) == document_line(reference) != ""

    def shown(self, answer: str, reference: str) -> str:
        """Return the first document, and the rank of the reference where it is another one."""
        first, rank = self.canonical(answer) or "", rank_of(reference, answer)
        if rank == 1:
            return first
        return f"{first} [its own document: rank {rank or f'above {DEPTH}'}]"


class Numeric(AnswerVerifier):
    """Compares the last numbers of the texts (`so it is 1,234.50 dollars` is 1234.5)."""

    type: Literal["numeric"]
    tolerance: float = Field(1e-6, ge=0)
    """Allowed difference, relative to the larger number, absolute below 1; 0: exactly equal."""

    def canonical(self, answer: str) -> str | None:
        """Return the last number in plain decimal digits; None when there is none."""
        numbers = _NUMBER.findall(self.answer_in(answer))
        if not numbers:
            return None
        # U+2212 is the minus sign of typeset text
        digits = format(Decimal(numbers[-1].replace(",", "").replace("\u2212", "-")), "f")
        plain = digits.rstrip("0").rstrip(".") if "." in digits else digits
        return "0" if plain in ("-0", "") else plain

    def correct(self, answer: str, reference: str) -> bool:
        """Return whether the last numbers of both texts agree."""
        number, expected = self.canonical(answer), self.canonical(reference)
        if number is None or expected is None:
            return False
        difference = abs(Decimal(number) - Decimal(expected))
        scale = max(abs(Decimal(number)), abs(Decimal(expected)), Decimal(1))
        return difference <= Decimal(self.tolerance) * scale


class Mathematical(AnswerVerifier):
    """Compares formulas by value, in LaTeX or plain (`\\frac{1}{2}` is 0.5), by math-verify."""

    type: Literal["math"]
    characters: int = Field(2000, ge=1)
    """Number of characters at the end of an answer that are parsed."""

    def canonical(self, answer: str) -> str | None:
        """Return the last formula in SymPy's spelling; None when there is none."""
        parsed = self._parsed(answer)
        return str(parsed[0]) if parsed else None

    def correct(self, answer: str, reference: str) -> bool:
        """Return whether the formulas have equal values."""
        from math_verify import verify

        parsed, expected = self._parsed(answer), self._parsed(reference)
        return bool(parsed and expected and verify(expected, parsed, **_limit("timeout_seconds")))

    def _parsed(self, text: str) -> list[Any]:
        from math_verify import parse

        end = self.answer_in(text)[-self.characters :]
        parsed: list[Any] = parse(end, **_limit("parsing_timeout"))
        return parsed


def _limit(name: str) -> dict[str, int | None]:
    """Return math-verify's time limit; it uses a signal, which only the main thread can set."""
    main = threading.current_thread() is threading.main_thread()
    return {name: 5 if main else None}


class ToolCalls(AnswerVerifier):
    """Compares calls of tools by name and arguments, these as JSON.

    The calls are read from the text, whichever of the common syntaxes a model writes
    (cohobate/data/tool_calls.py). An answer without a call agrees with a reference without one, as
    in the Berkeley Function-Calling Leaderboard (Patil et al. 2025, relevance detection).
    """

    type: Literal["tool_calls"]
    in_order: bool = True
    """Whether several calls must come in the order of the reference."""

    def canonical(self, answer: str) -> str | None:
        """Return the calls as JSON, `[]` where there is none; None where one is malformed."""
        calls = calls_in(self.answer_in(answer))
        if calls is None:
            return None
        # 1 and 1.0 are the same number in JSON
        forms = [
            json.dumps([call.name, json.loads(call.arguments, parse_float=_number)], sort_keys=True)
            for call in calls
        ]
        return f"[{', '.join(forms if self.in_order else sorted(forms))}]"


class Code(AnswerVerifier):
    """Runs the Python code of an answer with the row's unit tests, in a sandbox.

    The reference answer is the unit tests, such as `assert double(2) == 4`, or a solution and,
    below a line `# tests`, its unit tests. An answer is right where both run without an exception.
    Of an answer with a fenced block the last block is run, else the whole text; what stands below a
    line `# tests` is left out. There is the standard library alone.
    """

    type: Literal["code"]
    sandbox: Sandbox = Sandbox()
    """Limits of time, memory, processes and files."""

    def canonical(self, answer: str) -> str | None:
        """Return the code in one spelling, without comments; None where it is not Python."""
        try:
            with warnings.catch_warnings(action="ignore"):  # of escapes that are none
                return ast.unparse(ast.parse(self.code_in(answer))) or None
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return None

    def correct(self, answer: str, reference: str) -> bool:
        """Return whether the answer's code passes the tests of the reference."""
        return self.verdict(answer, reference) == "passed"

    def verdict(self, answer: str, reference: str) -> str:
        """Return `passed`, or why an answer does not pass: such as the name of an exception."""
        if self.canonical(answer) is None:
            return "SyntaxError"
        return self.sandbox.run(self.code_in(answer), _TESTS.split(reference, maxsplit=1)[-1])

    def code_in(self, answer: str) -> str:
        """Return the code of an answer, without tests that stand below it."""
        text = self.answer_in(answer)
        blocks = _FENCED.findall(text)
        return _TESTS.split(blocks[-1] if blocks else text, maxsplit=1)[0].strip()


_TESTS = re.compile(r"^[ \t]*# tests[ \t]*$", re.MULTILINE)
_FENCED = re.compile(r"^```[\w+-]*[ \t]*\n(.*?)(?:^```|\Z)", re.MULTILINE | re.DOTALL)


def _number(text: str) -> float | int:
    number = float(text)
    return int(number) if number.is_integer() else number


Verifier = Annotated[
    Exact | Label | Ranking | Numeric | Mathematical | ToolCalls | Code,
    Field(discriminator="type"),
]


class TaskOfSource(Section):
    """What differs in the task of one source, where a round has several."""

    verifier: Verifier
    """Decides on the answers of this task."""


class Task(Section):
    """The section `task` of params.yaml: what several stages must agree on."""

    verifier: Verifier
    """Decides whether an answer is right, and whether a text is a valid answer."""
    tasks: dict[str, TaskOfSource] = Field(default_factory=dict)
    """By name of a source (`collect.sources`): what differs for its rows."""

    def verifier_of(self, task: str | None) -> Verifier:
        """Return the verifier of the rows of a task; None: of a round with one source."""
        own = self.tasks.get(task) if task else None
        return own.verifier if own else self.verifier

    def labels(self, answers: Iterable[str], task: str | None = None) -> frozenset[str]:
        """Return the canonical forms of `answers`: the labels of a closed set."""
        verifier = self.verifier_of(task)
        forms = (verifier.canonical(answer) for answer in answers)
        return frozenset(form for form in forms if form is not None)
