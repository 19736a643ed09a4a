"""Text of a file, decoded block by block: its encoding, its numbered lines, and a view ahead.

Bytes that the encoding does not know become UNREADABLE, so that only their own record is lost.
"""

import codecs
import re
from collections.abc import Iterator
from typing import IO

from tasks.collect.examples import MAX_CHARACTERS, Broken, clipped

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
    """What is left of a file: `ahead[at:]` is decoded, and `more` decodes another block."""

    def __init__(self, file: IO[bytes], encoding: str | None = None) -> None:
        self._file = file
        head = file.read(_BLOCK)
        found, mark = _encoding_of(head)
        self.encoding = found if mark else encoding or found
        self._decoder = codecs.getincrementaldecoder(self.encoding)("unreadable")
        self.ended = not head
        self.ahead = self._decoder.decode(head[mark:], self.ended)
        self.at = 0
        self.line = 1
        # spreadsheets of the first Macs end their lines with a carriage return alone
        self.line_end = "\r" if "\r" in self.ahead and "\n" not in self.ahead else "\n"

    def more(self) -> bool:
        """Decode another block, and say whether there was one; `ahead` then begins at `at`."""
        if self.ended:
            return False
        block = self._file.read(_BLOCK)
        self.ended = not block
        self.ahead = self.ahead[self.at :] + self._decoder.decode(block, self.ended)
        self.at = 0
        return True

    def see(self, characters: int) -> None:
        """Decode until more than so many characters are ahead, or the file ends."""
        while len(self.ahead) - self.at <= characters and self.more():
            pass

    def advance(self, to: int) -> None:
        """Leave what is before the position `to` behind."""
        self.line += self.ahead.count(self.line_end, self.at, to)
        self.at = to

    def skip(self, spaces: re.Pattern[str]) -> str:
        """Leave what `spaces` matches behind; return the next character, "" where none is left."""
        while True:
            if found := spaces.match(self.ahead, self.at):
                self.advance(found.end())
            if self.at < len(self.ahead):
                return self.ahead[self.at]
            if not self.more():
                return ""

    def lines(self) -> Iterator[tuple[int, str | Broken]]:
        """Yield the numbered lines with their ends; of one that is too long, the beginning."""
        while line := self._line(MAX_CHARACTERS):
            number, broken = self.line, None
            if len(line) > MAX_CHARACTERS and not line.endswith(self.line_end):
                broken = Broken(_TOO_LONG, clipped(line))
            self.at += len(line)
            while broken and line and not line.endswith(self.line_end):
                line = self._line(_BLOCK)
                self.at += len(line)
            self.line += 1
            # files that were joined have their marks within
            yield number, broken or line.removeprefix("\ufeff")

    def _line(self, limit: int) -> str:
        """Return the line ahead with its end; of a longer one, `limit` characters and one."""
        searched = 0
        while True:
            end = self.ahead.find(self.line_end, self.at + searched)
            if end >= 0:
                return self.ahead[self.at : min(end, self.at + limit) + 1]
            searched = len(self.ahead) - self.at
            if searched > limit or not self.more():
                return self.ahead[self.at : self.at + limit + 1]


def not_decoded(encoding: str) -> str:
    """Return the reason for a record with bytes that the encoding does not know."""
    return f"not {encoding.upper()} (another encoding: name it in collect.source.encoding)"


def _encoding_of(head: bytes) -> tuple[str, int]:
    """Return the encoding that a file begins with, and the length of its byte-order mark."""
    for mark, name in _MARKS:
        if head.startswith(mark):
            return name, len(mark)
    if len(head) > 3 and head[0] and head[2] and head[1] == head[3] == 0:
        return "utf-16-le", 0
    if len(head) > 3 and head[1] and head[3] and head[0] == head[2] == 0:
        return "utf-16-be", 0
    return "utf-8", 0
