import hashlib
import json
import re
import tempfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cohobate.data.records import COLLECT, DEV, LABELLED, TEST, UNLABELLED, Row, read_rows
from cohobate.errors import UserError
from cohobate.params import ParamsError, validated
from tasks.collect.stage import CollectParams, run

SIZES = {"labelled": 6, "unlabelled": 30, "dev": 3, "test": 5}
ANSWERED = (LABELLED, DEV, TEST)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def collect(
    path: str = "data.jsonl",
    template: dict | None = None,
    split: dict | None = None,
    replay: dict | None = None,
    **source,
):
    spelt = {
        "replay": replay or {},
        "source": {"type": "files", "path": path, **source},
        "template": {"prompt": "Q: {question}\nA:", **(template or {})},
        "split": SIZES | (split or {}),
    }
    run(validated(CollectParams, spelt, "collect"))
    return json.loads((COLLECT / "summary.json").read_text())


def record(n: int, **more) -> dict:
    return {"question": f"what is {n} times {n * n + 7}", "answer": f"a{n % 3}", "id": n} | more


def write(path: Path, records: list, junk: bytes = b"") -> None:
    path.write_bytes(b"".join(json.dumps(r).encode() + b"\n" for r in records) + junk)


def quarantine() -> list[dict]:
    return [json.loads(line) for line in (COLLECT / "quarantine.jsonl").open("rb")]


def adds_up(summary: dict) -> bool:
    parts = (
        "labelled",
        "unlabelled",
        "dev",
        "test",
        "set_aside",
        "withheld_for_shared_key",
        "unused",
    )
    return summary["read"] == sum(summary[part] for part in parts)


def test_a_file_is_split_and_answers_beyond_the_labelled_rows_are_nowhere(project):
    write(
        project / "data.jsonl",
        [record(n, answer=f"secret{n}", topic=f"secret{n}") for n in range(60)],
    )
    summary = collect(group="topic", template={"answer": " {topic}"})
    assert {name: summary[name] for name in SIZES} == SIZES
    assert adds_up(summary) and summary["set_aside"] == 0 and summary["unused"] == 16
    for path in ANSWERED:
        for row in read_rows(path, Row):
            assert row.answer == f" {row.group}" and row.origin == "ground_truth"
    assert all(r.answer is None and r.origin == "none" for r in read_rows(UNLABELLED, Row))
    hidden = b"".join(p.read_bytes() for p in COLLECT.iterdir() if p not in ANSWERED)
    assert b"secret" not in hidden


def test_a_topic_that_is_not_the_answer_stays(project):
    write(project / "data.jsonl", [record(n, topic=n % 2 == 0) for n in range(60)])
    collect(group="topic")
    assert {row.group for row in read_rows(UNLABELLED, Row)} == {"true", "false"}


def test_rows_without_an_answer_are_unlabelled_only(project):
    write(
        project / "data.jsonl", [record(n, answer="a" if n % 3 == 0 else None) for n in range(90)]
    )
    summary = collect(split={"unlabelled": 1000})
    assert (summary["labelled"], summary["unlabelled"], summary["unused"]) == (6, 76, 0)


def test_the_same_records_are_the_same_bytes_in_every_format(project):
    import pyarrow as pa
    import pyarrow.parquet as pq

    records = [record(n) for n in range(60)]
    write(project / "data.jsonl", records)
    (project / "data.csv").write_text(
        "question,answer,id\n"
        + "".join(f"{r['question']},{r['answer']},{r['id']}\n" for r in records)
    )
    table = pa.Table.from_pylist(records)
    pq.write_table(table, project / "data.parquet")
    with pa.ipc.new_stream(str(project / "data.arrow"), table.schema) as writer:
        writer.write_table(table)
    (project / "data.json").write_text(json.dumps(records, indent=1))
    digests = []
    for kind in ("jsonl", "jsonl", "csv", "parquet", "arrow", "json"):
        path = f"data.{kind}"
        collect(path)
        files = [*ANSWERED, UNLABELLED]
        digests.append(hashlib.sha256(b"".join(p.read_bytes() for p in files)).hexdigest())
    assert len(set(digests)) == 1
    assert not list(COLLECT.glob("*.partial"))


