"""Several sources: each row has its task, and nothing leaks across the sources."""

import json
from pathlib import Path
from typing import Any

import pytest

from cohobate.data.records import COLLECT, DEV, LABELLED, TEST, UNLABELLED, Row, read_rows
from cohobate.errors import UserError
from cohobate.params import ParamsError, validated
from tasks.collect.stage import CollectParams, run

SIZES = {"labelled": 6, "unlabelled": 20, "dev": 3, "test": 5}
PARTS = {"labelled": LABELLED, "unlabelled": UNLABELLED, "dev": DEV, "test": TEST}
WORDS = [
    "ant", "bee", "cow", "dog", "elk", "fox", "gnu", "hen", "ibis", "jay", "kite", "lark", "mole",
    "newt", "owl", "pig",
]  # fmt: skip


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write("nouns.jsonl", [noun(n) for n in range(80)])
    write("sums.jsonl", [{"question": f"{n} + {n * 7}", "answer": 8 * n} for n in range(80)])
    return tmp_path


def noun(n: int, **more: Any) -> dict[str, Any]:
    words = [WORDS[(n * k + k) % 16] for k in (1, 3, 5, 7)]
    return {"text": f"{' '.join(words)} {n}", "answer": f"kind{n % 3}", "doc": f"d{n}"} | more


def write(name: str, records: list[dict[str, Any]]) -> None:
    Path(name).write_text("".join(json.dumps(record) + "\n" for record in records))


def spelt(**more: Any) -> dict[str, Any]:
    sources = {
        "nouns": {
            "source": {"type": "files", "path": "nouns.jsonl", "group": "answer"},
            "template": {"prompt": "Definition: {text}\nCategory:"},
        },
        "sums": {
            "source": {"type": "files", "path": "sums.jsonl"},
            "template": {"prompt": "Compute {question}\nAnswer:"},
            "split": {"test": 2, "labelled": 4},
            "weight": 0.5,
        },
    }
    source = {"type": "several", "path": "data/sources"}
    return {"source": source, "sources": sources, "split": SIZES} | more


def collect(**more: Any) -> dict[str, Any]:
    run(validated(CollectParams, spelt(**more), "collect"))
    summary: dict[str, Any] = json.loads((COLLECT / "summary.json").read_text())
    return summary


def rows_of(part: str) -> list[Row]:
    return list(read_rows(PARTS[part], Row))


def test_the_parts_hold_rows_of_all_sources_at_the_sizes_of_each(project: Path) -> None:
    summary = collect()
    sums = SIZES | {"test": 2, "labelled": 4}
    for part in PARTS:
        tasks = [row.task for row in rows_of(part)]
        assert (tasks.count("nouns"), tasks.count("sums")) == (SIZES[part], sums[part])
        assert summary[part] == SIZES[part] + sums[part]
        assert (summary[f"{part} of nouns"], summary[f"{part} of sums"]) == (
            SIZES[part], sums[part],
        )  # fmt: skip
    assert {row.task: row.weight for row in rows_of("labelled")} == {"nouns": None, "sums": 0.5}
    # a reader of the first rows alone gets rows of every source
    assert {row.task for row in rows_of("unlabelled")[:12]} == {"nouns", "sums"}
    assert all(row.answer is None and row.group == "" for row in rows_of("unlabelled"))
    assert summary["source"] == "nouns: nouns.jsonl; sums: sums.jsonl"


def test_the_same_sources_give_the_same_bytes(project: Path) -> None:
    collect()
    first = {path.name: path.read_bytes() for path in COLLECT.iterdir()}
    collect()
    assert {path.name: path.read_bytes() for path in COLLECT.iterdir()} == first


def test_a_later_batch_has_other_prompts_of_every_source(project: Path) -> None:
    collect()
    first = {row.id for row in rows_of("unlabelled")}
    collect(split=SIZES | {"batch": 1})
    second = rows_of("unlabelled")
    assert first.isdisjoint(row.id for row in second)
    assert [row.task for row in second].count("sums") == 20


