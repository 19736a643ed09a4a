"""Records of a CSV or TSV file, as spreadsheets and data frames write it.

A quote that never closes costs the row in which it opens, not those after it.
"""

import csv
import re
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from typing import IO, Any

from tasks.collect.examples import MAX_CHARACTERS, Broken, Record, UnreadableError, clipped
from tasks.collect.text_stream import UNREADABLE, TextStream, not_decoded

_DELIMITERS = ",;\t|"
_SAMPLE = 50
_SEPARATOR_LINE = re.compile(r'"?sep=(.)"?\s*', re.IGNORECASE)  # a hint to Excel
_NEVER_CLOSES = "a quote opens here and never closes (a quote within a cell is written twice)"
_BEHIND_QUOTE = "text behind a closing quote (a quote within a cell is written twice)"


def csv_records(
    file: IO[bytes], encoding: str | None = None, delimiter: str | None = None
) -> Iterator[Record]:
    """Yield the rows below the header line; a quoted cell may hold line ends.

    A header that comes again, as where files were joined, is no row.

    Args:
        file: its bytes.
        encoding: its encoding, if it is none of Unicode's.
        delimiter: what separates cells; told by the first lines where it is not given.

    Raises:
        UnreadableError: the header cannot be read, or names a column twice.
    """
    csv.field_size_limit(MAX_CHARACTERS)
    text = TextStream(file, encoding)
    lines = text.lines()
    if hint := _SEPARATOR_LINE.fullmatch(text.ahead.partition("\n")[0]):
        delimiter = hint[1]
        next(lines)
    rows = _Rows(lines, *_layout(text, delimiter))
    header: list[str] | None = None
    for number, cells in rows:
        if header is None:
            header = _header(number, cells, text.encoding)
            rows.width = len(header)
        elif isinstance(cells, Broken):
            yield number, cells
        elif [cell.strip() for cell in cells] == header:
            yield number, Broken("the header again", clipped(",".join(cells)))
        else:
            yield number, _record(header, cells, text.encoding)


def _layout(text: TextStream, delimiter: str | None) -> tuple[str, bool]:
    """Return the delimiter, and whether blanks follow it that belong to no cell.

    It is the one by which most of the first rows have as many cells as the header; blanks belong
    to no cell where quotes come behind them.
    """
    sample = text.ahead[text.at :].splitlines(keepends=True)
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


def _header(number: int, cells: list[str] | Broken, encoding: str) -> list[str]:
    fix = "repair the first line of the file: one name for each column"
    if isinstance(cells, Broken):
        raise UnreadableError(f"the header, line {number}: {cells.reason}", fix)
    if UNREADABLE in "".join(cells):
        raise UnreadableError(f"the header, line {number}, is {not_decoded(encoding)}", fix)
    names = [cell.strip() for cell in cells]
    twice = [name for name, count in Counter(names).items() if name and count > 1]
    if twice:
        raise UnreadableError(
            f"the header, line {number}, names a column twice: {clipped(', '.join(twice))}",
            "rename or remove one of the columns",
        )
    return names


def _record(header: list[str], cells: list[str], encoding: str) -> Mapping[str, Any] | Broken:
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
        # a column without a name, such as a data frame's index, can be named by nobody
        return {name: cell for name, cell in zip(header, cells, strict=False) if name}
    return Broken(reason, clipped(",".join(cells)))


class _Rows:
    """Rows of cells, each with the line at which it begins."""

    def __init__(
        self, lines: Iterable[tuple[int, str | Broken]], delimiter: str, spaced: bool
    ) -> None:
        self._lines, self._delimiter, self._spaced = iter(lines), delimiter, spaced
        self._again: deque[tuple[int, str | Broken]] = deque()  # lines to be read once more
        self._taken: list[tuple[int, str]] = []  # lines of the row at hand
        self.width = 0
        """Cells of the header, once it is known."""

    def __iter__(self) -> Iterator[tuple[int, list[str] | Broken]]:
        reader = self._reader()
        while line := self._next():
            number, content = line
            if isinstance(content, Broken):
                yield line[0], content
                continue
            self._again.appendleft(line)
            self._taken.clear()
            try:
                cells = next(reader, [])
            except csv.Error as error:
                yield number, self._set_aside(str(error))
                reader = self._reader()
                continue
            if len(self._taken) > 1 and self._swallowed_rows(cells):
                yield number, self._set_aside("")
            elif cells:
                yield number, cells

    def _reader(self) -> Iterator[list[str]]:
        return csv.reader(
            self._feed(), delimiter=self._delimiter, skipinitialspace=self._spaced, strict=True
        )

    def _feed(self) -> Iterator[str]:
        while line := self._next():
            number, content = line
            if isinstance(content, Broken):
                self._again.appendleft(line)
                return
            self._taken.append((number, content))
            yield content

    def _next(self) -> tuple[int, str | Broken] | None:
        return self._again.popleft() if self._again else next(self._lines, None)

    def _set_aside(self, error: str) -> Broken:
        """Give up the line at which the row begins, and read on with the next one."""
        (_, first), *others = self._taken
        self._again.extendleft(reversed(others))
        if "new-line" in error:
            return Broken("a carriage return within a cell that is not quoted", clipped(first))
        alone = not others and "expected after" in error
        return Broken(_BEHIND_QUOTE if alone else _NEVER_CLOSES, clipped(first))

    def _swallowed_rows(self, cells: list[str]) -> bool:
        """Say whether a cell of several lines is what lies between two quotes that never close.

        Each line is then a whole row, and the last quote stands where one would open.
        """
        place = next((n for n, cell in enumerate(cells) if "\n" in cell or "\r" in cell), None)
        if place is None or self.width < 2:
            return False
        if not cells[place].endswith((self._delimiter, "\n", "\r")):
            return False
        counts = [line.count(self._delimiter) + 1 for line in re.split("\r\n|\n|\r", cells[place])]
        counts[0] += place
        counts[-1] += len(cells) - place - 1
        return all(count == self.width for count in counts)
