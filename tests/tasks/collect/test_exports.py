"""Whole files as people have them, from bytes to rows: what is read, what is set aside, and why."""

import gzip
import json
import random
from pathlib import Path

import pytest

from cohobate.data.records import COLLECT, DEV, LABELLED, TEST, UNLABELLED, Row, read_rows
from cohobate.errors import UserError
from cohobate.params import validated
from tasks.collect.stage import CollectParams, run

SIZES = {"labelled": 6, "unlabelled": 100, "dev": 3, "test": 5}
TEMPLATE = {"prompt": "{question}", "answer": " {answer}"}
ALPACA = {"prompt": "{instruction}\n{input}\nAnswer:", "answer": " {output}"}
WORDS = [f"{a}{b}{c}" for a in "bdfgk" for b in "aeiou" for c in "lmnrst"]
ROWS = [
    {"question": " ".join(random.Random(n).sample(WORDS, 7)), "answer": f"a{n % 4}"}
    for n in range(30)
]
NEVER_CLOSES = "a quote opens here and never closes (a quote within a cell is written twice)"
TOOL = "ShareGPT turn 2 has a call without 'name'"


def collect(
    name: str, data: bytes, template: dict | None = None, **settings: str
) -> tuple[dict, list, list]:
    """Write a file and collect it: the summary, the rows, and what was set aside."""
    Path(name).write_bytes(data)
    spelt = {"source": {"type": "files", "path": name}, "split": SIZES, "template": template}
    spelt |= settings
    run(validated(CollectParams, spelt, "collect"))
    rows = [r for p in (LABELLED, DEV, TEST, UNLABELLED) for r in read_rows(p, Row)]
    aside = [json.loads(line) for line in (COLLECT / "quarantine.jsonl").open("rb")]
    summary = json.loads((COLLECT / "summary.json").read_text())
    assert len(rows) + len(aside) + summary["withheld_for_shared_key"] == summary["read"]
    return summary, rows, [(a["line"], a["record"], a["reason"]) for a in aside]


def csv(rows: list[dict], header: str = "question,answer") -> list[str]:
    return [header, *(",".join(row.values()) for row in rows)]


def test_a_csv_with_a_quote_that_never_closes(project):
    lines = csv(ROWS)
    lines.insert(24, 'the sign of inches,"')
    _, rows, aside = collect("data.csv", "\n".join(lines).encode(), TEMPLATE)
    assert aside == [(25, 24, NEVER_CLOSES)]
    assert {row.prompt for row in rows} == {row["question"] for row in ROWS}


def test_a_csv_that_names_a_column_twice(project):
    rows = [row | {"again": "fine"} for row in ROWS]
    with pytest.raises(UserError, match="names a column twice: answer"):
        collect("data.csv", "\n".join(csv(rows, "question,answer,answer")).encode(), TEMPLATE)


@pytest.mark.parametrize(
    ("name", "encode"),
    [
        ("data.csv", lambda text: text.replace(",", ";").encode("utf-16")),
        ("data.tsv.gz", lambda text: gzip.compress(text.replace(",", "\t").encode("utf-8-sig"))),
        ("data.csv", lambda text: text.replace("\n", "\r\n").encode()),
        ("data.csv", lambda text: text.replace("\n", "\r").encode()),
    ],
)
def test_a_table_however_it_is_written(project, name, encode):
    _, rows, aside = collect(name, encode("\n".join(csv(ROWS))), TEMPLATE)
    assert aside == [] and {row.prompt for row in rows} == {row["question"] for row in ROWS}


