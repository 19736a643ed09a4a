"""Files by their names: formats, compressions, and what is none of them."""

import bz2
import gzip
import json
import lzma

import pyarrow as pa
import pytest

from cohobate.errors import UserError
from cohobate.params import ParamsError, validated
from tasks.collect.files import DataFile
from tasks.collect.source_records import SourceRecord

ROWS = [{"q": f"number {n}"} for n in range(5)]
LINES = b"".join(json.dumps(row).encode() + b"\n" for row in ROWS)
TABLE = b"q\n" + b"".join(b"%s\n" % row["q"].encode() for row in ROWS)


def columns(path: str, **options) -> list:
    source = validated(DataFile, {"type": "files", "path": path, **options}, "collect.source")
    records = list(source.source_records())
    assert all(isinstance(source_record, SourceRecord) for source_record in records)
    return [dict(source_record.columns) for source_record in records]


def zstandard(data: bytes) -> bytes:
    return pa.compress(data, codec="zstd", asbytes=True)


GZIPPED = gzip.compress(LINES, mtime=0)  # a time would make test names that differ between workers


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("rows.jsonl", LINES),
        ("rows.ndjson", LINES),
        ("ROWS.JSONL", LINES),
        ("rows.json", json.dumps(ROWS).encode()),
        ("rows.csv", TABLE),
        ("rows.v2.tsv", TABLE),
        ("rows.jsonl.gz", GZIPPED),
        ("rows.jsonl.gz", gzip.compress(LINES[:34], mtime=0) + gzip.compress(LINES[34:], mtime=0)),
        ("rows.json.bz2", bz2.compress(json.dumps(ROWS).encode())),
        ("rows.csv.xz", lzma.compress(TABLE)),
        ("rows.jsonl.zst", zstandard(LINES)),
        ("rows.jsonl.zst", zstandard(LINES[:34]) + zstandard(LINES[34:])),
    ],
)
def test_a_file_is_read_by_its_name(project, name, data):
    (project / name).write_bytes(data)
    assert columns(name) == ROWS


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("rows.xlsx", "a spreadsheet: in Excel, save it as CSV UTF-8"),
        ("rows.ods", "a spreadsheet: save it as CSV"),
        ("rows.zip", "an archive: unpack it"),
        ("rows.tar.gz", "an archive: unpack it"),
        ("rows.pkl", "a pickle, which can run code"),
        ("rows.txt", r"give a \.jsonl, \.ndjson, \.json, \.csv, \.tsv, \.parquet"),
        ("rows.parquet.gz", r"give a \.jsonl"),
        ("rows", r"give a \.jsonl"),
    ],
)
def test_another_format_is_refused_before_any_work(name, message):
    with pytest.raises(ParamsError, match=message):
        columns(name)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("rows.csv", b"PK\x03\x04 and more", "a spreadsheet or an archive"),
        ("rows.csv", b"\xd0\xcf\x11\xe0 and more", "an Excel workbook"),
        ("rows.jsonl", GZIPPED, r"compressed with gzip\n.*\n.*end its name with \.gz"),
        ("rows.jsonl", b"PAR1 and more PAR1", "a Parquet file"),
        ("rows.json", b"\n<!DOCTYPE html><html>", "a web page"),
        ("rows.jsonl", b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
        ("rows.parquet", b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
        ("rows.jsonl.gz", GZIPPED[:-9], "ended before"),
        ("rows.jsonl.gz", LINES, "Not a gzip"),
        ("rows.csv", b"q,q\n1,2\n", "names a column twice: q"),
    ],
)
def test_what_a_file_is_instead_is_said(project, name, data, message):
    (project / name).write_bytes(data)
    with pytest.raises(UserError, match=f"cannot read the data: (?s:.*){message}") as refused:
        columns(name)
    assert refused.value.where == name and refused.value.fix


def test_a_folder_is_no_file(project):
    (project / "rows.parquet").mkdir()
    with pytest.raises(UserError, match="a folder, not a file") as refused:
        columns("rows.parquet")
    assert "type: datasets" in refused.value.fix


def test_an_encoding_is_known_or_refused(project):
    (project / "rows.csv").write_bytes("q\ncafé\n".encode("cp1252"))
    assert columns("rows.csv", encoding="cp1252") == [{"q": "café"}]
    for unknown in ("klingon", "hex"):
        with pytest.raises(ParamsError, match="not an encoding that Python knows"):
            columns("rows.csv", encoding=unknown)
