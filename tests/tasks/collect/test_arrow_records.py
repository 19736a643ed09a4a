"""Tables as pandas, Spark and `datasets` write them."""

import datetime
import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import feather

from tasks.collect.arrow_records import arrow_records, parquet_records
from tasks.collect.known_formats import KnownFormat
from tasks.collect.source_records import BrokenCell, UnreadableError, UnusableRecordError, text_of


def parquet(table: pa.Table) -> list:
    out = io.BytesIO()
    pq.write_table(table, out)
    return list(parquet_records(io.BytesIO(out.getvalue())))


def test_rows_are_read_and_broken_text_is_named():
    buffers = pa.array(["good", "\x01\x02", "too"]).buffers()[:2]
    broken = pa.Array.from_buffers(pa.string(), 3, [*buffers, pa.py_buffer(b"good\xff\xfetoo")])
    assert parquet(pa.table({"a": broken, "b": [1, 2, 3]})) == [
        (1, {"a": "good", "b": 1}),
        (2, {"a": BrokenCell("UnicodeDecodeError"), "b": 2}),
        (3, {"a": "too", "b": 3}),
    ]


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())], ids=str
)
def test_text_is_text_however_it_is_stored(kind):
    column = pa.array(["one", None, "two"], pa.string()).cast(kind)
    assert [r["q"] for _, r in parquet(pa.table({"q": column}))] == ["one", None, "two"]


def test_a_data_frame_with_its_index_and_numbers():
    import pandas as pd

    frame = pd.DataFrame({"q": ["one", "two"], "n": [1.5, float("nan")]}, index=["x", "y"])
    records = [record for _, record in parquet(pa.Table.from_pandas(frame))]
    assert [(r["q"], r["__index_level_0__"]) for r in records] == [("one", "x"), ("two", "y")]
    assert text_of(records[0], "n") == "1.5"


def test_turns_in_a_column_of_structs_are_a_conversation():
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    names = ("role", "content", "name", "tool_calls")
    kind = pa.list_(pa.struct({name: pa.large_string() for name in names}))
    table = pa.table({"messages": pa.array([turns, None, turns], kind)})
    first, second, _ = (record for _, record in parquet(table))
    assert KnownFormat().render(first)[1] == "ho"
    with pytest.raises(UnusableRecordError, match="unknown format"):
        KnownFormat().render(second)


def test_keys_that_only_other_rows_have_are_not_there():
    calls = [{"function": {"name": "f", "arguments": arguments}} for arguments in ({"a": 1}, {})]
    rows = [
        [{"role": "user", "content": "hi"}, {"role": "assistant", "tool_calls": [call]}]
        for call in [*calls, {"function": {"name": "f", "arguments": {"b": "x"}}}]
    ]
    for _, record in parquet(pa.table({"messages": rows, "score": [1.0, None, 2.0]})):
        assert set(record) == {"messages", "score"}
        (call,) = KnownFormat().render(record).tool_calls
        assert call.arguments in ('{"a": 1}', "{}", '{"b": "x"}')


def test_what_is_no_text_says_what_it_is():
    day = datetime.datetime(2026, 1, 2)
    ((_, record),) = parquet(pa.table({"t": [day], "b": [b"x"], "l": [["x"]]}))
    for name, kind in (("t", "datetime"), ("b", "bytes"), ("l", "a list")):
        with pytest.raises(UnusableRecordError, match=f"column '{name}' holds {kind}"):
            text_of(record, name)


def test_a_value_that_cannot_be_read_matters_only_where_it_is_used():
    far = pa.array([2**62, 0], pa.timestamp("us"))
    nowhere = pa.array([1, 2], pa.timestamp("us", "Mars/Phobos"))
    (_, first), (_, second) = parquet(pa.table({"prompt": ["x", "y"], "day": far, "at": nowhere}))
    assert [KnownFormat().render(record).prompt for record in (first, second)] == ["x", "y"]
    with pytest.raises(UnusableRecordError, match=r"'day' holds a value that cannot be read \(Ov"):
        text_of(first, "day")


def test_a_column_twice_is_refused():
    table = pa.table([pa.array(["x"]), pa.array(["y"])], names=["a", "a"])
    with pytest.raises(UnreadableError, match="several columns have one name: a"):
        parquet(table)


def test_arrow_files_and_streams_are_read():
    table = pa.table({"q": [f"number {n}" for n in range(3000)]})
    expected = [(n + 1, {"q": f"number {n}"}) for n in range(3000)]
    for make in (pa.ipc.new_file, pa.ipc.new_stream):
        out = io.BytesIO()
        with make(out, table.schema) as writer:
            writer.write_table(table)
        assert list(arrow_records(io.BytesIO(out.getvalue()))) == expected
    out = io.BytesIO()
    feather.write_feather(table, out)
    assert list(arrow_records(io.BytesIO(out.getvalue()))) == expected
