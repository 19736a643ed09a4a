"""Records of a JSON file: JSON lines, an array, objects one after the other, a list under a key.

What the file is shows at its beginning, whatever its name. No more is held than a record.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import IO, Any

from cohobate.progress import say
from tasks.collect.json_values import BETWEEN, BLANK, CUT_OFF, Decoder, Values, why_not
from tasks.collect.source_records import (
    MAX_CHARACTERS,
    BrokenRecord,
    NumberedRecord,
    UnreadableError,
    excerpt,
)
from tasks.collect.text_stream import UNREADABLE, TextStream, not_decoded

_LIST_OF_OBJECTS = re.compile(r"\[[ \t\r\n]*\{")
_LISTS = frozenset(
    {"data", "rows", "records", "examples", "items", "instances", "samples", "entries"}
)
_LISTS |= {"dataset", "train", "test", "validation", "dev"}
"""Keys whose list of objects is the file's records."""
_OF_A_ROW = frozenset({"messages", "conversations", "conversation", "dialogue", "dialog", "chat"})
_OF_A_ROW |= {"turns", "prompt", "completion", "chosen", "rejected", "tools"}
"""Keys whose list of objects belongs to one record."""
_BEGINS_LIST = re.compile(rf'\{{\s*"(?:columns|schema|{"|".join(sorted(_LISTS))})"\s*:\s*[\[{{]')
_VIEWER_ROW = frozenset({"row_idx", "row", "truncated_cells"})  # of the hub's data set viewer
_AS_LINES = 'write one object a line, as df.to_json(path, orient="records", lines=True) does'


def json_records(
    file: IO[bytes], encoding: str | None = None, document: bool = False
) -> Iterator[NumberedRecord]:
    """Yield the records of a JSON file.

    Args:
        file: its bytes.
        encoding: its encoding, if it is none of Unicode's.
        document: whether its name says that it is one JSON value rather than one a line.

    Raises:
        UnreadableError: the file holds columns instead of records, or two lists.
    """
    text = TextStream(file, encoding)
    first = text.skip(BLANK)
    # what the file is shows in as much text as a record may have
    text.see(MAX_CHARACTERS)
    if _is_lines(text, first, document):
        yield from _lines(text)
    elif first == "[":
        if not document:
            say("a JSON array, where one object a line is usual; its elements are the records")
        text.advance(text.at + 1)
        yield from _records(Values(text), "]")
    elif _is_single(text):
        yield from _Document(text, document).records()
    else:
        yield from _records(Values(text), "")


def _is_lines(text: TextStream, first: str, document: bool) -> bool:
    """Say whether the file holds one value a line: by its first line and what follows."""
    if first not in ("[", "{"):
        return True
    end = text.ahead.find(text.line_end, text.at)
    line = text.ahead[text.at : end if end >= 0 else len(text.ahead)]
    # a whole value on the first line, and more below it: JSON lines
    if (end >= 0 or text.ended) and _is_json(line.rstrip().removesuffix(",")):
        return end >= 0 and (not text.ended or bool(text.ahead[end:].strip()))
    if document or line.strip() == "[" or _BEGINS_LIST.match(line):
        return False
    # no JSON on the first line: a broken record of JSON lines, unless a value of several lines
    # begins here
    return (first == "{" and len(line) > MAX_CHARACTERS) or not _begins_value(text, first)


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _begins_value(text: TextStream, first: str) -> bool:
    """Say whether the beginning is that of an object, or of an array, of several lines."""
    # of an array its first element decides
    blank = BLANK.match(text.ahead, text.at + (first == "["))
    start = blank.end() if blank else text.at
    if first == "[" and text.ahead.startswith("]", start):
        return True
    try:
        _, end = json.JSONDecoder().raw_decode(text.ahead, start)
    except json.JSONDecodeError as error:
        # an error at the end of what is decoded: the value may go on
        return not text.ended and error.pos >= len(text.ahead.rstrip()) - 1
    except (ValueError, RecursionError):
        return False
    following = text.ahead[end:].lstrip()[:1]
    return first == "{" or following in (",", "]")


def _is_single(text: TextStream) -> bool:
    """Say whether the object ahead is the only value of the file."""
    try:
        _, end = json.JSONDecoder().raw_decode(text.ahead, text.at)
    except (ValueError, RecursionError):
        return True
    return not text.ahead[end:].strip()


def _lines(text: TextStream) -> Iterator[NumberedRecord]:
    """Yield the record of each line; whole objects may follow each other on one."""
    decoder = Decoder()
    for number, line in text.lines():
        if isinstance(line, BrokenRecord):
            yield number, line
        elif UNREADABLE in line:
            yield number, BrokenRecord(not_decoded(text.encoding), excerpt(line))
        else:
            for record in _on_line(decoder, line.rstrip(" \t\r\n\v\f")):
                yield number, record


def _on_line(decoder: Decoder, line: str) -> list[Mapping[str, Any] | BrokenRecord]:
    records: list[Mapping[str, Any] | BrokenRecord] = []
    at = len(line) - len(line.lstrip(" \t\r\n\v\f"))
    while at < len(line):
        try:
            value, at = decoder.value(line, at)
        except (ValueError, RecursionError) as error:
            return [BrokenRecord(why_not(error), excerpt(line))]
        records.append(_record(value, line))
        between = BETWEEN.match(line, at)
        at = between.end() if between else at
    # several objects on a line are records; anything else beside one makes the line an error
    if len(records) > 1 and any(isinstance(record, BrokenRecord) for record in records):
        return [BrokenRecord("not JSON: Extra data", excerpt(line))]
    return records


