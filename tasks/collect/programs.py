"""Small Python functions, described in words, with a solution and unit tests: made, not fetched.

For rounds whose answers are programs (`task.verifier: {type: code}`). The functions are of twelve
kinds with a number or a letter in each, in two wordings:

    question   Write a Python function `grow(x)` that returns x plus 17.
    solution   def grow(x):
                   return x + 17
    tests      assert grow(4) == 21
               assert grow(-9) == 8
"""

import random
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

from pydantic import Field

from cohobate.params import Section
from tasks.collect.source_records import QuarantinedRecord, SourceRecord

_NAMES = (
    *("grow", "shift", "work", "turn", "make", "solve", "step", "find", "apply", "f", "g", "run"),
    *("change", "get", "take", "give", "build", "count", "move", "value"),
)
_TESTS = 2
_LARGEST = {"number": 99, "numbers": 19, "text": 5}
"""Constants, by what a function takes: the tests tell a right one from a wrong one."""


class Kind(NamedTuple):
    """One kind of function."""

    name: str
    wordings: tuple[str, str]
    """What it returns, with `{k}` for its constant."""
    expression: str
    """In Python, of `x` and `{k}`."""
    argument: Literal["number", "numbers", "text"]


_KINDS = (
    Kind("plus", ("x plus {k}", "the sum of x and {k}"), "x + {k}", "number"),
    Kind("minus", ("x minus {k}", "x less {k}"), "x - {k}", "number"),
    Kind("times", ("{k} times x", "the product of x and {k}"), "x * {k}", "number"),
    Kind("square", ("the square of x, plus {k}", "x squared plus {k}"), "x * x + {k}", "number"),
    Kind("larger", ("the larger of x and {k}", "x, but at least {k}"), "max(x, {k})", "number"),
    Kind("even", ("if x + {k} is even", "whether x + {k} is even"), "(x + {k}) % 2 == 0", "number"),
    Kind("sum", ("the sum of all of x, plus {k}", "{k} plus all of x"), "sum(x) + {k}", "numbers"),
    Kind(
        "above",
        ("how many items of x are above {k}", "the count of items of x larger than {k}"),
        "len([i for i in x if i > {k}])",
        "numbers",
    ),
    Kind(
        "each",
        ("the list x with {k} added to each item", "a list of the items of x plus {k}"),
        "[i + {k} for i in x]",
        "numbers",
    ),
    Kind("repeat", ("the text x {k} times", "{k} copies of the text x"), "x * {k}", "text"),
    Kind("first", ("the first {k} letters of x", "x cut to {k} letters"), "x[:{k}]", "text"),
    Kind("last", ("the last {k} letters of x", "the {k} letters x ends with"), "x[-{k}:]", "text"),
)


class Programs(Section):
    """Functions; columns `question`, `solution`, `tests`, `answer` (both, for a student to learn)
    and `kind`."""

    type: Literal["programs"]
    path: Literal["tasks/collect/programs.py"] = "tasks/collect/programs.py"
    """What DVC watches in place of a file."""
    rows: int = Field(ge=1, le=10_000)
    """Number of functions."""
    seed: int = Field(0, ge=0)
    group: Literal["kind"] = "kind"
    """Column that makes the group."""

    @property
    def file(self) -> str:
        """Name that stands for the file in messages."""
        return "programs"

    def release(self) -> str:
        """Return the name of the data for the summary."""
        return "programs, made by Cohobate"

    @property
    def licence(self) -> str:
        """Licence of the rows: that of this package, whose output they are."""
        return "Apache-2.0"

    def notice(self) -> str:
        """Return the licence notice to write beside the rows: none is needed."""
        return ""

    def source_records(self) -> Iterator[SourceRecord | QuarantinedRecord]:
        """Yield the functions, each question once."""
        rng, questions, number = random.Random(self.seed), set[str](), 0
        while number < self.rows:
            kind = rng.choice(_KINDS)
            columns = _function(kind, rng)
            if columns["question"] in questions:
                continue
            questions.add(columns["question"])
            number += 1
            yield SourceRecord(number, columns, group=kind.name)


def _function(kind: Kind, rng: random.Random) -> dict[str, str]:
    name, k = rng.choice(_NAMES), rng.randint(2, _LARGEST[kind.argument])
    expression = kind.expression.format(k=k)
    wording = rng.choice(kind.wordings).format(k=k)
    solution = f"def {name}(x):\n    return {expression}"
    arguments = [_argument(kind, rng) for _ in range(_TESTS)]
    tests = "\n".join(
        # of the templates above alone
        f"assert {name}({x!r}) == {eval(expression, {'x': x})!r}"
        for x in arguments
    )
    return {
        "question": f"Write a Python function `{name}(x)` that returns {wording}.",
        "solution": solution,
        "tests": tests,
        "answer": f"{solution}\n# tests\n{tests}",
        "kind": kind.name,
    }


def _argument(kind: Kind, rng: random.Random) -> Any:
    if kind.argument == "number":
        return rng.randint(-99, 99)
    if kind.argument == "numbers":
        # around the constants, so that some items are above and some below
        return [rng.randint(-9, 29) for _ in range(3)]
    return "".join(rng.choices("abcdefghij", k=rng.randint(6, 8)))