def test_broken_records_are_set_aside_with_line_and_reason(project):
    bad = [
        b'{"question": "no end',
        b'{"question": "\xff"}',
        json.dumps({"query": "x"}).encode(),
        json.dumps(record(1, question=None)).encode(),
        json.dumps(record(1, answer={"a": 1})).encode(),
        b'{"question": "' + b"x" * 10_000_000 + b'", "answer": "a"}',
        json.dumps(record(3)).encode(),
    ]
    write(project / "data.jsonl", [record(n) for n in range(60)], b"\n".join(bad) + b"\n")
    summary = collect()
    lines = quarantine()
    assert [(q["line"], q["reason"]) for q in lines] == [
        (61, "not JSON: Unterminated string"),
        (62, "not UTF-8 (set collect.source.encoding to the encoding of the file)"),
        (63, "no column 'question' (there are: query)"),
        (64, "a column of the prompt is empty"),
        (65, "column 'answer' holds an object where text is needed"),
        (66, "a line of more than 1048576 characters"),
        (67, "duplicate prompt"),
    ]
    assert all(q["file"] == "data.jsonl" and len(q["text"]) <= 200 for q in lines)
    assert lines[0]["text"] == '{"question": "no end'
    assert summary["set_aside"] == 7 and adds_up(summary)
    assert summary["set aside: not JSON: Unterminated string"] == 1


def test_a_source_can_bring_its_own_split(project):
    parts = {0: "test", 1: "validation"}
    write(project / "data.jsonl", [record(n, part=parts.get(n % 10, "train")) for n in range(60)])
    summary = collect_marked()
    assert (summary["test"], summary["dev"], summary["labelled"]) == (6, 6, 6)
    tests = {row.prompt for row in read_rows(TEST, Row)}
    assert tests == {f"Q: {record(n)['question']}\nA:" for n in range(0, 60, 10)}
    write(project / "data.jsonl", [record(n, part="training") for n in range(60)])
    with pytest.raises(UserError, match="'part' is not one of train, dev, validation, test"):
        collect_marked()


def collect_marked() -> dict:
    spelt = {
        "source": {"type": "files", "path": "data.jsonl", "split": "part"},
        "template": {"prompt": "Q: {question}\nA:"},
        "split": SIZES | {"test": 100, "dev": 100},
    }
    run(validated(CollectParams, spelt, "collect"))
    return json.loads((COLLECT / "summary.json").read_text())


def test_too_few_rows_are_refused_with_the_counts_and_a_fix(project):
    write(project / "data.jsonl", [record(n) for n in range(9)], b"junk\n")
    with pytest.raises(UserError) as refused:
        collect()
    message = str(refused.value)
    assert "1 rows for labelled, 6 needed (10 records read, 9 of them usable)" in message
    assert "1 x not JSON: Expecting value" in message and "collect.split" in message
    assert len(quarantine()) == 1


def test_a_file_with_no_usable_record_is_refused_with_the_reasons(project):
    write(project / "data.jsonl", [{"text": "x", "label": 1}] * 20)
    with pytest.raises(UserError, match=r"20 x no column 'question' \(there are: label, text\)"):
        collect()
    assert len(quarantine()) == 20


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nowhere.jsonl", "file not found"),
        ("../data.jsonl", "outside the project"),
        ("bad.parquet", "cannot read"),
    ],
)
def test_a_file_that_cannot_be_read_is_a_clear_error(project, path, message):
    (project / "bad.parquet").write_bytes(b"PAR1 and then nothing of use PAR1")
    with pytest.raises(UserError, match=message):
        collect(path)
    assert not (COLLECT / "summary.json").exists()


def test_a_link_out_of_the_project_is_not_followed(project, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "secret.jsonl"
    write(elsewhere, [record(n) for n in range(60)])
    (project / "data.jsonl").symlink_to(elsewhere)
    with pytest.raises(UserError, match="outside the project"):
        collect()


def test_an_unknown_format_is_refused_before_any_work(project):
    with pytest.raises(ParamsError, match=r"a spreadsheet: in Excel, save it as CSV UTF-8"):
        collect("data.xlsx")


def test_conversations_become_rows(project):
    turns = [
        {
            "messages": [
                {"role": "user", "content": record(n)["question"]},
                {"role": "assistant", "content": "yes"},
            ]
        }
        for n in range(60)
    ]
    write(project / "data.jsonl", [*turns, {"messages": [{"role": "robot", "content": "hm"}]}])
    summary = collect(template={"prompt": "{messages}"})
    assert summary["set_aside"] == 1
    row = next(read_rows(TEST, Row))
    assert row.answer == "yes" and row.prompt[0].role == "user"


class Bucket(BaseHTTPRequestHandler):
    """An S3 bucket as far as reading it goes: its objects have one content."""

    content = b""
    keys = ("data.jsonl", "folder/b.jsonl", "folder/a.jsonl", "folder/notes.md")

    def do_HEAD(self) -> None:
        exists = self.path.removeprefix("/bucket/") in self.keys
        byte_range = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        first, last = map(int, byte_range.groups()) if byte_range else (0, len(self.content))
        body = self.content[first : last + 1] if exists else b""
        self.send_response((206 if byte_range else 200) if exists else 404)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", '"1"')
        self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_GET(self) -> None:
        query = parse_qs(urlsplit(self.path).query)
        if "list-type" not in query:
            self.do_HEAD()
            return
        (prefix,) = query.get("prefix", [""])
        keys = [key for key in self.keys if key.startswith(prefix)]
        size = f"<Size>{len(self.content)}</Size>"
        entries = "".join(f"<Contents><Key>{key}</Key>{size}</Contents>" for key in keys)
        body = f"<ListBucketResult>{entries}</ListBucketResult>".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Bucket]]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Bucket)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    yield Bucket
    server.shutdown()


