"""Spool of rows: a source's records made into rows on disk, and the index for the split."""

from array import array
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from cohobate.data.messages import Prompt
from cohobate.data.records import Row, row_id
from cohobate.data.row_files import RowView
from tasks.collect.raw_text import RawText
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


class Rendering(Protocol):
    """Makes a prompt and an answer of the columns of a record."""

    def render(self, columns: Mapping[str, Any]) -> tuple[Prompt, str | None]:
        """Return prompt and answer, or raise UnusableRecordError."""


class RowSpool:
    """The rows of a source, in its order. Each record becomes a row or is quarantined."""

    def __init__(
        self, source: Source, template: Rendering | RawText, split: Split, spool: Path
    ) -> None:
        self._source, self._template, self._spool = source, template, spool
        self._lines, self._records = array("Q"), array("Q")  # of the source, for each row
        self._rows: RowView[Row] | None = None
        self.pool = SplitIndex(split)
        self.read = 0
        self.reasons: Counter[str] = Counter()

    def fill(self) -> Iterator[QuarantinedRecord]:
        """Spool the rows of the source; yield the quarantined records."""
        with self._spool.open("wb") as spool:
            for record in self._source.source_records():
                self.read += 1
                rows = record if isinstance(record, QuarantinedRecord) else self._rows_of(record)
                if isinstance(rows, QuarantinedRecord):
                    self.reasons[rows.reason] += 1
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
        file = self._source.file
        return QuarantinedRecord(file=file, line=line, record=record, reason=reason, text=text)

    def _rows_of(self, source_record: SourceRecord) -> list[Row] | QuarantinedRecord:
        try:
            if isinstance(self._template, RawText):
                rows = self._template.rows(source_record)
            else:
                rows = [(source_record, self._row(self._template, source_record))]
        except UnusableRecordError as error:
            text = excerpt(dict(source_record.columns))
            file = self._source.file
            return QuarantinedRecord(
                file=file, line=source_record.number, reason=str(error), text=text
            )
        for record, row in rows:
            self._lines.append(record.number)
            self._records.append(self.read)
            self.pool.add(record, row)
        return [row for _, row in rows]

    def _row(self, template: Rendering, source_record: SourceRecord) -> Row:
        prompt, answer = template.render(source_record.columns)
        return Row(
            id=row_id(prompt),
            prompt=prompt,
            answer=answer,
            group=source_record.group,
            origin="none" if answer is None else "ground_truth",
        )
