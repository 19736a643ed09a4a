"""JSON as data frames, hubs and people write it: every record is read, or says why not."""

import io
import json

import pytest

from tasks.collect.json_records import json_records
from tasks.collect.source_records import MAX_CHARACTERS, BrokenRecord, UnreadableError

A, B = {"q": "one"}, {"q": "two"}
BOTH = [A, B]
LONG = "x" * (MAX_CHARACTERS + 10)
LONG_LINE = f"a line of more than {MAX_CHARACTERS} characters"
TOO_LONG = f"an object of more than {MAX_CHARACTERS} characters"
CUT_OFF = "the file was cut off here"


def read(text: str | bytes, **options) -> list:
    data = text if isinstance(text, bytes) else text.encode()
    records = json_records(io.BytesIO(data), **options)
    return [(n, r.reason if isinstance(r, BrokenRecord) else r) for n, r in records]


def contents(text: str | bytes, **options) -> list:
    return [record for _, record in read(text, **options)]


@pytest.mark.parametrize("document", [True, False], ids=["json", "jsonl"])
@pytest.mark.parametrize(
    "text",
    [
        json.dumps(BOTH),
        json.dumps(BOTH, indent=4),
        json.dumps(BOTH, indent=0) + "\n\n",
        f"[\n{json.dumps(A)},\n{json.dumps(B)},\n]\n",
        f"{json.dumps(A)}\n{json.dumps(B)}\n",
        f"\n\n{json.dumps(A)}\n\n  {json.dumps(B)}",
        f"{json.dumps(A)}\r\n{json.dumps(B)}\r\n",
        f"{json.dumps(A)}\r{json.dumps(B)}\r",
        f"{json.dumps(A)},\n{json.dumps(B)},\n",
        f"{json.dumps(A)}{json.dumps(B)}",
        f"{json.dumps(A, indent=2)}\n{json.dumps(B, indent=2)}\n",
        json.dumps({"version": 1, "data": BOTH, "count": 2}),
        json.dumps({"train": BOTH}, indent=1),
        json.dumps({"schema": {"fields": [{"name": "q"}]}, "data": BOTH}),
        json.dumps({"columns": ["q"], "index": [0, 1], "data": [["one"], ["two"]]}),
        json.dumps({"0": A, "1": B}),
        json.dumps(
            {"rows": [{"row_idx": n, "row": r, "truncated_cells": []} for n, r in enumerate(BOTH)]}
        ),
    ],
    ids=lambda text: text[:24],
)
def test_the_records_are_the_same_however_they_are_written(text, document):
    for encoded in (text, b"\xef\xbb\xbf" + text.encode(), text.encode("utf-16")):
        assert contents(encoded, document=document) == BOTH
    assert contents(text.encode("utf-16-le"), document=document) == BOTH


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"a": "x"', "not JSON: Expecting ',' delimiter"),
        (b"{'a': 'x'}", "not JSON: Expecting property name enclosed in double quotes"),
        (b"[1]", "not a JSON object"),
        (b"null", "not a JSON object"),
        (b'"{\\"a\\": 1}"', "JSON written as a text: it was encoded twice"),
        (b'{"a": 1, "a": 2}', "a key twice: 'a'"),
        (b'{"a": {"b": 1, "b": 2}}', "a key twice: 'b'"),
        (b'{"q": "one"} {"q": ', "not JSON: Expecting value"),
        (
            b'{"a": "\xff\xfe"}',
            "not UTF-8 (set collect.source.encoding to the encoding of the file)",
        ),
        (b"{" * 100_000, "not JSON: Expecting property name enclosed in double quotes"),
        (b'{"a": ' + b"[" * 100_000, "not JSON: nested too deeply, or a number too long"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not JSON: nested too deeply, or a number too long"),
        (
            b'{"a": "' + b"x" * 10_000_000 + b'"}',
            f"a line of more than {MAX_CHARACTERS} characters",
        ),
    ],
    ids=lambda v: v[:12].decode("latin-1") if isinstance(v, bytes) else None,
)
def test_a_broken_line_is_named_and_the_next_one_read(line, reason):
    good = json.dumps(A).encode()
    records = read(good + b"\n" + line + b"\n\r\n\n" + good)
    assert records == [(1, A), (2, reason), (5, A)]