def test_a_file_on_s3_is_read_as_one_on_disk_is(project, bucket):
    long = json.dumps(record(0, answer="x" * 3_000_000)).encode()
    write(project / "data.jsonl", [record(n) for n in range(60)], long + b"\njunk")
    bucket.content = (project / "data.jsonl").read_bytes()
    collect()
    here = {path.name: path.read_bytes() for path in COLLECT.glob("*.jsonl")}
    collect("s3://bucket/data.jsonl")
    there = {path.name: path.read_bytes() for path in COLLECT.glob("*.jsonl")}
    assert there.pop("quarantine.jsonl") == here.pop("quarantine.jsonl").replace(
        b'"data.jsonl"', b'"s3://bucket/data.jsonl"'
    )
    assert here == there
    with pytest.raises(UserError, match="file not found"):
        collect("s3://bucket/other.jsonl")


def test_a_folder_on_s3_is_read_file_after_file(project, bucket, capsys):
    bucket.content = b"".join(json.dumps(record(n)).encode() + b"\n" for n in range(60))
    summary = collect("s3://bucket/folder")
    assert (summary["read"], summary["set aside: duplicate prompt"]) == (120, 60)
    assert {row["file"] for row in quarantine()} == {"s3://bucket/folder/b.jsonl"}
    assert "1 files are no data files: notes.md" in capsys.readouterr().err
    assert collect("s3://bucket/folder", pattern="a*")["read"] == 60


GOOD = b"".join(json.dumps(record(n)).encode() + b"\n" for n in range(40))
JUNK = st.lists(
    st.binary(max_size=40)
    | st.dictionaries(
        st.sampled_from(["question", "answer", "id"]),
        st.none()
        | st.floats()
        | st.integers()
        | st.text(max_size=8)
        | st.lists(st.text(max_size=3), max_size=2),
    ).map(lambda r: json.dumps(r).encode()),
    max_size=10,
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(JUNK, st.sampled_from(["jsonl", "csv"]))
def test_whatever_the_bytes_every_record_is_kept_or_set_aside(monkeypatch, junk, kind):
    good = GOOD
    if kind == "csv":
        rows = map(json.loads, GOOD.splitlines())
        lines = [f"{r['question']},{r['answer']},{r['id']}\n" for r in rows]
        good = "".join(["question,answer,id\n", *lines]).encode()
    with tempfile.TemporaryDirectory() as place, monkeypatch.context() as here:
        here.chdir(place)
        Path(f"data.{kind}").write_bytes(good + b"\n".join(junk))
        summary = collect(f"data.{kind}", split={"unlabelled": 1000})
        assert adds_up(summary)
        assert summary["set_aside"] == len(quarantine())
        written = sum(len(list(read_rows(path, Row))) for path in (*ANSWERED, UNLABELLED))
        assert written == sum(summary[name] for name in SIZES) >= 40


def test_prompts_of_an_earlier_round_come_again_in_the_place_of_new_ones(project: Path) -> None:
    write(project / "data.jsonl", [record(n) for n in range(80)])
    collect(split={"unlabelled": 10})
    first = list(read_rows(UNLABELLED, Row))
    replay = project / "replay.jsonl"
    replay.write_text("".join(row.model_dump_json() + "\n" for row in reversed(first)))
    summary = collect(split={"unlabelled": 10, "batch": 1}, replay={"path": str(replay), "rows": 4})
    second = list(read_rows(UNLABELLED, Row))
    assert second[:4] == first[:5:-1]
    assert {row.id for row in second[4:]}.isdisjoint(row.id for row in first)
    assert len(second) == 10
    assert summary["replayed"] == 4
    assert adds_up(summary)


def test_a_replay_that_is_not_there_is_named(project: Path) -> None:
    write(project / "data.jsonl", [record(n) for n in range(80)])
    with pytest.raises(UserError, match="no rows to replay"):
        collect(replay={"path": "gone.jsonl", "rows": 4})