@pytest.mark.parametrize("indent", [None, 4])
@pytest.mark.parametrize("name", ["data.json", "data.jsonl"])
def test_alpaca_as_one_array(project, name, indent):
    records = [
        {
            "instruction": row["question"],
            "input": ["Think.", "", None][n % 3],
            "output": row["answer"],
        }
        for n, row in enumerate(ROWS)
    ]
    _, rows, aside = collect(name, json.dumps(records, indent=indent).encode(), ALPACA)
    hints = ["" if n % 3 else "Think.\n" for n in range(len(ROWS))]
    expected = [f"{row['question']}\n{hint}Answer:" for row, hint in zip(ROWS, hints, strict=True)]
    assert aside == [] and {row.prompt for row in rows} == {*expected}


def test_sharegpt_sets_only_calls_of_nothing_aside(project):
    names = ("gpt", "chatgpt", "bot")
    lines = []
    for n, row in enumerate(ROWS):
        turns = [{"from": "human", "value": row["question"]}]
        turns += [{"from": "function_call", "value": "{}"}] if n in (5, 21) else []
        turns += [{"from": names[n % 3], "value": row["answer"]}]
        lines.append(json.dumps({"id": f"t{n}", "conversations": turns}).encode())
    _, rows, aside = collect("data.jsonl", b"\n".join(lines))
    assert aside == [(6, 6, TOOL), (22, 22, TOOL)]
    assert all(row.prompt[0].role == "user" and len(row.prompt) == 1 for row in rows)
    assert {row.answer for row in rows} == {"a0", "a1", "a2", "a3", None}


def test_tools_reasoning_and_learnt_turns_are_in_the_rows(project):
    tools = '[{"type": "function", "function": {"name": "f"}}]'
    lines = []
    for row in ROWS:
        turns = [
            {"role": "user", "content": row["question"]},
            {"role": "assistant", "content": "<think>Which?</think>This one?"},
            {"role": "user", "content": "Yes."},
            {
                "role": "assistant",
                "content": "",
                "reasoning_content": "secret",
                "tool_calls": [{"function": {"name": "f", "arguments": {"secret": 1}}}],
            },
        ]
        lines.append(json.dumps({"messages": turns, "tools": tools}))
    data = "\n".join(lines).encode()
    _, rows, aside = collect("data.jsonl", data, learn="all")
    assert aside == []
    for row in rows:
        first, second, _ = row.prompt
        assert (first.tools, second.reasoning, second.content) == (tools, "Which?", "This one?")
        assert row.learn == "all"
        known = (row.answer, row.reasoning, row.tool_calls[0].arguments if row.tool_calls else None)
        assert known in [("", "secret", '{"secret": 1}'), (None, None, None)]
    assert b"secret" not in UNLABELLED.read_bytes()
    _, rows, _ = collect("data.jsonl", data, reasoning="drop")
    assert all(row.reasoning is None and row.prompt[1].reasoning is None for row in rows)
    assert {row.learn for row in rows} == {None}


def test_chats_with_null_keys_and_nan_beside_them(project):
    empty = {"name": None, "tool_calls": None, "weight": None}
    lines = []
    for n, row in enumerate(ROWS):
        turns = [
            {"role": "user", "content": row["question"], **empty},
            {"role": "assistant", "content": row["answer"], **empty, "weight": 1},
        ]
        rating = "NaN" if n % 3 else "4.5"
        lines.append(f'{{"messages": {json.dumps(turns)}, "rating": {rating}}}')
    _, rows, aside = collect("data.jsonl", "\n".join(lines).encode())
    assert aside == [] and len(rows) == len(ROWS)


@pytest.mark.parametrize(("one", "other"), [("×", "÷"), ("&&", "||"), ("😀", "😡"), ("≤", "≥")])
def test_prompts_that_differ_by_one_sign_are_all_kept(project, one, other):
    rows = [
        {"question": f"{row['question']} {n} {sign} 6", "answer": sign}
        for n, row in enumerate(ROWS)
        for sign in (one, other)
    ]
    data = "\n".join(json.dumps(row) for row in rows).encode()
    _, kept, aside = collect("data.jsonl", data, TEMPLATE)
    assert aside == [] and len({row.prompt for row in kept}) == len(kept) == 60