def test_nan_and_infinity_are_read_and_matter_only_where_they_are_used():
    ((_, record),) = read('{"q": "one", "rating": NaN, "low": -Infinity, "high": Infinity}\n')
    assert record["q"] == "one" and record["rating"] != record["rating"]
    assert (record["low"], record["high"]) == (float("-inf"), float("inf"))


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ('{"q" "x"}', "not JSON: Expecting ':' delimiter"),
        ('{"q": 1, "q": 2}', "a key twice: 'q'"),
        ("7", "not a JSON object"),
        ("[{}]", "not a JSON object"),
        ("undefined", "not JSON: Expecting value"),
        (json.dumps({"q": LONG}), TOO_LONG),
        (json.dumps({"q": [{"a": '\\" }]'}] * 60_000}), TOO_LONG),
    ],
    ids=lambda text: text[:16],
)
def test_a_broken_element_costs_only_itself(broken, reason):
    one_line = f"[{json.dumps(A)}, {broken}, {json.dumps(B)}]"
    assert read(one_line) == [(1, A), (1, reason), (1, B)]
    lines = f"[\n {json.dumps(A)},\n {broken},\n {json.dumps(B)}\n]"
    assert read(lines, document=True) == [(2, A), (3, reason), (4, B)]


def test_a_quote_too_many_does_not_hide_the_elements_behind_it():
    text = f'[\n{json.dumps(A)},\n{{"q": "5" wide"}},\n{json.dumps(B)}\n]'
    assert read(text) == [(2, A), (3, "not JSON: Expecting ',' delimiter"), (4, B)]


@pytest.mark.parametrize("end", ["", ",", ', {"q": "thr', ', {"q": ["a", '])
def test_a_file_that_was_cut_off_says_so(end):
    text = json.dumps(BOTH, indent=1).rstrip("\n]") + end
    assert contents(text) == [A, B, CUT_OFF]


def test_columns_are_turned_into_records_while_they_are_short():
    expected = [{"q": "one", "a": 1}, {"q": "two", "a": None}]
    frame = {"q": {"0": "one", "1": "two"}, "a": {"0": 1, "1": None}}
    for columns in (frame, {name: list(column.values()) for name, column in frame.items()}):
        assert contents(json.dumps(columns)) == contents(json.dumps(columns, indent=1)) == expected
    for long in (
        {"q": ["one"] * 300_000, "a": [1]},
        {"q": {"x": 1, "y": 2}, "a": {"x": 3, "y": 4}},
    ):
        with pytest.raises(UnreadableError, match="columns") as refused:
            read(json.dumps(long), document=True)
        assert 'orient="records", lines=True' in refused.value.fix


def test_two_lists_of_records_are_refused():
    with pytest.raises(UnreadableError, match="two lists of records: 'train' and 'test'"):
        read(json.dumps({"train": [A], "test": [B]}), document=True)


@pytest.mark.parametrize(
    "record",
    [
        {"messages": [A, B]},
        {"data": ["hi", "ho"]},
        {"q": "one"},
        {"body": {"q": 1}},
        {"chosen": [A, B], "rejected": [B, A]},
        {"chosen": {"from": "gpt", "value": "x"}, "rejected": {"from": "gpt", "value": "y"}},
        {"prompt": "x", "meta": {"a": 1, "b": 2}},
    ],
)
def test_one_object_is_one_record(record):
    for document in (True, False):
        assert read(json.dumps(record), document=document) == [(1, record)]


def test_another_encoding_is_read_where_it_is_named():
    data = '{"q": "café"}\n{"q": "thé"}\n'.encode("cp1252")
    assert contents(data, encoding="cp1252") == [{"q": "café"}, {"q": "thé"}]
    assert all("not UTF-8" in reason for reason in contents(data))


def test_the_mark_of_a_file_that_was_joined_to_another_is_no_data():
    lines = [b"\xef\xbb\xbf" + json.dumps(record).encode() + b"\n" for record in BOTH]
    assert contents(b"".join(lines)) == BOTH


def test_a_long_array_on_one_line_is_held_element_by_element():
    import tracemalloc

    peaks = []
    for rows in (12_000, 36_000):
        text = b"[" + b",".join(b'{"q": "%0100d"}' % n for n in range(rows)) + b"]"
        tracemalloc.start()
        assert sum(1 for _ in json_records(io.BytesIO(text))) == rows
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0]
