"""Files by their names: formats, compressions, and what is none of them."""

import bz2
import gzip
import json
import lzma
from pathlib import Path

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
        ("rows.json", LINES),
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


def write(folder: Path, files: dict[str, str]) -> None:
    for name, question in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"q": question}) + "\n")


def records_of(path: str, **options) -> list[tuple]:
    source = validated(DataFile, {"type": "files", "path": path, **options}, "collect.source")
    return [(r.file, r.columns["q"], r.part) for r in source.source_records()]


def test_a_folder_is_read_in_the_order_of_names(project, capsys):
    files = {"b.jsonl": "2", "a.jsonl": "1", "c/a.json": "3", "README.md": "", ".a.jsonl": ""}
    write(project / "chats", files)
    expected = [("chats/a.jsonl", "1", ""), ("chats/b.jsonl", "2", ""), ("chats/c/a.json", "3", "")]
    assert records_of("chats") == records_of("chats/") == expected
    assert "chats: 1 files are no data files: README.md" in capsys.readouterr().err
    assert records_of("chats", pattern="*.jsonl") == expected[:2]
    assert records_of("chats", pattern="**/a.js*") == [expected[0], expected[2]]


def test_files_named_as_splits_are_these_parts(project):
    files = {
        "train.jsonl": "",
        "validation.jsonl": "dev",
        "test/a.jsonl": "test",
        "ood.json": "ood",
    }
    write(project / "data", files | {"test-00001-of-2.jsonl": "test", "tested.jsonl": ""})
    assert all(question in (part, "") for _, question, part in records_of("data"))
    assert sorted(part for *_, part in records_of("data")) == [
        *("", "dev", "ood", "test", "test", "train")
    ]


def test_a_folder_without_data_and_a_saved_data_set_are_named(project):
    (project / "rows.parquet").mkdir()
    with pytest.raises(UserError, match=r"no data file in the folder .it holds nothing"):
        columns("rows.parquet")
    write(project / "rows.parquet", {"state.json": "", "part-0.jsonl": "1"})
    with pytest.raises(UserError, match="a data set that save_to_disk wrote") as refused:
        columns("rows.parquet")
    assert "type: datasets" in refused.value.fix
    write(project / "chats", {"a.jsonl": "1"})
    with pytest.raises(UserError, match=r"no data file in the folder matches '\*.csv' .it holds a"):
        columns("chats", pattern="*.csv")
    with pytest.raises(UserError, match="a pattern needs a folder"):
        columns("chats/a.jsonl", pattern="*.csv")
    with pytest.raises(UserError, match="file not found"):
        columns("nowhere")
    with pytest.raises(ParamsError, match=r"two keys: path: chats, pattern: '\*\*/a.jsonl'"):
        columns("chats/**/a.jsonl")


def test_a_link_in_a_folder_that_leads_out_of_the_project_is_refused(project, tmp_path):
    write(tmp_path / "elsewhere", {"a.jsonl": "1"})
    write(project / "chats", {"b.jsonl": "2"})
    (project / "chats/a.jsonl").symlink_to(tmp_path / "elsewhere/a.jsonl")
    with pytest.raises(UserError, match="outside the project"):
        columns("chats")


def lines(*records: dict) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def test_the_output_of_a_batch_answers_its_input(project):
    folder = project / "batch"
    folder.mkdir()
    requests = [{"custom_id": f"r{n}", "body": {"messages": []}} for n in range(3)]
    replies = [{"custom_id": f"r{n}", "response": {"body": n}, "error": None} for n in (2, 0, 9)]
    (folder / "input.jsonl").write_text(lines(*requests))
    (folder / "output.jsonl").write_text(lines(*replies, replies[0], {"response": {}}) + "{")
    spelt = {"type": "files", "path": "batch", "replies": "output*.jsonl"}
    source = validated(DataFile, spelt, "collect.source")
    read = list(source.source_records())
    joined = [r.columns.get("response") for r in read if isinstance(r, SourceRecord)]
    assert joined == [{"body": 0}, None, {"body": 2}]
    unusable = [(r.line, r.reason) for r in read if not isinstance(r, SourceRecord)]
    assert unusable == [
        (4, "a second reply of a batch with one custom_id"),
        (5, "a line of a batch's output without 'custom_id'"),
        (6, "not JSON: Expecting property name enclosed in double quotes"),
        (3, "a reply of a batch without its request: no other file has the custom_id"),
    ]


def test_an_encoding_is_known_or_refused(project):
    (project / "rows.csv").write_bytes("q\ncafé\n".encode("cp1252"))
    assert columns("rows.csv", encoding="cp1252") == [{"q": "café"}]
    for unknown in ("klingon", "hex"):
        with pytest.raises(ParamsError, match="not an encoding that Python knows"):
            columns("rows.csv", encoding=unknown)
