"""Records of a CSV or TSV file, as spreadsheets and data frames write it.

A quote that never closes quarantines only the row in which it opens.
"""

import csv
import re
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from typing import IO, Any

from tasks.collect.source_records import (
    MAX_CHARACTERS,
    BrokenRecord,
    NumberedRecord,
    UnreadableError,
    excerpt,
)
from tasks.collect.text_stream import UNREADABLE, TextStream, not_decoded

_DELIMITERS = ",;\t|"
_SAMPLE = 50
_SEPARATOR_LINE = re.compile(r'"?sep=(.)"?\s*', re.IGNORECASE)  # a hint to Excel
_NEVER_CLOSES = "a quote opens here and never closes (a quote within a cell is written twice)"
_BEHIND_QUOTE = "text after a closing quote (a quote within a cell is written twice)"


def csv_records(
    file: IO[bytes], encoding: str | None = None, delimiter: str | None = None
) -> Iterator[NumberedRecord]:
    """Yield the rows below the header line; a quoted cell may hold line ends.

    A repeated header, as in concatenated files, is quarantined.

    Args:
        file: its bytes.
        encoding: its encoding, if not a Unicode one.
        delimiter: what separates cells; detected from the first lines where it is not given.

    Raises:
        UnreadableError: the header cannot be read, or two columns have one name.
    """
    csv.field_size_limit(MAX_CHARACTERS)
    text = TextStream(file, encoding)
    lines = text.lines()
    # a first line such as sep=; tells Excel the delimiter
    if hint := _SEPARATOR_LINE.fullmatch(text.ahead.partition("\n")[0]):
        delimiter = hint[1]
        next(lines)
    rows = _Rows(lines, *_layout(text, delimiter))
    header: list[str] | None = None
    for number, cells in rows:
        if header is None:
            header = _header(number, cells, text.encoding)
            rows.width = len(header)
        elif isinstance(cells, BrokenRecord):
            yield number, cells
        elif [cell.strip() for cell in cells] == header:
            yield number, BrokenRecord("repeated header", excerpt(",".join(cells)))
        else:
            yield number, _record(header, cells, text.encoding)


def _layout(text: TextStream, delimiter: str | None) -> tuple[str, bool]:
    """Return the delimiter, and whether blanks after it are to be skipped.

    The delimiter is the one with which most of the first rows have as many cells as the header.
    Blanks are skipped where quotes follow them.
    """
    sample = text.ahead[text.at :].splitlines(keepends=True)
    # the last line may be cut by the end of the block
    sample = [line for line in sample[: None if text.ended else -1] if line.strip()][:_SAMPLE]
    delimiter = delimiter or max(_DELIMITERS, key=lambda candidate: _share(sample, candidate))
    spaced = re.compile(rf'{re.escape(delimiter)} +"(?!"|\s*(?:$|{re.escape(delimiter)}))')
    return delimiter, any(map(spaced.search, sample))


def _share(sample: list[str], delimiter: str) -> float:
    """Return the share of rows that have as many cells as the first, if that is several."""
    try:
        rows = list(csv.reader(sample, delimiter=delimiter, skipinitialspace=True))
    except csv.Error:
        return 0
    if not rows or len(rows[0]) < 2:
        return 0
    return sum(len(row) == len(rows[0]) for row in rows) / len(rows)


def _header(number: int, cells: list[str] | BrokenRecord, encoding: str) -> list[str]:
    fix = "repair the first line of the file: one name for each column"
    if isinstance(cells, BrokenRecord):
        raise UnreadableError(f"the header, line {number}: {cells.reason}", fix)
    if UNREADABLE in "".join(cells):
        raise UnreadableError(f"the header, line {number}, is {not_decoded(encoding)}", fix)
    names = [cell.strip() for cell in cells]
    twice = [name for name, count in Counter(names).items() if name and count > 1]
    if twice:
        raise UnreadableError(
            f"the header, line {number}, names a column twice: {excerpt(', '.join(twice))}",
            "rename or remove one of the columns",
        )
    return names


