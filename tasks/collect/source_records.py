"""Records of a source: usable ones, and quarantined ones with a reason."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any

from pydantic import BaseModel, ConfigDict

MAX_CHARACTERS = 1 << 20
"""Largest length of a line, a cell or a prompt."""
EMPTY: tuple[Any, ...] = (None, "", [], {}, "[]", "{}", "null")
"""Values that stand for none."""
_SHOWN = 200


class UnusableRecordError(Exception):
    """No row can be made of a record; the text is the reason, the same for similar cases."""


class UnreadableError(Exception):
    """No record of a file can be read; `fix` says how to repair it."""

    def __init__(self, problem: str, fix: str) -> None:
        super().__init__(problem)
        self.fix = fix


@dataclass(frozen=True)
class BrokenRecord:
    """A record that cannot be parsed."""

    reason: str
    text: str


@dataclass(frozen=True)
class BrokenCell:
    """A table cell that cannot be read; an error only where a template names its column."""

    error: str


NumberedRecord = tuple[int, Mapping[str, Any] | BrokenRecord]
"""Number of the line (or row of a table), from 1, and the columns."""


class QuarantinedRecord(BaseModel):
    """A record that was not made into a row: a line of quarantine.jsonl.

    {"file": "questions.jsonl", "line": 17, "record": 16, "reason": "a key twice: 'answer'",
     "text": "{\\"question\\": "}
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    file: str
    line: int
    """Line at which the record begins (or row of a table), from 1."""
    record: int = 0
    """Number of the record, from 1: a line can hold several, and a record several lines."""
    reason: str
    text: str
    """The beginning of the record."""

    @property
    def description(self) -> str:
        """The place of the record and its beginning, on one line."""
        return f"{self.file}, line {self.line}: {' '.join(self.text.split())}"


@dataclass(frozen=True)
class SourceRecord:
    """A record of a source."""

    number: int
    """Line of the file (row of a Parquet file), from 1."""
    columns: Mapping[str, Any]
    """The columns that a template can name."""
    keys: tuple[str, ...] = ()
    """Records that share a key never end on both sides of a split. The first decides the draw."""
    group: str = ""
    part: str = ""
    """Part that the source itself assigns: train, dev, test, ood or none."""
    file: str = ""
    """The file of a source that has several."""

    def quarantined(self, file: str, reason: str) -> QuarantinedRecord:
        """Return the record with the reason for which no row can be made of it."""
        text = excerpt(dict(self.columns))
        return QuarantinedRecord(file=file, line=self.number, reason=reason, text=text)


def excerpt(record: object) -> str:
    """Return the beginning of a record as valid UTF-8."""
    if isinstance(record, bytes):
        return record[:_SHOWN].decode("utf-8", "replace").rstrip("\r\n")
    text = record if isinstance(record, str) else repr(record)
    return text[:_SHOWN].encode("utf-8", "replace").decode()


def text_of(columns: Mapping[str, Any], name: str) -> str:
    """Return a column as text: numbers and booleans as in JSON, null as "".

    Raises:
        UnusableRecordError: there is no such column, or it holds no text.
    """
    if name not in columns:
        raise UnusableRecordError(
            f"no column {name!r} (there are: {', '.join(sorted(columns))[:_SHOWN]})"
        )
    value = columns[name]
    if value is None:
        return ""
    if isinstance(value, bool | int) or (isinstance(value, float) and isfinite(value)):
        return json.dumps(value)
    if not isinstance(value, str):
        raise UnusableRecordError(f"column {name!r} holds {json_type(value)} where text is needed")
    return storable(value)


def storable(text: str) -> str:
    """Return `text` if it can be written as UTF-8.

    Raises:
        UnusableRecordError: it has half a surrogate pair.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UnusableRecordError("half a surrogate pair, which UTF-8 cannot hold") from None
    return text


def json_type(value: object) -> str:
    """Return the JSON type of a value, for messages."""
    if isinstance(value, float):
        return "a number" if isfinite(value) else json.dumps(value)
    if isinstance(value, BrokenCell):
        return f"a value that cannot be read ({value.error})"
    names = {dict: "an object", list: "a list", bytes: "bytes", str: "text", int: "a number"}
    names |= {type(None): "null", bool: "true or false"}
    return names.get(type(value), type(value).__name__)
