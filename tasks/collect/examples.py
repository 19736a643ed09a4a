"""What a source yields: an example, or a record that is none and why."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any

from pydantic import BaseModel, ConfigDict

MAX_CHARACTERS = 1 << 20
"""A longer line, cell or prompt is no prompt."""
_SHOWN = 200


class NoExampleError(Exception):
    """A record that no row can be made of; the text is the reason, the same for like cases."""


class UnreadableError(Exception):
    """A file of which no record can be read: what is wrong with it, and how to fix it."""

    def __init__(self, what: str, fix: str) -> None:
        super().__init__(what)
        self.fix = fix


@dataclass(frozen=True)
class Broken:
    """A record that cannot be read."""

    reason: str
    text: str


@dataclass(frozen=True)
class BrokenCell:
    """A value of a table that cannot be read; it matters where a template names its column."""

    error: str


Record = tuple[int, Mapping[str, Any] | Broken]
"""Line (row of a table), from 1, and columns."""


@dataclass(frozen=True)
class Example:
    """A record of a source."""

    number: int
    """Line of the file (row of a Parquet file), from 1."""
    columns: Mapping[str, Any]
    """What a template can name."""
    keys: tuple[str, ...] = ()
    """Examples that share a key never stand on both sides of a split. The first one is drawn by."""
    group: str = ""
    part: str = ""
    """Part that the source itself puts the example in: train, dev, test or nothing."""


class SetAside(BaseModel):
    """A record that became no row: a line of quarantine.jsonl.

    {"file": "questions.jsonl", "line": 17, "record": 16, "reason": "a key twice: 'answer'",
     "text": "{\\"question\\": "}
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    file: str
    line: int
    """Line at which the record begins; row of a table. From 1."""
    record: int = 0
    """Number of the record, from 1: a line can hold several, and a record several lines."""
    reason: str
    text: str
    """The beginning of the record."""


def clipped(record: object) -> str:
    """Return the beginning of a record as text that any file can hold."""
    if isinstance(record, bytes):
        return record[:_SHOWN].decode("utf-8", "replace").rstrip("\r\n")
    text = record if isinstance(record, str) else repr(record)
    return text[:_SHOWN].encode("utf-8", "replace").decode()


def text_of(columns: Mapping[str, Any], name: str) -> str:
    """Return a column as text; numbers and truth values as JSON spells them, no value as "".

    Raises:
        NoExampleError: there is no such column, or it holds no text.
    """
    if name not in columns:
        raise NoExampleError(
            f"no column {name!r} (there are: {', '.join(sorted(columns))[:_SHOWN]})"
        )
    value = columns[name]
    if value is None:
        return ""
    if isinstance(value, bool | int) or (isinstance(value, float) and isfinite(value)):
        return json.dumps(value)
    if not isinstance(value, str):
        raise NoExampleError(f"column {name!r} holds {kind_of(value)} where text is needed")
    return storable(value)


def storable(text: str) -> str:
    """Return `text` if UTF-8 can hold it.

    Raises:
        NoExampleError: it has half a surrogate pair.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise NoExampleError("half a surrogate pair, which UTF-8 cannot hold") from None
    return text


def kind_of(value: object) -> str:
    """Return what a value is, in the words of JSON."""
    if isinstance(value, float):
        return "a number" if isfinite(value) else json.dumps(value)
    if isinstance(value, BrokenCell):
        return f"what cannot be read ({value.error})"
    names = {dict: "an object", list: "a list", bytes: "bytes", str: "text", int: "a number"}
    names |= {type(None): "null", bool: "true or false"}
    return names.get(type(value), type(value).__name__)
