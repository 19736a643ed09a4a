"""The records of a file, one at a time, whatever its bytes: JSON lines, CSV, Parquet."""

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import IO, Any

from tasks.collect.examples import MAX_CHARACTERS, clipped

_BLOCK = 1 << 16
_TOO_LONG = f"a line of more than {MAX_CHARACTERS} bytes"


@dataclass(frozen=True)
class Broken:
    """A record that cannot be read."""

    reason: str
    text: str


Record = tuple[int, Mapping[str, Any] | Broken]


def json_lines(file: IO[bytes]) -> Iterator[Record]:
    """Yield the object on each line that is not blank."""
    for number, line in _lines(file):
        if isinstance(line, Broken) or line.strip():
            yield number, line if isinstance(line, Broken) else _object(line)


def _object(line: bytes) -> Mapping[str, Any] | Broken:
    try:
        value = json.loads(line.decode(), object_pairs_hook=_once, parse_constant=_no_number)
    except UnicodeDecodeError:
        return Broken("not UTF-8", clipped(line))
    except _TwiceError:
        return Broken("a key twice", clipped(line))
    except (ValueError, RecursionError):
        return Broken("not JSON", clipped(line))
    if not isinstance(value, dict):
        return Broken("not a JSON object", clipped(line))
    return value


class _TwiceError(Exception):
    """An object names a key twice: which value is meant is anyone's guess."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise _TwiceError
    return found


def _no_number(spelt: str) -> float:
    raise ValueError(f"{spelt} is no JSON")


def csv_rows(file: IO[bytes]) -> Iterator[Record]:
    """Yield the rows below the header line; a quoted field may hold line ends."""
    csv.field_size_limit(MAX_CHARACTERS)
    broken: list[Broken] = []  # lines of the row at hand that could not be read
    rows = csv.reader(_text_lines(file, broken))
    header: list[str] | None = None
    while True:
        start = rows.line_num + 1
        try:
            fields = next(rows, None)
        except csv.Error as error:
            fields = []
            broken.append(Broken(f"not CSV: {error}", ""))
        if fields is None:
            return
        if broken:
            yield start, broken[0]
            broken.clear()
        elif header is None:
            header = fields
        elif fields:
            yield start, _named(header, fields)


def _named(header: list[str], fields: list[str]) -> Mapping[str, Any] | Broken:
    if len(fields) != len(header):
        found = "fewer" if len(fields) < len(header) else "more"
        return Broken(f"{found} fields than the header", clipped(",".join(fields)))
    return dict(zip(header, fields, strict=True))


def _text_lines(file: IO[bytes], broken: list[Broken]) -> Iterator[str]:
    for _, line in _lines(file):
        try:
            if isinstance(line, Broken):
                broken.append(line)
            else:
                yield line.decode()
                continue
        except UnicodeDecodeError:
            broken.append(Broken("not UTF-8", clipped(line)))
        yield "-\n"  # keeps the count of lines, and makes a row to report


def parquet_rows(file: IO[bytes]) -> Iterator[Record]:
    """Yield the rows of a Parquet file, a thousand in memory at a time."""
    import pyarrow.parquet as pq

    number = 0
    for batch in pq.ParquetFile(file).iter_batches(batch_size=1024):
        for record in batch_rows(batch):
            number += 1
            yield number, record


def batch_rows(batch: Any) -> Iterator[Mapping[str, Any] | Broken]:
    """Yield the rows of an Arrow table; what cannot be read is broken, row by row."""
    try:
        yield from batch.to_pylist()
    except ValueError as error:  # bytes that are no UTF-8, a date no calendar knows
        if batch.num_rows == 1:
            yield Broken(f"unreadable: {type(error).__name__}", "")
            return
        for row in range(batch.num_rows):
            yield from batch_rows(batch.slice(row, 1))


FORMATS: dict[str, Callable[[IO[bytes]], Iterator[Record]]] = {
    "jsonl": json_lines,
    "csv": csv_rows,
    "parquet": parquet_rows,
}


def _lines(file: IO[bytes]) -> Iterator[tuple[int, bytes | Broken]]:
    """Yield the numbered lines of a file; of a line that is too long, only the beginning."""
    number = 0
    while line := file.readline(MAX_CHARACTERS + 1):
        number += 1
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if len(line) > MAX_CHARACTERS and not line.endswith(b"\n"):
            while rest := file.readline(_BLOCK):
                if rest.endswith(b"\n"):
                    break
            yield number, Broken(_TOO_LONG, clipped(line))
        else:
            yield number, line