def _record(header: list[str], cells: list[str], encoding: str) -> Mapping[str, Any] | BrokenRecord:
    whole = "".join(cells)
    if UNREADABLE in whole:
        reason = not_decoded(encoding)
    elif "\0" in whole:
        reason = "a cell holds a zero byte"
    elif len(cells) < len(header):
        reason = "fewer cells than the header (an empty cell needs its delimiter too)"
    elif any(cells[len(header) :]):
        reason = "more cells than the header (a cell that holds the delimiter needs quotes)"
    else:
        # a column without a name, such as a data frame's index, cannot be used in a template
        return {name: cell for name, cell in zip(header, cells, strict=False) if name}
    return BrokenRecord(reason, excerpt(",".join(cells)))


class _Rows:
    """Rows of cells, each with the line at which it begins."""

    def __init__(
        self, lines: Iterable[tuple[int, str | BrokenRecord]], delimiter: str, spaced: bool
    ) -> None:
        self._lines, self._delimiter, self._spaced = iter(lines), delimiter, spaced
        self._again: deque[tuple[int, str | BrokenRecord]] = deque()  # lines to be read again
        self._taken: list[tuple[int, str]] = []  # lines of the current row
        self.width = 0
        """Cells of the header, once it is known."""

    def __iter__(self) -> Iterator[tuple[int, list[str] | BrokenRecord]]:
        reader = self._reader()
        while line := self._next():
            number, content = line
            if isinstance(content, BrokenRecord):
                yield line[0], content
                continue
            # the csv module takes lines itself: it gets this one again, and more within quotes
            self._again.appendleft(line)
            self._taken.clear()
            try:
                cells = next(reader, [])
            except csv.Error as error:
                yield number, self._give_up_row(str(error))
                reader = self._reader()  # the old one is still within the quotes
                continue
            if len(self._taken) > 1 and self._swallowed_rows(cells):
                yield number, self._give_up_row("")
            elif cells:
                yield number, cells

    def _reader(self) -> Iterator[list[str]]:
        return csv.reader(
            self._feed(), delimiter=self._delimiter, skipinitialspace=self._spaced, strict=True
        )

    def _feed(self) -> Iterator[str]:
        while line := self._next():
            number, content = line
            if isinstance(content, BrokenRecord):
                self._again.appendleft(line)
                return
            self._taken.append((number, content))
            yield content

    def _next(self) -> tuple[int, str | BrokenRecord] | None:
        return self._again.popleft() if self._again else next(self._lines, None)

    def _give_up_row(self, error: str) -> BrokenRecord:
        """Quarantine the line at which the row begins, and go on with the next one."""
        (_, first), *others = self._taken
        # only the first line is lost: the others are read again as rows
        self._again.extendleft(reversed(others))
        if "new-line" in error:
            return BrokenRecord(
                "a carriage return within a cell that is not quoted", excerpt(first)
            )
        alone = not others and "expected after" in error
        return BrokenRecord(_BEHIND_QUOTE if alone else _NEVER_CLOSES, excerpt(first))

    def _swallowed_rows(self, cells: list[str]) -> bool:
        """Return whether a cell of several lines is the text between two unclosed quotes.

        Each of its lines is then a whole row, and the last quote is at the start of a cell.
        """
        place = next((n for n, cell in enumerate(cells) if "\n" in cell or "\r" in cell), None)
        if place is None or self.width < 2:
            return False
        if not cells[place].endswith((self._delimiter, "\n", "\r")):
            return False
        counts = [line.count(self._delimiter) + 1 for line in re.split("\r\n|\n|\r", cells[place])]
        # the row's cells before and behind this one belong to its first and last line
        counts[0] += place
        counts[-1] += len(cells) - place - 1
        return all(count == self.width for count in counts)
