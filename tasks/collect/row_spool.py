"""Spool of rows: a source's records made into rows on disk, and the index for the split."""

from array import array
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from cohobate.data.records import Row
from cohobate.data.row_files import RowView
from tasks.collect.source_records import (
    QuarantinedRecord,
    SourceRecord,
    UnusableRecordError,
    excerpt,
)
from tasks.collect.split import Split, SplitIndex


class Source(Protocol):
    """Interface of the sources that `collect.source` names."""

    @property
    def file(self) -> str:
        """Name of the file whose lines are counted."""

    def source_records(self) -> Iterator[SourceRecord | QuarantinedRecord]:
        """Yield the records; quarantined ones with the reason."""


class RowMaker(Protocol):
    """Makes rows of a record: one of a prompt, several of a document."""

    def rows(self, source_record: SourceRecord) -> list[tuple[SourceRecord, Row]]:
        """Return the rows, each with its record, or raise UnusableRecordError."""


class RowSpool:
    """The rows of a source, in its order. Each record becomes rows or is quarantined."""

    def __init__(self, source: Source, maker: RowMaker, split: Split, spool: Path) -> None:
        self._source, self._maker, self._spool = source, maker, spool
        # of the source, for each row
        self._lines, self._records, self._files = array("Q"), array("Q"), array("L")
        self._file_names: list[str] = []
        self._rows: RowView[Row] | None = None
        self.pool = SplitIndex(split)
        self.read = 0
        self.reasons: Counter[str] = Counter()
        self.examples: dict[str, str] = {}
        """Of each reason for which a record could not be read, the first record."""

    def fill(self) -> Iterator[QuarantinedRecord]:
        """Spool the rows of the source; yield the quarantined records."""
        with self._spool.open("wb") as spool:
            for record in self._source.source_records():
                self.read += 1
                rows = record if isinstance(record, QuarantinedRecord) else self._rows_of(record)
                if isinstance(rows, QuarantinedRecord):
                    self.reasons[rows.reason] += 1
                    self.examples.setdefault(rows.reason, rows.shown)
                    yield rows.model_copy(update={"record": self.read})
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
        self.reasons[reason] += 1
        text = excerpt(self.text_of(number))
        line, record = self._lines[number], self._records[number]
        file = self._file_names[self._files[number]]
        return QuarantinedRecord(file=file, line=line, record=record, reason=reason, text=text)

    def _rows_of(self, source_record: SourceRecord) -> list[Row] | QuarantinedRecord:
        file = source_record.file or self._source.file
        try:
            rows = self._maker.rows(source_record)
        except UnusableRecordError as error:
            return source_record.quarantined(file, str(error))
        if self._file_names[-1:] != [file]:  # files are read one after the other
            self._file_names.append(file)
        for record, row in rows:
            self._lines.append(record.number)
            self._records.append(self.read)
            self._files.append(len(self._file_names) - 1)
            self.pool.add(record, row)
        return [row for _, row in rows]