def test_a_source_without_another_whole_batch_begins_again_alone(project: Path) -> None:
    write("sums.jsonl", [{"question": f"{n} + {n * 7}", "answer": 8 * n} for n in range(22)])
    drawn = []
    for batch in (0, 1):
        collect(split=SIZES | {"batch": batch})
        rows = rows_of("unlabelled")
        drawn.append({task: {r.id for r in rows if r.task == task} for task in ("nouns", "sums")})
    assert drawn[0]["nouns"].isdisjoint(drawn[1]["nouns"])
    assert drawn[0]["sums"] == drawn[1]["sums"] and len(drawn[0]["sums"]) == 22 - 4 - 3 - 2


def test_one_prompt_in_two_sources_is_one_row(project: Path) -> None:
    both = [noun(n) for n in range(40)]
    write("more.jsonl", [*both[:30], *(one | {"answer": "other"} for one in both[30:])])
    given = spelt()
    given["sources"]["more"] = given["sources"]["nouns"] | {
        "source": {"type": "files", "path": "more.jsonl", "group": "answer"}, "split": {
            "labelled": 0, "unlabelled": 0, "dev": 0, "test": 0},
    }  # fmt: skip
    summary = collect(**given)
    assert summary["set aside: duplicate prompt"] == 30
    assert summary["set aside: duplicate prompt with another answer"] == 20
    prompts = [row.id for part in PARTS for row in rows_of(part)]
    assert len(prompts) == len(set(prompts))


def test_a_prompt_of_one_test_is_in_no_training_row_of_another_source(project: Path) -> None:
    long = "the quick brown fox jumps over the lazy dog near river"
    write("nouns.jsonl", [noun(n, text=f"{long} {n}") if n < 8 else noun(n) for n in range(80)])
    # the other source asks about the same texts in its own words
    asked = [{"question": f"how many letters are in {long} {n}", "answer": n} for n in range(8)]
    sums = [{"question": f"{n} + {n * 7}", "answer": 8 * n} for n in range(80)]
    write("sums.jsonl", sums + asked)
    collect(split=SIZES | {"test": 40, "unlabelled": 10})
    evaluated = [row for part in ("test", "dev") for row in rows_of(part)]
    trained = [row for part in ("labelled", "unlabelled") for row in rows_of(part)]
    assert any(long in str(row.prompt) for row in evaluated)
    assert not any(long in str(row.prompt) for row in trained if row.task == "sums")


def test_a_key_is_shared_by_the_sources(project: Path) -> None:
    given = spelt()
    write("sums.jsonl", [{"question": f"{n} + {n * 7}", "answer": 8 * n, "doc": f"d{n}"}
                         for n in range(80)])  # fmt: skip
    for name in ("nouns", "sums"):
        given["sources"][name]["source"]["key"] = "doc"
    summary = collect(**given)
    test = [row for row in rows_of("test") if row.task == "nouns"]
    withheld = summary["withheld of sums"]
    numbers = {str(row.prompt).split("\n")[0].split(" ")[-1] for row in test}
    others = [row for part in ("labelled", "unlabelled") for row in rows_of(part)]
    assert withheld and not any(
        str(row.prompt).split(" ")[1] in numbers for row in others if row.task == "sums"
    )


def test_too_few_rows_name_the_source(project: Path) -> None:
    with pytest.raises(UserError, match="2 rows for labelled of sums, 400 needed") as refused:
        given = spelt()
        write("sums.jsonl", [{"question": f"{n} + {n * 7}", "answer": 8 * n} for n in range(9)])
        given["sources"]["sums"]["split"] = {"labelled": 400, "test": 4}
        collect(**given)
    assert "collect.sources.sums.split" in str(refused.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sources": {}}, "name them in collect.sources"),
        ({"source": {"type": "files", "path": "nouns.jsonl"}}, "source must be"),
        ({"template": {"prompt": "{text}"}}, "have a template, text"),
        ({"sources": {"a/b": spelt()["sources"]["sums"]}}, "pattern"),
        ({"split": SIZES | {"test": 0}}, "test"),
    ],
)
def test_a_mistake_in_the_sources_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ParamsError, match=message):
        validated(CollectParams, spelt(**change), "collect")