def _record(value: Any, raw: str) -> Mapping[str, Any] | BrokenRecord:
    if isinstance(value, BrokenRecord):
        return value
    if not isinstance(value, dict):
        twice = isinstance(value, str) and value.lstrip().startswith(("{", "["))
        why = "JSON written as a text: it was encoded twice" if twice else "not a JSON object"
        return BrokenRecord(why, excerpt(raw))
    if value.keys() == _VIEWER_ROW and isinstance(value["row"], dict):
        cut = "cells cut off by the hub's viewer (truncated_cells)"
        return BrokenRecord(cut, excerpt(raw)) if value["truncated_cells"] else value["row"]
    return value


def _records(values: Values, closing: str) -> Iterator[NumberedRecord]:
    for line, value, raw in values.until(closing):
        yield line, _record(value, raw)


class _Document:
    """A file that is one object: a record, or records under a key.

    {"data": [{...}, ...]}, pandas' {"columns": [...], "data": [[...], ...]} and {"0": {...}, ...};
    {"q": {"0": ..., "1": ...}, ...} and {"q": [..., ...], ...} are held whole, a column up to the
    length of a record.
    """

    def __init__(self, text: TextStream, document: bool) -> None:
        self._text, self._values, self._document = text, Values(text), document
        self._others: dict[str, Any] = {}
        self._source = ""
        """Key of the list, or of the first record, that is read."""

    def records(self) -> Iterator[NumberedRecord]:
        """Yield its records."""
        text, line = self._text, self._text.line
        text.advance(text.at + 1)
        while (following := text.skip(BETWEEN)) not in ("}", ""):
            key = self._key()
            # a list of records is read one by one; anything else is held until the end decides
            if self._holds_records(key):
                yield from self._under(key)
            # {"0": {...}, "1": {...}}: a data frame by rows
            elif key.isdigit() and text.ahead[text.at] == "{":
                self._source = self._source or key
                yield text.line, _record(self._values.next(), key)
            else:
                twice = BrokenRecord(f"a key twice: {excerpt(key)!r}", "")
                value = self._values.next()
                self._others[key] = twice if key in self._others else value
        if not following:
            yield text.line, BrokenRecord(CUT_OFF, "")
            return
        text.advance(text.at + 1)
        if text.skip(BETWEEN):
            raise UnreadableError(f"text after the object, line {text.line}", _AS_LINES)
        if not self._source:
            yield from ((line, record) for record in self._whole())

    def _key(self) -> str:
        text = self._text
        line, key = text.line, self._values.next()
        if not isinstance(key, str) or text.skip(BLANK) != ":":
            raise UnreadableError(f"not JSON: no key and value at line {line}", _AS_LINES)
        text.advance(text.at + 1)
        if not text.skip(BLANK):
            raise UnreadableError(f"{CUT_OFF}, line {text.line}", "fetch the file again")
        text.see(256)
        return key

    def _holds_records(self, key: str) -> bool:
        text = self._text
        if key == "data" and text.ahead[text.at] == "[" and self._columns():
            return True
        return bool(_LIST_OF_OBJECTS.match(text.ahead, text.at)) and (
            key in _LISTS or (self._document and key not in _OF_A_ROW)
        )

    def _columns(self) -> list[str]:
        columns = self._others.get("columns")
        return columns if isinstance(columns, list) else []

    def _under(self, key: str) -> Iterator[NumberedRecord]:
        if self._source:
            raise UnreadableError(
                f"two lists of records: {self._source!r} and {key!r}",
                "give each a file of its own, or one list whose records name their split in a "
                "column (collect.source.split)",
            )
        self._source = key
        self._text.advance(self._text.at + 1)
        for line, value, raw in self._values.until("]"):
            yield line, self._named(value, raw)

    def _named(self, value: Any, raw: str) -> Mapping[str, Any] | BrokenRecord:
        columns = self._columns()
        if not isinstance(value, list) or not columns:
            return _record(value, raw)
        if len(value) != len(columns):
            return BrokenRecord("not as many cells as columns", excerpt(raw))
        return dict(zip(columns, value, strict=True))

    def _whole(self) -> Iterator[Mapping[str, Any] | BrokenRecord]:
        """Yield the object as a record, or the records of its columns."""
        members = self._others
        if broken := [value for value in members.values() if isinstance(value, BrokenRecord)]:
            if len(members) > 1 and all(value.text[:1] in ("{", "[") for value in broken):
                raise UnreadableError(f"columns: {broken[0].reason}", _AS_LINES)
            yield broken[0]
        elif len(members) > 1 and not members.keys() & _OF_A_ROW and (columns := _columns(members)):
            for cells in zip(*columns, strict=True):
                yield dict(zip(members, cells, strict=True))
        else:
            yield members


def _columns(members: Mapping[str, Any]) -> list[list[Any]]:
    """Return the columns of a data frame, {"q": ["x", ...]} or {"q": {"0": "x", ...}}.

    Raises:
        UnreadableError: objects that may be columns, or records.
    """
    values = list(members.values())
    if all(isinstance(value, dict) and value for value in values):
        # columns of one frame have the same row labels, in one order
        if len({tuple(value) for value in values}) > 1:
            return []
        if not all(key.isdigit() for key in values[0]):
            raise UnreadableError("objects under keys: records, or columns?", _AS_LINES)
        values = [list(value.values()) for value in values]
    if not all(isinstance(value, list) and len(value) > 1 for value in values):
        return []
    cells = [cell for value in values for cell in value]
    # columns of one length and of plain cells; anything else is one record that holds lists
    same = len({len(value) for value in values}) == 1
    return values if same and not any(isinstance(cell, dict | list) for cell in cells) else []
