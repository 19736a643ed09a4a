"""Text of a file, decoded block by block, with numbered lines and lookahead.

Bytes that cannot be decoded become UNREADABLE, so that only their own record is lost.
"""

import codecs
import re
from collections.abc import Iterator
from typing import IO

from tasks.collect.source_records import MAX_CHARACTERS, BrokenRecord, excerpt

UNREADABLE = "\udcff"
"""Stands for bytes that could not be decoded; no encoding yields it otherwise."""
_BLOCK = 1 << 16
_TOO_LONG = f"a line of more than {MAX_CHARACTERS} characters"
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


def _unreadable(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return UNREADABLE, error.end


codecs.register_error("unreadable", _unreadable)


class TextStream:
    """The rest of a file: `ahead[at:]` is decoded, `more` decodes another block."""

    def __init__(self, file: IO[bytes], encoding: str | None = None) -> None:
        self._file = file
        head = file.read(_BLOCK)
        detected, mark = _encoding_of(head)
        # a byte-order mark is certain; the encoding by params comes before a guess
        self.encoding = detected if mark else encoding or detected
        self._decoder = codecs.getincrementaldecoder(self.encoding)("unreadable")
        self.ended = not head
        self.ahead = self._decoder.decode(head[mark:], self.ended)
        self.at = 0
        self.line = 1
        # classic Mac OS ends lines with a carriage return alone
        self.line_end = "\r" if "\r" in self.ahead and "\n" not in self.ahead else "\n"

    def more(self) -> bool:
        """Decode another block; return whether there was one. `ahead` then begins at `at`."""
        if self.ended:
            return False
        block = self._file.read(_BLOCK)
        self.ended = not block
        # what was read is dropped: no more is held than what is ahead and a block
        self.ahead = self.ahead[self.at :] + self._decoder.decode(block, self.ended)
        self.at = 0
        return True

    def see(self, characters: int) -> None:
        """Decode until more than `characters` are ahead, or the file ends."""
        while len(self.ahead) - self.at <= characters and self.more():
            pass

    def advance(self, to: int) -> None:
        """Advance to the position `to`."""
        self.line += self.ahead.count(self.line_end, self.at, to)
        self.at = to

    def skip(self, spaces: re.Pattern[str]) -> str:
        """Skip what `spaces` matches; return the next character, "" at the end."""
        while True:
            if match := spaces.match(self.ahead, self.at):
                self.advance(match.end())
            if self.at < len(self.ahead):
                return self.ahead[self.at]
            if not self.more():
                return ""

    def lines(self) -> Iterator[tuple[int, str | BrokenRecord]]:
        """Yield the numbered lines with their ends; too long ones as broken records."""
        while line := self._line(MAX_CHARACTERS):
            number, broken = self.line, None
            if len(line) > MAX_CHARACTERS and not line.endswith(self.line_end):
                broken = BrokenRecord(_TOO_LONG, excerpt(line))
            self.at += len(line)
            while broken and line and not line.endswith(self.line_end):
                line = self._line(_BLOCK)
                self.at += len(line)
            self.line += 1
            # concatenated files have byte-order marks inside
            yield number, broken or line.removeprefix("\ufeff")

    def _line(self, limit: int) -> str:
        """Return the line ahead with its end; of a longer one, `limit` characters and one."""
        searched = 0
        while True:
            end = self.ahead.find(self.line_end, self.at + searched)
            if end >= 0:
                return self.ahead[self.at : min(end, self.at + limit) + 1]
            # a long line is searched once, not from its start after each block
            searched = len(self.ahead) - self.at
            if searched > limit or not self.more():
                return self.ahead[self.at : self.at + limit + 1]


def not_decoded(encoding: str) -> str:
    """Return the reason for a record with bytes that cannot be decoded."""
    return f"not {encoding.upper()} (set collect.source.encoding to the encoding of the file)"


def _encoding_of(head: bytes) -> tuple[str, int]:
    """Return the encoding that a file begins with, and the length of its byte-order mark."""
    for mark, name in _MARKS:
        if head.startswith(mark):
            return name, len(mark)
    # ASCII in UTF-16: every other byte is zero
    if len(head) > 3 and head[0] and head[2] and head[1] == head[3] == 0:
        return "utf-16-le", 0
    if len(head) > 3 and head[1] and head[3] and head[0] == head[2] == 0:
        return "utf-16-be", 0
    return "utf-8", 0
