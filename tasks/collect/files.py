"""Data files: JSON, CSV, Parquet or Arrow, in this project or on S3; one, or a folder of them."""

import io
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO, Any, Literal

from pydantic import field_validator

from cohobate.errors import UserError
from cohobate.params import Section
from tasks.collect.data_folders import (
    PARTS,
    REMOTE,
    data_files,
    may_be_folder,
    part_of,
    s3_store,
    split_glob,
)
from tasks.collect.formats import known_format, records
from tasks.collect.openai_files import BatchReplies
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
        self,
        number: int,
        record: Mapping[str, Any] | BrokenRecord,
        part: str = "",
        file: str = "",
    ) -> SourceRecord | QuarantinedRecord:
        """Return a record with its keys, group and part, or quarantine it.

        Args:
            number: line or row, from 1.
            record: its columns.
            part: its part, where no column names it.
            file: the file that it is in, where there are several.
        """
        place = file or self.file
        if isinstance(record, BrokenRecord):
            return QuarantinedRecord(
                file=place, line=number, reason=record.reason, text=record.text
            )
        try:
            keys = (text_of(record, self.key),) if self.key else ()
            group = text_of(record, self.group) if self.group else ""
            return SourceRecord(number, record, keys, group, self._part(record) or part, file)
        except UnusableRecordError as error:
            text = excerpt(dict(record))
            return QuarantinedRecord(file=place, line=number, reason=str(error), text=text)

    def _part(self, record: Mapping[str, Any]) -> str:
        if self.split is None:
            return ""
        part = text_of(record, self.split)
        if part not in PARTS:
            raise UnusableRecordError(f"column {self.split!r} is not one of {', '.join(PARTS)}")
        return PARTS[part]


class DataFile(ColumnSource):
    """Data files; the template makes prompt and answer of their columns."""

    type: Literal["files"]
    path: str
    """A file below the project, or on S3 (`"s3://..."`): `.jsonl` or `.ndjson`, `.json` (an array,
    an object with a list, or lines), `.csv`, `.tsv`, each also as `.gz`, `.bz2`, `.xz` or `.zst`;
    `.parquet`, `.arrow` or `.feather`. Or a folder of such files, read in the order of their names:
    those named train, dev, validation, test or ood (`test-0001.jsonl`) are that part."""
    pattern: str = ""
    """Which files of the folder, such as `*.jsonl` or `**/chats-*.json.gz`; all where empty."""
    replies: str = ""
    """Which files of the folder are the output of OpenAI's batch API: their replies answer the
    requests of the other files, by `custom_id`."""
    encoding: str | None = None
    """Encoding of text files, such as `cp1252`; UTF-8, or what a byte-order mark says."""

    @field_validator("path")
    @classmethod
    def _known_format(cls, path: str) -> str:
        folder, pattern = split_glob(path)
        if pattern:
            raise ValueError(
                f"a folder and its files are two keys: path: {folder}, pattern: {pattern!r}"
            )
        if not may_be_folder(path):
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

    def source_records(self, inside: bool = True) -> Iterator[SourceRecord | QuarantinedRecord]:
        """Yield the records of the file or of all files, one at a time.

        Args:
            inside: whether a file outside the project is refused, as DVC does not see its changes.

        Raises:
            UserError: a file cannot be opened, is truncated, or lies outside the project.
        """
        with _readable(self.path):
            outputs = data_files(self.path, self.replies) if self.replies else []
            files = [f for f in data_files(self.path, self.pattern) if f not in outputs]
        replies = BatchReplies()
        for file in outputs:
            for number, record in self._records(file, inside):
                if unusable := replies.add(file, number, record):
                    yield self.source_record(number, unusable, file=file)
        for file in files:
            part = part_of(file.removeprefix(self.path)) if file != self.path else ""
            for number, record in self._records(file, inside):
                yield self.source_record(number, replies.join(record), part, file)
        yield from replies.without_request()

    def release(self) -> str:
        """Return the name of the data for the summary."""
        return Path(self.path).name

    def _records(self, path: str, inside: bool) -> Iterator[NumberedRecord]:
        with _readable(path), _opened(path, inside) as file:
            yield from records(path, file, self.encoding)


@contextmanager
def _readable(path: str) -> Iterator[None]:
    """Turn the errors of reading a file into a UserError."""
    try:
        yield
    except Exception as error:  # OSError, pyarrow's and botocore's have no common ancestor
        if isinstance(error, UserError):
            raise
        variables = " and the AWS_* variables" if path.startswith(REMOTE) else ""
        fix = f"check collect.source.path{variables}"
        raise UserError(
            f"cannot read the data: {_why(error)}",
            where=path,
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


def _opened(path: str, inside: bool) -> AbstractContextManager[IO[bytes]]:
    if not path.startswith(REMOTE):
        return (inside_project(path) if inside else Path(path)).open("rb")
    # s3fs' own readline takes no limit, and a line can be as long as the file
    return io.BufferedReader(s3_store().open(path, "rb"), _BUFFER)
