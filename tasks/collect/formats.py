"""File formats by their endings, and advice for files of other formats."""

import bz2
import gzip
import io
import lzma
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import PurePosixPath
from typing import IO, Any, cast

from tasks.collect.arrow_records import arrow_records, parquet_records
from tasks.collect.csv_records import csv_records
from tasks.collect.json_records import json_records
from tasks.collect.source_records import NumberedRecord, UnreadableError

FORMATS: dict[str, Callable[[IO[bytes], str | None], Iterator[NumberedRecord]]] = {
    ".jsonl": json_records,
    ".ndjson": json_records,
    ".json": partial(json_records, document=True),
    ".csv": csv_records,
    ".tsv": partial(csv_records, delimiter="\t"),
    ".parquet": parquet_records,
    ".arrow": arrow_records,
    ".feather": arrow_records,
}
_BINARY = frozenset({".parquet", ".arrow", ".feather"})
_EXCEL = "in Excel, save it as CSV UTF-8 (.csv)"
_OTHERS = {
    ".xlsx": f"a spreadsheet: {_EXCEL}",
    ".xlsm": f"a spreadsheet: {_EXCEL}",
    ".xls": f"a spreadsheet: {_EXCEL}",
    ".ods": "a spreadsheet: save it as CSV in UTF-8",
    ".zip": "an archive: unpack it",
    ".tar": "an archive: unpack it",
    ".tgz": "an archive: unpack it",
    ".pkl": "a pickle, which can run code: write it with df.to_parquet(path)",
    ".pickle": "a pickle, which can run code: write it with df.to_parquet(path)",
}
_CONTENTS = (
    (b"PK\x03\x04", "a spreadsheet or an archive", f"{_EXCEL}, or unpack it"),
    (b"\xd0\xcf\x11\xe0", "an Excel workbook", _EXCEL),
    (b"\x1f\x8b", "compressed with gzip", "end its name with .gz"),
    (b"\x28\xb5\x2f\xfd", "compressed with Zstandard", "end its name with .zst"),
    (b"PAR1", "a Parquet file", "end its name with .parquet"),
    (b"ARROW1", "an Arrow file", "end its name with .arrow"),
    (b"version https://git-lfs", "a pointer of Git LFS, not the data", "git lfs pull"),
    (b"<!doctype html", "a web page", "fetch the file itself, not the page that shows it"),
    (b"<html", "a web page", "fetch the file itself, not the page that shows it"),
)


def _zstandard(file: IO[bytes]) -> IO[bytes]:
    import pyarrow

    return cast(IO[bytes], pyarrow.CompressedInputStream(file, "zstd"))


_COMPRESSIONS: dict[str, Callable[[Any], Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": _zstandard,
}


def known_format(path: str) -> str:
    """Return the ending of a file's format, without that of a compression.

    Raises:
        ValueError: the ending is not that of a known format.
    """
    *_, before, last = ["", "", *PurePosixPath(path.lower()).suffixes]
    ending = before if last in _COMPRESSIONS else last
    if ending in FORMATS and not (ending in _BINARY and last in _COMPRESSIONS):
        return ending
    kinds = f"give a {', '.join(FORMATS)} file, text also as {', '.join(_COMPRESSIONS)}"
    raise ValueError(f"{_OTHERS[ending]}; {kinds}" if ending in _OTHERS else kinds)


def records(path: str, file: IO[bytes], encoding: str | None) -> Iterator[NumberedRecord]:
    """Yield the records of a file.

    Args:
        path: its name; the ending decides the format.
        file: its bytes.
        encoding: of a text file, if not a Unicode encoding.

    Raises:
        UnreadableError: no record of it can be read.
    """
    ending = known_format(path)
    opened = _COMPRESSIONS.get(PurePosixPath(path.lower()).suffix, lambda plain: plain)(file)
    if ending not in _BINARY:
        opened = io.BufferedReader(opened)
        _refuse_others(opened.peek(64)[:64].lstrip().lower())
    elif file.read(64).startswith(b"version https://git-lfs"):
        _refuse_others(b"version https://git-lfs")
    else:
        file.seek(0)
    yield from FORMATS[ending](opened, encoding)


def _refuse_others(head: bytes) -> None:
    for beginning, kind, fix in _CONTENTS:
        if head.startswith(beginning.lower()):
            raise UnreadableError(f"the file is {kind}", fix)
