"""Your own data: a JSON, CSV, Parquet or Arrow file of this project, or on S3."""

import io
import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, Any, Literal

from pydantic import field_validator

from cohobate.errors import UserError
from cohobate.params import Section
from tasks.collect.examples import (
    Broken,
    Example,
    NoExampleError,
    Record,
    SetAside,
    UnreadableError,
    clipped,
    text_of,
)
from tasks.collect.formats import known_format, records

PARTS = {"train": "train", "dev": "dev", "validation": "dev", "test": "test", "ood": "ood"}
"""Names of splits, and the part that each becomes."""
_REMOTE = "s3://"
_BUFFER = 1 << 20


class Records(Section):
    """What sources of records with columns have in common."""

    group: str | None = None
    """Column with the class or topic of a record, for scores by group."""
    key: str | None = None
    """Column whose values must not stand on both sides of a split: a document, a patient."""
    split: str | None = None
    """Column that says train, dev, test or ood, where the data is split already."""
    licence: str = "unknown"
    """Terms on which the records may be used; kept with the data that is made of them."""

    @property
    def file(self) -> str:
        """Name of the file whose lines are counted."""
        raise NotImplementedError

    def notice(self) -> str:
        """Return the licence notice that the rows carry along: none, the data is yours."""
        return ""

    def example(
        self, number: int, record: Mapping[str, Any] | Broken, part: str = ""
    ) -> Example | SetAside:
        """Return a record as an example, or why it is none.

        Args:
            number: line or row, from 1.
            record: its columns.
            part: the split that it comes from, where no column says so.
        """
        if isinstance(record, Broken):
            return SetAside(file=self.file, line=number, reason=record.reason, text=record.text)
        try:
            keys = (text_of(record, self.key),) if self.key else ()
            group = text_of(record, self.group) if self.group else ""
            return Example(number, record, keys, group, self._part(record) or part)
        except NoExampleError as no:
            text = clipped(dict(record))
            return SetAside(file=self.file, line=number, reason=str(no), text=text)

    def _part(self, record: Mapping[str, Any]) -> str:
        if self.split is None:
            return ""
        part = text_of(record, self.split)
        if part not in PARTS:
            raise NoExampleError(f"column {self.split!r} is none of {', '.join(PARTS)}")
        return PARTS[part]


class Files(Records):
    """The records of one file; the template says which columns make prompt and answer."""

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
            raise ValueError("no encoding that Python knows, such as cp1252 or latin-1") from None
        return encoding

    @property
    def file(self) -> str:
        """Name of the file whose lines are counted."""
        return self.path

    def examples(self) -> Iterator[Example | SetAside]:
        """Yield the records of the file, one at a time, or why one is none.

        Raises:
            UserError: the file cannot be opened, or breaks off.
        """
        for number, record in self._records():
            yield self.example(number, record)

    def release(self) -> str:
        """Return what the summary says of the source."""
        return Path(self.path).name

    def _records(self) -> Iterator[Record]:
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
        UserError: it leads out of the project, where DVC could not follow changes.
    """
    root = Path.cwd().resolve()
    resolved = (root / path).resolve()
    if not resolved.is_relative_to(root):
        raise UserError(
            "data is read from within the project only",
            where=f"collect.source.path: {path}",
            fix="copy the file into the project, or give an s3:// URI",
        )
    return resolved.relative_to(root)


def _why(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    return str(error).strip() or type(error).__name__


def _opened(path: str) -> AbstractContextManager[IO[bytes]]:
    if not path.startswith(_REMOTE):
        file = inside_project(path)
        if file.is_dir():
            raise UnreadableError(
                "it is a folder, not a file",
                "name a file in it; for what save_to_disk wrote, give {type: datasets, path: ...}",
            )
        return file.open("rb")
    import s3fs

    store = s3fs.S3FileSystem(
        endpoint_url=os.environ.get("AWS_ENDPOINT_URL"),
        config_kwargs={"connect_timeout": 10, "retries": {"max_attempts": 2}},
    )
    # its own readline takes no limit, and a line can be as long as the file
    return io.BufferedReader(store.open(path, "rb"), _BUFFER)
