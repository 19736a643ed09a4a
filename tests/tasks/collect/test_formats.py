"""Records of hostile files: each ends as a mapping or as Broken, and none stops the reading."""

import io
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.collect.examples import MAX_CHARACTERS
from tasks.collect.formats import FORMATS, Broken

GOOD = b'{"a": "x"}'


def records(kind: str, data: bytes) -> list:
    return list(FORMATS[kind](io.BytesIO(data)))


def reasons(kind: str, data: bytes) -> list:
    return [(n, r.reason if isinstance(r, Broken) else r) for n, r in records(kind, data)]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"a": "x"', "not JSON"),
        (b"[1]", "not a JSON object"),
        (b"null", "not a JSON object"),
        (b'{"a": "\xff\xfe"}', "not UTF-8"),
        (b"{" * 100_000, "not JSON"),
        (b'{"a": ' + b"[" * 100_000, "not JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not JSON"),
        (b'{"a": "' + b"x" * 10_000_000 + b'"}', f"a line of more than {MAX_CHARACTERS} bytes"),
    ],
    ids=lambda v: v[:12].decode("latin-1") if isinstance(v, bytes) else None,
)
def test_a_broken_line_is_named_and_the_next_one_read(line, reason):
    assert reasons("jsonl", GOOD + b"\n" + line + b"\n\r\n\n" + GOOD) == [
        (1, {"a": "x"}),
        (2, reason),
        (5, {"a": "x"}),
    ]


def test_a_byte_order_mark_is_no_part_of_the_data():
    assert reasons("jsonl", b"\xef\xbb\xbf" + GOOD) == [(1, {"a": "x"})]
    assert reasons("csv", b"\xef\xbb\xbfa,b\n1,2\n") == [(2, {"a": "1", "b": "2"})]


def test_csv_rows_span_lines_and_broken_ones_are_named():
    data = b'a,b\n"x\ny",1\n2\n3,4,5\n\xff,6\n\n7,8\n'
    assert reasons("csv", data) == [
        (2, {"a": "x\ny", "b": "1"}),
        (4, "fewer fields than the header"),
        (5, "more fields than the header"),
        (6, "not UTF-8"),
        (8, {"a": "7", "b": "8"}),
    ]


def test_a_csv_quote_that_never_closes_is_one_broken_row():
    data = b'a,b\n1,2\n"3,4\n' + b"5,6\n" * 300_000
    found = reasons("csv", data)
    assert found[0] == (2, {"a": "1", "b": "2"})
    assert found[1][0] == 3
    assert found[1][1].startswith("not CSV")


def test_parquet_reads_rows_and_names_broken_text(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    broken = pa.Array.from_buffers(
        pa.string(),
        3,
        [*pa.array(["good", "\x01\x02", "too"]).buffers()[:2], pa.py_buffer(b"good\xff\xfetoo")],
    )
    pq.write_table(pa.table({"a": broken, "b": [1, 2, 3]}), tmp_path / "x.parquet")
    found = reasons("parquet", (tmp_path / "x.parquet").read_bytes())
    assert found == [
        (1, {"a": "good", "b": 1}),
        (2, "unreadable: UnicodeDecodeError"),
        (3, {"a": "too", "b": 3}),
    ]


LINES = st.lists(
    st.one_of(
        st.binary(max_size=60),
        st.text(max_size=30).map(lambda t: json.dumps({"a": t}).encode()),
        st.recursive(
            st.none() | st.booleans() | st.floats() | st.text(max_size=5),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(st.text(max_size=3), inner, max_size=3)
            ),
            max_leaves=8,
        ).map(lambda v: json.dumps(v).encode()),
    ),
    max_size=12,
)


@settings(max_examples=300)
@given(LINES)
def test_each_line_that_is_not_blank_is_one_json_record(lines):
    data = b"\n".join(lines)
    expected = sum(1 for line in data.removeprefix(b"\xef\xbb\xbf").split(b"\n") if line.strip())
    found = records("jsonl", data)
    assert len(found) == expected
    assert all(isinstance(record, dict | Broken) for _, record in found)
    assert [n for n, _ in found] == sorted({n for n, _ in found})


@settings(max_examples=300)
@given(
    st.one_of(
        st.binary(max_size=300),
        LINES.map(b"\n".join),
        st.text('a,"\n\r\0é', max_size=80).map(str.encode),
    )
)
def test_csv_of_any_bytes_is_read_to_its_end(data):
    found = records("csv", data + b'\n"\nlast,line\n')
    assert all(isinstance(record, dict | Broken) for _, record in found)
    assert len({n for n, _ in found}) == len(found) <= data.count(b"\n") + data.count(b"\r") + 4
