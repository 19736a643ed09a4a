"""JSON values one after the other, read from a stream; one that is broken costs only itself."""

import json
import re
from collections.abc import Iterator
from typing import Any

from tasks.collect.source_records import MAX_CHARACTERS, BrokenRecord, excerpt
from tasks.collect.text_stream import UNREADABLE, TextStream, not_decoded

BLANK = re.compile(r"[ \t\r\n\v\f]*")
BETWEEN = re.compile(r"[ \t\r\n\v\f,\x1e]*")  # \x1e: JSON text sequences (RFC 7464)
CUT_OFF = "the file was cut off here"
_TOO_LONG = f"an object of more than {MAX_CHARACTERS} characters"
_NO_END = "where it ends cannot be told, and nothing behind it is read"
_SHOWN = 200
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\]"]', re.DOTALL)
_SCALAR_END = re.compile(r"[,\]}\n]")
_BRACKET_OR_QUOTE = re.compile(r'[{}\[\]"]')
_IN_STRING = re.compile(r'\\.|"', re.DOTALL)


class Decoder(json.JSONDecoder):
    """Decodes JSON as data frames write it, NaN and Infinity included; no key may come twice."""

    def __init__(self) -> None:
        super().__init__(object_pairs_hook=self._members, parse_constant=float)
        self._twice = ""

    def value(self, text: str, at: int) -> tuple[Any, int]:
        """Return the value at a position, and its end; `BrokenRecord` where a key comes twice.

        Raises:
            ValueError: no JSON.
            RecursionError: nested too deeply.
        """
        self._twice = ""
        # `_members` sets `_twice`: it runs within this call
        value, end = self.raw_decode(text, at)
        return (BrokenRecord(self._twice, excerpt(text[at:end])) if self._twice else value), end

    def _members(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        members = dict(pairs)
        if len(members) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            self._twice = f"a key twice: {excerpt(twice)!r}"
        return members


def why_not(error: Exception) -> str:
    """Return the reason for text that a Decoder refused."""
    if not isinstance(error, json.JSONDecodeError):
        return "not JSON: nested too deeply, or a number too long"
    return f"not JSON: {error.msg.removesuffix(' at').removesuffix(' starting')}"


class Values:
    """The values ahead in a stream of text."""

    def __init__(self, text: TextStream) -> None:
        self._text, self._decoder = text, Decoder()

    def until(self, closing: str) -> Iterator[tuple[int, Any, str]]:
        """Yield line, value and beginning of each value, up to a bracket or the file's end."""
        text, value = self._text, None
        while (following := text.skip(BETWEEN)) not in (closing, ""):
            line, start = text.line, text.ahead[text.at : text.at + _SHOWN]
            value = self.next()
            yield line, value, start
        if following:
            text.advance(text.at + 1)
        elif closing and not (isinstance(value, BrokenRecord) and value.reason == CUT_OFF):
            yield text.line, BrokenRecord(CUT_OFF, ""), ""

    def next(self) -> Any:
        """Return the value ahead and go past it; `BrokenRecord` where it cannot be read."""
        text, margin = self._text, self._margin()
        while True:
            try:
                value, end = self._decoder.value(text.ahead, text.at)
            except (ValueError, RecursionError) as error:
                if self._goes_on(error) and text.more():
                    continue
                return self._leave(error, margin)
            if end == len(text.ahead) and text.more():
                continue  # a number may go on in the next block
            return self._checked(value, end)

    def _margin(self) -> str | None:
        """Return what stands before the value on its line, if that is blank."""
        text = self._text
        _, newline, margin = text.ahead[max(0, text.at - _SHOWN) : text.at].rpartition("\n")
        return margin if newline and not margin.strip() else None

    def _goes_on(self, error: Exception) -> bool:
        """Return whether the value may be sound, and go on beyond what is decoded."""
        text = self._text
        if len(text.ahead) - text.at > MAX_CHARACTERS or not isinstance(error, ValueError):
            return False
        return isinstance(error, json.JSONDecodeError) and (
            # 4: up to four letters of `false` may be decoded
            "Unterminated" in error.msg or error.pos >= len(text.ahead.rstrip()) - 4
        )

    def _checked(self, value: Any, end: int) -> Any:
        text = self._text
        raw = text.ahead[text.at : end]
        text.advance(end)
        if len(raw) > MAX_CHARACTERS:
            return BrokenRecord(_TOO_LONG, excerpt(raw))
        return (
            BrokenRecord(not_decoded(text.encoding), excerpt(raw)) if UNREADABLE in raw else value
        )

    def _leave(self, error: Exception, margin: str | None) -> BrokenRecord:
        """Go past a value that is no JSON."""
        text = self._text
        start = excerpt(text.ahead[text.at : text.at + _SHOWN])
        while (end := self._end(margin)) < 0:
            if len(text.ahead) - text.at > MAX_CHARACTERS:
                self._skip()
                return BrokenRecord(_TOO_LONG, start)
            if not text.more():
                whole = not self._goes_on(error)
                text.advance(len(text.ahead))
                return BrokenRecord(f"{why_not(error)}; {_NO_END}" if whole else CUT_OFF, start)
        text.advance(end)
        return BrokenRecord(why_not(error), start)

    def _end(self, margin: str | None) -> int:
        """Return where a value that is no JSON ends; -1 where that is not decoded yet.

        A value that begins its line ends before the next line that begins alike; otherwise where
        its brackets close, unless a stray quote hides them.
        """
        ahead, at = self._text.ahead, self._text.at
        if ahead[at] not in "{[":
            match = _SCALAR_END.search(ahead, at + 1)
            return match.start() if match else len(ahead) if self._text.ended else -1
        if margin is not None and (following := ahead.find(f"\n{margin}{ahead[at]}", at)) > 0:
            return following
        depth = 0
        for token in _TOKEN.finditer(ahead, at):
            # a whole string is one token, so brackets inside it do not count
            depth += (token[0] in "{[") - (token[0] in "}]")
            if depth == 0 or token[0] == '"':  # a quote alone: its string goes on out of sight
                return token.end() if depth == 0 else -1
        return -1

    def _skip(self) -> None:
        """Go past a value that is too long to be held."""
        text, depth, quoted = self._text, 0, False
        while True:
            match = (_IN_STRING if quoted else _BRACKET_OR_QUOTE).search(text.ahead, text.at)
            if not match:
                # a backslash at the end stays: it escapes the first character of the next block
                text.advance(len(text.ahead) - text.ahead.endswith("\\", text.at))
                if not text.more():
                    return
                continue
            text.advance(match.end())
            if match[0] == '"':
                quoted = not quoted
            elif not quoted:
                depth += 1 if match[0] in "{[" else -1
            if depth <= 0 and not quoted:
                return
