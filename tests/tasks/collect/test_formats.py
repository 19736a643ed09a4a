"""Records of hostile files: each ends as a mapping or as Broken, and none stops the reading."""

import io
import json

from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.collect.formats import FORMATS
from tasks.collect.source_records import BrokenRecord, UnreadableError


def records(ending: str, data: bytes) -> list:
    return list(FORMATS[ending](io.BytesIO(data), None))


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
    data = b"\n".join([b'{"first": 1}', b'{"second": 2}', *lines])
    expected = sum(1 for line in data.split(b"\n") if line.strip())
    numbered = records(".jsonl", data)
    assert len(numbered) == expected
    assert all(isinstance(record, dict | BrokenRecord) for _, record in numbered)
    assert [n for n, _ in numbered] == sorted({n for n, _ in numbered})


@settings(max_examples=300)
@given(LINES.map(b"\n".join) | st.text('{}[]":,\n a1\\', max_size=60).map(str.encode))
def test_json_of_any_bytes_is_read_to_its_end(data):
    for ending in (".jsonl", ".json"):
        try:
            numbered = records(ending, b"[" + data)
        except UnreadableError:
            continue
        assert all(isinstance(record, dict | BrokenRecord) for _, record in numbered)


@settings(max_examples=300)
@given(
    st.one_of(
        st.binary(max_size=300),
        LINES.map(b"\n".join),
        st.text('a,"\n\r\0é', max_size=80).map(str.encode),
    )
)
def test_csv_of_any_bytes_is_read_to_its_end(data):
    numbered = records(".csv", b"first,second\n" + data + b'\n"\nlast,line\n')
    assert all(isinstance(record, dict | BrokenRecord) for _, record in numbered)
    line_ends = data.count(b"\n") + data.count(b"\r")
    assert len({n for n, _ in numbered}) == len(numbered) <= line_ends + 4
    assert numbered[-1][1] == {"first": "last", "second": "line"}
