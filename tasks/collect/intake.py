"""From a source to rows on disk, and what a split must know of them."""

from array import array
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from cohobate.data.records import Row, prompt_text, row_id
from cohobate.data.row_files import RowView
from tasks.collect.conversations import Prompt
from tasks.collect.examples import Example, NoExampleError, SetAside, clipped
from tasks.collect.split import Pool, Split


class Source(Protocol):
    """What `collect.source` can be."""

    @property
    def file(self) -> str:
        """Name of the file whose lines are counted."""

    def examples(self) -> Iterator[Example | SetAside]:
        """Yield the records, or why one is none."""


class Rendering(Protocol):
    """What turns the columns of a record into a prompt and an answer."""

    def render(self, columns: Mapping[str, Any]) -> tuple[Prompt, str | None]:
        """Return both, or raise NoExampleError."""


class Intake:
    """Rows of a source, spooled in its order. A record ends in a row or is set aside, no third."""

    def __init__(self, source: Source, template: Rendering, split: Split, spool: Path) -> None:
        self._source, self._template, self._spool = source, template, spool
        self._lines, self._records = array("Q"), array("Q")  # of the source, for each row
        self._rows: RowView[Row] | None = None
        self.pool = Pool(split)
        self.read = 0
        self.reasons: Counter[str] = Counter()

    def fill(self) -> Iterator[SetAside]:
        """Spool the rows of the source; yield what is none."""
        with self._spool.open("wb") as spool:
            for example in self._source.examples():
                self.read += 1
                row = example if isinstance(example, SetAside) else self._row(example)
                if isinstance(row, SetAside):
                    self.reasons[row.reason] += 1
                    yield row.model_copy(update={"record": self.read})
                else:
                    spool.write(row.model_dump_json().encode() + b"\n")

    def rows(self) -> RowView[Row]:
        """Return the spooled rows."""
        if self._rows is None:
            self._rows = RowView.of([self._spool], Row)
        return self._rows

    def prompt_of(self, number: int) -> str:
        """Return the text of a row's prompt."""
        return prompt_text(self.rows()[number].prompt)

    def refuse(self, number: int, reason: str) -> SetAside:
        """Set a spooled row aside after all."""
        self.reasons[reason] += 1
        text = clipped(self.prompt_of(number))
        line, record = self._lines[number], self._records[number]
        file = self._source.file
        return SetAside(file=file, line=line, record=record, reason=reason, text=text)

    def _row(self, example: Example) -> Row | SetAside:
        try:
            prompt, answer = self._template.render(example.columns)
        except NoExampleError as no:
            text = clipped(dict(example.columns))
            file = self._source.file
            return SetAside(file=file, line=example.number, reason=str(no), text=text)
        row = Row(
            id=row_id(prompt),
            prompt=prompt,
            answer=answer,
            group=example.group,
            origin="none" if answer is None else "ground_truth",
        )
        self._lines.append(example.number)
        self._records.append(self.read)
        self.pool.add(example, row)
        return row
