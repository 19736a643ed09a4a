"""Spool of rows: the records of the sources as rows on disk, and the index for the split."""

from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from cohobate.data.records import Row
from cohobate.data.row_files import RowView
from tasks.collect.row_images import ImageFolder
from tasks.collect.source_records import (
    QuarantinedRecord,
    SourceRecord,
    UnusableRecordError,
    excerpt,
)
from tasks.collect.split import Split, SplitIndex


class RecordSource(Protocol):
    """Interface of the sources that `collect.source` names."""

    @property
    def file(self) -> str:
        """Name of the file whose lines are counted."""

    @property
    def group(self) -> str | None:
        """Column with the class or topic of a record."""

    @property
    def licence(self) -> str:
        """Licence of the records."""

    def release(self) -> str:
        """Return the name of the data for the summary."""

    def notice(self) -> str:
        """Return the licence notice to write beside the rows, if there is any."""

    def source_records(self) -> Iterator[SourceRecord | QuarantinedRecord]:
        """Yield the records; quarantined ones with the reason."""


class RowMaker(Protocol):
    """Makes rows of a record: one of a prompt, several of a document."""

    @property
    def answer_columns(self) -> frozenset[str]:
        """Columns that give an answer away."""

    @property
    def is_raw_text(self) -> bool:
        """Whether the rows are raw text, without prompts."""

    @property
    def images(self) -> str | None:
        """Column with pictures, if there is one."""

    def rows(self, source_record: SourceRecord) -> list[tuple[SourceRecord, Row]]:
        """Return the rows, each with its record, or raise UnusableRecordError."""


@dataclass
class SpooledSource:
    """A source, how its records become rows, and what became of them."""

    source: RecordSource
    maker: RowMaker
    split: Split
    task: str | None = None
    """Name of the source, where there are several: the `task` of its rows."""
    weight: float | None = None
    """Weight of the loss of its rows; None: 1."""
    read: int = 0
    """Number of records read."""
    reasons: Counter[str] = field(default_factory=Counter)
    """Reasons of the quarantined records."""
    examples: dict[str, str] = field(default_factory=dict)
    """Of each reason for which a record could not be read, the first record."""

    def rows(
        self, record: SourceRecord, *, keep_images: bool = True
    ) -> list[tuple[SourceRecord, Row]]:
        """Return the rows of a record, each with its pictures and its record.

        Args:
            record: of the source.
            keep_images: whether pictures are written to data/collect/images.

        Raises:
            UnusableRecordError: no row can be made of it.
        """
        pairs, column = self.maker.rows(record), self.maker.images
        if column is None:
            return pairs
        images = ImageFolder(getattr(self.source, "path", ""), keep=keep_images)
        return [images.with_images(column, *pair) for pair in pairs]


class RowSpool:
    """The rows of the sources, in their order. Each record becomes rows or is quarantined."""

    def __init__(self, sources: Sequence[SpooledSource], spool: Path) -> None:
        self.sources, self._spool = sources, spool
        # of the source, for each row
        self._lines, self._records, self._files = array("Q"), array("Q"), array("L")
        self._file_names: list[str] = []
        self._rows: RowView[Row] | None = None
        self.pool = SplitIndex(*(one.split for one in sources))

    @property
    def read(self) -> int:
        """Number of records read, of all sources."""
        return sum(one.read for one in self.sources)

    @property
    def reasons(self) -> Counter[str]:
        """Reasons of the quarantined records, of all sources."""
        return sum((one.reasons for one in self.sources), Counter[str]())

    def fill(self) -> Iterator[QuarantinedRecord]:
        """Spool the rows of the sources; yield the quarantined records."""
        with self._spool.open("wb") as spool:
            for number, spooled in enumerate(self.sources):
                for record in spooled.source.source_records():
                    spooled.read += 1
                    rows = (
                        record
                        if isinstance(record, QuarantinedRecord)
                        else self._rows_of(record, number)
                    )
                    if isinstance(rows, QuarantinedRecord):
                        spooled.reasons[rows.reason] += 1
                        spooled.examples.setdefault(rows.reason, rows.description)
                        yield rows.model_copy(update={"record": spooled.read})
                        continue
                    for row in rows:
                        spool.write(row.model_dump_json().encode() + b"\n")

    def rows(self) -> RowView[Row]:
        """Return a view of the spooled rows."""
        if self._rows is None:
            self._rows = RowView.of([self._spool], Row)
        return self._rows

    def text_of(self, number: int) -> str:
        """Return the text by which a row is compared: its prompt's, or the raw text."""
        return self.rows()[number].source_text

    def quarantine(self, number: int, reason: str) -> QuarantinedRecord:
        """Quarantine a row that is spooled already."""
        self.sources[self.pool.sources[number]].reasons[reason] += 1
        text = excerpt(self.text_of(number))
        line, record = self._lines[number], self._records[number]
        file = self._file_names[self._files[number]]
        return QuarantinedRecord(file=file, line=line, record=record, reason=reason, text=text)

    def _rows_of(self, source_record: SourceRecord, number: int) -> list[Row] | QuarantinedRecord:
        spooled = self.sources[number]
        file = source_record.file or spooled.source.file
        try:
            rows = spooled.rows(source_record)
        except UnusableRecordError as error:
            return source_record.quarantined(file, str(error))
        if self._file_names[-1:] != [file]:  # files are read one after the other
            self._file_names.append(file)
        named = []
        for record, row in rows:
            self._lines.append(record.number)
            self._records.append(spooled.read)
            self._files.append(len(self._file_names) - 1)
            self.pool.add(record, row, number)
            named.append(_of_task(row, spooled))
        return named


def _of_task(row: Row, spooled: SpooledSource) -> Row:
    """Return a row with the task and the weight of its source."""
    update: dict[str, object] = {"task": spooled.task} if spooled.task else {}
    if spooled.weight is not None:
        # a record's own weight counts beside that of its source
        update["weight"] = spooled.weight * (1.0 if row.weight is None else row.weight)
    return row.model_copy(update=update) if update else row
