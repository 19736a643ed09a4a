"""Base class of the filters, their verdicts, and what they can read beside the responses.

A filter is an entry of the list `filter.filters` in params.yaml. Most judge a row by itself and
define `verdict`. A filter that needs the other rows, the task or a model defines `verdicts`.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Protocol

from cohobate.data.contamination import Contamination
from cohobate.data.records import Response
from cohobate.params import Section
from cohobate.scoring.verifiers import Task, Verifier


@dataclass(frozen=True)
class Keep:
    """Verdict on a row that goes on to the next filter."""


@dataclass(frozen=True)
class Drop:
    """Verdict on a row that is dropped."""

    reason: str
    """One of a few fixed texts per filter: reasons are counted."""
    score: float | None = None
    """The figure that decided, where there is one."""


Verdict = Keep | Drop
KEEP = Keep()


class Rows(Protocol):
    """Rows that can be iterated several times, and looked up by position."""

    def __iter__(self) -> Iterator[Response]: ...
    def __len__(self) -> int: ...
    def __getitem__(self, position: int, /) -> Response: ...


@dataclass(frozen=True)
class Context:
    """What a filter can read beside the responses."""

    task: Task
    labels: Mapping[str | None, frozenset[str]]
    """Canonical forms of the answers of the labelled rows, by the rows' task."""
    contamination: Contamination
    """The prompts of every evaluation split."""
    references: Mapping[str, str] = field(default_factory=dict)
    """Right answers by row id, for the prompts that have one."""
    scorer: Callable[[], Path] = Path
    """Returns the folder of the model that `filter.scorer` names."""

    def verifier(self, row: Response) -> Verifier:
        """Return the verifier of a row's task."""
        return self.task.verifier_of(row.task)

    def answer(self, row: Response) -> str:
        """Return a row's answer in the form in which answers are compared."""
        text = row.full_answer
        return self.verifier(row).canonical(text) or text


class Filter(Section):
    """Base class of the filters.

    A filter judges the answers to prompts. An auxiliary target of a prompt, such as a rationale,
    is dropped with the answer that it belongs to; filters with `any_target` judge its text too.
    """

    type: str
    tasks: tuple[str, ...] = ()
    """Sources whose rows are judged, of `collect.sources`; the rows of the others are kept. All
    rows where none is named."""
    any_target: ClassVar[bool] = False
    """Whether auxiliary targets are judged too."""
    needs_prompt: ClassVar[bool] = False
    """Whether an answer is judged by its prompt: raw text has none."""

    def verdict(self, row: Response) -> Verdict:
        """Judge one row by itself."""
        raise NotImplementedError

    def verdicts(self, rows: Rows, context: Context) -> Iterator[Verdict]:
        """Yield the verdict on each of `rows`, in row order."""
        return map(self.verdict, rows)
