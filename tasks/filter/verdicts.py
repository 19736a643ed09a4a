"""What a filter is, what it says of a row, and what it can know.

A filter is its own settings. Most judge a row by itself and have `keep` alone. One that must know
the other rows or the task has `over`, which looks at what it needs and returns the function that
judges the rows of one run.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Protocol

from cohobate.data.contamination import Contamination
from cohobate.data.records import Response
from cohobate.params import Section
from cohobate.scoring.verifiers import Task


@dataclass(frozen=True)
class Kept:
    """The verdict on a row that goes on to the next filter."""


@dataclass(frozen=True)
class Refused:
    """The verdict on a row that goes no further."""

    reason: str
    score: float | None = None
    """The figure that decided, where there is one."""


Verdict = Kept | Refused
KEPT = Kept()
Keep = Callable[[Response], Verdict]


class Rows(Protocol):
    """Rows that can be walked as often as needed, and looked up."""

    def __iter__(self) -> Iterator[Response]: ...
    def __len__(self) -> int: ...
    def __getitem__(self, place: int, /) -> Response: ...


@dataclass(frozen=True)
class Context:
    """What a filter can know beside the responses."""

    task: Task
    labels: frozenset[str]
    """Canonical forms of the answers of the labelled rows."""
    evaluation: Contamination
    """The prompts of every evaluation split."""
    references: Mapping[str, str] = field(default_factory=dict)
    """Right answers, by the ids of the rows whose prompts have one."""
    scorer: Callable[[], Path] = Path
    """Gives the folder of the model that filters ask: what `filter.scorer` names."""

    def answer(self, row: Response) -> str:
        """Return what a row answers, in the form in which answers are compared."""
        text = row.answer or ""
        return self.task.verifier.canonical(text) or text


class Filter(Section):
    """Base of the filters.

    A filter judges the answers to prompts. Auxiliary targets of a prompt, such as a rationale, go
    the way of the answer that they stand behind; some filters judge their text too.
    """

    type: str
    any_target: ClassVar[bool] = False
    """Whether it judges the text of auxiliary targets too."""

    def keep(self, row: Response) -> Verdict:
        """Judge a row by itself."""
        raise NotImplementedError

    def over(self, rows: Rows, context: Context) -> Keep:
        """Return what judges, one after the other, the `rows` that reach this filter."""
        return self.keep
