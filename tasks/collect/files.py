"""Data files: JSON, CSV, Parquet or Arrow, in this project or on S3."""

import io
import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, Any, Literal

from pydantic import field_validator

from cohobate.errors import UserError
from cohobate.params import Section
from tasks.collect.formats import known_format, records
from tasks.collect.source_records import (
    BrokenRecord,
    NumberedRecord,
    QuarantinedRecord,
    SourceRecord,
    UnreadableError,
    UnusableRecordError,
    excerpt,
    text_of,
)

PARTS = {"train": "train", "dev": "dev", "validation": "dev", "test": "test", "ood": "ood"}
"""Names of splits, and the part that each stands for."""
_REMOTE = "s3://"
_BUFFER = 1 << 20


class ColumnSource(Section):
    """Base class of the sources whose records have columns."""

    group: str | None = None
    """Column with the class or topic of a record, for scores by group."""
    key: str | None = None
    """Column whose values must not end on both sides of a split: a document, a patient."""
    split: str | None = None
    """Column with train, dev, test or ood, where the data is split already."""
    licence: str = "unknown"
    """Licence of the records; recorded with the data made of them."""

    @property
    def file(self) -> str:
        """Name of the file whose lines are counted."""
        raise NotImplementedError

    def notice(self) -> str:
        """Return the licence notice to write beside the rows: none for your own data."""
        return ""

    def source_record(
        self, number: int, record: Mapping[str, Any] | BrokenRecord, part: str = ""
    ) -> SourceRecord | QuarantinedRecord:
        """Return a record with its keys, group and part, or quarantine it.

        Args:
            number: line or row, from 1.
            record: its columns.
            part: its part, where no column names it.
        """
        if isinstance(record, BrokenRecord):
            return QuarantinedRecord(
                file=self.file, line=number, reason=record.reason, text=record.text
            )
        try:
            keys = (text_of(record, self.key),) if self.key else ()
            group = text_of(record, self.group) if self.group else ""
            return SourceRecord(number, record, keys, group, self._part(record) or part)
        except UnusableRecordError as error:
            text = excerpt(dict(record))
            return QuarantinedRecord(file=self.file, line=number, reason=str(error), text=text)

    def _part(self, record: Mapping[str, Any]) -> str:
        if self.split is None:
            return ""
        part = text_of(record, self.split)
        if part not in PARTS:
            raise UnusableRecordError(f"column {self.split!r} is not one of {', '.join(PARTS)}")
        return PARTS[part]


class DataFile(ColumnSource):
    """One data file; the template makes prompt and answer of its columns."""

    type: Literal["files"]
    path: str
    """A file below the project, or on S3 (`"s3://..."`): `.jsonl` or `.ndjson`, `.json` (an array,
    or an object with a list), `.csv`, `.tsv`, each also as `.gz`, `.bz2`, `.xz` or `.zst`;
    `.parquet`, `.arrow` or `.feather`."""
    encoding: str | None = None
    """Encoding of a text file, such as `cp1252`; UTF-8, or what its byte-order mark says."""

    @field_validator("path")
    @classmethod
    def _known_format(cls, path: str) -> str:
        known_format(path)
        return path

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, encoding: str | None) -> str | None:
        try:
            b"-".decode(encoding or "utf-8", "replace")
        except LookupError:
            raise ValueError(
                "not an encoding that Python knows, such as cp1252 or latin-1"
            ) from None
        return encoding

    @property
    def file(self) -> str:
        """Name of the file whose lines are counted."""
        return self.path

    def source_records(self) -> Iterator[SourceRecord | QuarantinedRecord]:
        """Yield the records of the file, one at a time.

        Raises:
            UserError: the file cannot be opened, or is truncated.
        """
        for number, record in self._records():
            yield self.source_record(number, record)

    def release(self) -> str:
        """Return the name of the data for the summary."""
        return Path(self.path).name

    def _records(self) -> Iterator[NumberedRecord]:
        try:
            with _opened(self.path) as file:
                yield from records(self.path, file, self.encoding)
        except Exception as error:  # OSError, pyarrow's and botocore's have no common ancestor
            if isinstance(error, UserError):
                raise
            variables = " and the AWS_* variables" if self.path.startswith(_REMOTE) else ""
            fix = f"check collect.source.path{variables}"
            raise UserError(
                f"cannot read the data: {_why(error)}",
                where=self.path,
                fix=error.fix if isinstance(error, UnreadableError) else fix,
            ) from error


def inside_project(path: str) -> Path:
    """Return a path of params.yaml, relative to the project's root.

    Raises:
        UserError: it lies outside the project, where DVC does not see changes.
    """
    root = Path.cwd().resolve()
    resolved = (root / path).resolve()
    if not resolved.is_relative_to(root):
        raise UserError(
            "the data file is outside the project",
            where=f"collect.source.path: {path}",
            fix="copy the file into the project, or give an s3:// URI",
        )
    return resolved.relative_to(root)


def _why(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "file not found"
    return str(error).strip() or type(error).__name__


def _opened(path: str) -> AbstractContextManager[IO[bytes]]:
    if not path.startswith(_REMOTE):
        file = inside_project(path)
        if file.is_dir():
            raise UnreadableError(
                "a folder, not a file",
                "name a file in it; for what save_to_disk wrote, give {type: datasets, path: ...}",
            )
        return file.open("rb")
    import s3fs

    store = s3fs.S3FileSystem(
        endpoint_url=os.environ.get("AWS_ENDPOINT_URL"),
        config_kwargs={"connect_timeout": 10, "retries": {"max_attempts": 2}},
    )
    # s3fs' own readline takes no limit, and a line can be as long as the file
    return io.BufferedReader(store.open(path, "rb"), _BUFFER)
