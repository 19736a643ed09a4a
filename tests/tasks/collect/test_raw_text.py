"""collect.text: documents become rows without a prompt."""

import json
from collections import defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cohobate.data.records import DEV, LABELLED, TEST, UNLABELLED, Row, read_rows, row_id
from cohobate.errors import UserError
from cohobate.params import ParamsError, validated
from tasks.collect.raw_text import RawText
from tasks.collect.source_records import SourceRecord
from tasks.collect.stage import CollectParams, run


def pieces(text, characters):
    rows = RawText(characters=characters).rows(SourceRecord(1, {"text": text}))
    return [row for _, row in rows]


@given(st.text("ab \n\u3000", max_size=60).filter(str.strip), st.integers(1, 20))
def test_the_rows_of_a_document_are_its_text_to_the_letter(text, characters):
    rows = pieces(text, characters)
    assert "".join(row.answer for row in rows) == text
    assert [row.cut for row in rows] == [True] * (len(rows) - 1) + [None]
    assert all(len(row.answer) <= characters for row in rows[:-1])
    assert all(row.is_raw_text and row.origin == "ground_truth" for row in rows)


def test_documents_are_cut_before_blanks():
    assert [row.answer for row in pieces("one two  three", 8)] == ["one two", "  three"]
    assert [row.answer for row in pieces("unbroken", 3)] == ["unb", "rok", "en"]
    assert [row.answer for row in pieces("one two   ", 7)] == ["one two   "]


def test_ids_are_those_of_the_text_and_not_those_of_a_prompt():
    one, two = pieces("one two", 4)
    assert one.id == row_id("", "one") != row_id("one")
    assert two.id != one.id


def write(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def collect(split, **more):
    source = {"type": "files", "path": "data.jsonl"}
    run(validated(CollectParams, {"source": source, "split": split, **more}, "collect"))


def document(n):
    """Return a document of ten words of its own, four characters each."""
    return " ".join(f"{chr(97 + n)}{m}{chr(97 + m)}{n % 7}" for m in range(10))


def test_no_document_is_on_both_sides_of_a_split(project):
    documents = [document(n) for n in range(20)]
    write(project / "data.jsonl", [*documents, documents[3], " "])
    split = {"labelled": 15, "unlabelled": 0, "dev": 5, "test": 5}
    collect(split, text={"characters": 14})
    sides = defaultdict(set)
    for path in (LABELLED, DEV, TEST):
        for row in read_rows(path, Row):
            owner = next(n for n, text in enumerate(documents) if row.answer in text)
            sides[owner].add(path)
    assert all(len(paths) == 1 for paths in sides.values())
    assert not list(read_rows(UNLABELLED, Row))
    summary = json.loads((DEV.parent / "summary.json").read_text())
    assert (summary["read"], summary["labelled"], summary["test"]) == (22, 15, 5)
    assert summary["set aside: duplicate text"] == len(pieces(documents[3], 14))
    assert summary["set aside: column 'text' is empty"] == 1
    assert summary["rows"] == 21 * len(pieces(documents[0], 14))
    parts = sum(summary[name] for name in ("labelled", "dev", "test"))
    unused = summary["unused"] + summary["withheld_for_shared_key"]
    assert parts + unused == summary["rows"] - summary["set aside: duplicate text"]


def test_too_little_text_is_said_in_rows(project):
    write(project / "data.jsonl", [document(n) for n in range(3)])
    with pytest.raises(UserError, match=r"3 records read, 3 rows of their text"):
        collect({"labelled": 5, "dev": 1, "test": 1}, text={"characters": 100})


def test_text_and_a_template_exclude_each_other():
    with pytest.raises(ParamsError, match="give either text or template"):
        validated(
            CollectParams,
            {"source": {"type": "wordnet"}, "text": {}, "template": {"prompt": "{text}"}},
            "collect",
        )
