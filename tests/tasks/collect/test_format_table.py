"""The table of formats in docs/data.md, computed from a record of each format."""

import json
from pathlib import Path
from typing import Any

import pytest

from cohobate.data.records import Row
from cohobate.params import validated
from tasks.collect.source_records import SourceRecord
from tasks.collect.stage import CollectParams

DOCS = Path(__file__).parents[3] / "docs/data.md"
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
CALL = {"name": "f", "arguments": {"a": 1}}


def turn(role: str, content: Any, **others: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **others}


def turns(*texts: str) -> list[dict[str, Any]]:
    roles = ("user", "assistant")
    return [turn(roles[n % 2], text) for n, text in enumerate(texts)]


def sharegpt(*texts: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[n % 2], "value": text} for n, text in enumerate(texts)]


def vertex(*texts: str) -> list[dict[str, Any]]:
    return [{"role": ("user", "model")[n % 2], "parts": [{"text": t}]} for n, t in enumerate(texts)]


def batch(message: dict[str, Any], *before: dict[str, Any]) -> dict[str, Any]:
    reply = {"body": {"choices": [{"message": message, "finish_reason": "stop"}]}}
    return {"custom_id": "1", "body": {"messages": [*before], "tools": TOOLS}, "response": reply}


LONG = ("a", "b", "c", "d")
THINK = "<think>hm</think>b"
PARTS = [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "b"}]
CALLS = turn("assistant", None, tool_calls=[{"function": CALL}])
FORMATS: list[tuple[str, str, dict[str, Any], dict[str, Any], dict[str, Any] | None]] = [
    # name, columns, several turns, reasoning, a call
    (
        "chat: TRL, OpenAI fine-tuning",
        "`messages`, `conversations`, ...",
        {"messages": turns(*LONG)},
        {"messages": [*turns("a"), turn("assistant", "b", reasoning_content="hm")]},
        {"messages": [*turns("a"), CALLS], "tools": TOOLS},
    ),
    (
        "Anthropic",
        "`messages` with parts",
        {"messages": turns(*LONG)},
        {
            "messages": [
                *turns("a"),
                turn("assistant", [{"type": "thinking", "thinking": "hm"}, "b"]),
            ]
        },
        {
            "messages": [*turns("a"), turn("assistant", [CALL | {"type": "tool_use"}])],
            "tools": [{"name": "f", "input_schema": {}}],
        },
    ),
    (
        "ShareGPT",
        "`conversations` with `from`, `value`",
        {"conversations": sharegpt(*LONG)},
        {"conversations": sharegpt("a", THINK)},
        {
            "conversations": [
                *sharegpt("a"),
                {"from": "function_call", "value": json.dumps(CALL)},
            ],
            "tools": json.dumps(TOOLS),
        },
    ),
    (
        "Vertex",
        "`contents` with `parts`",
        {"contents": vertex(*LONG)},
        {"contents": vertex("a", THINK)},
        {
            "contents": [
                *vertex("a"),
                {"role": "model", "parts": [{"functionCall": {"name": "f", "args": {"a": 1}}}]},
            ],
            "tools": TOOLS,
        },
    ),
    (
        "UltraChat",
        "`data`",
        {"data": [*LONG]},
        {"data": ["a", THINK]},
        None,
    ),
    (
        "OpenAI batch, input and output",
        "`body`, `response`",
        batch(turn("assistant", "d"), *turns(*LONG[:3])),
        batch(turn("assistant", "b", reasoning_content="hm"), *turns("a")),
        batch(CALLS, *turns("a")),
    ),
    (
        "OpenAI preferences",
        "`input`, `preferred_output`",
        {"input": {"messages": turns(*LONG[:3])}, "preferred_output": [turn("assistant", "d")]},
        {"input": {"messages": turns("a")}, "preferred_output": [turn("assistant", THINK)]},
        {"input": {"messages": turns("a"), "tools": TOOLS}, "preferred_output": [CALLS]},
    ),
    (
        "TRL preferences",
        "`prompt`, `chosen`",
        {"prompt": turns(*LONG[:3]), "chosen": [turn("assistant", "d")]},
        {"prompt": turns("a"), "chosen": [turn("assistant", THINK)]},
        {"prompt": turns("a"), "chosen": [CALLS], "tools": TOOLS},
    ),
    (
        "TRL prompt and completion",
        "`prompt`, `completion`",
        {"prompt": turns(*LONG[:3]), "completion": [turn("assistant", "d")]},
        {"prompt": "a", "completion": THINK},
        {"prompt": turns("a"), "completion": [CALLS], "tools": TOOLS},
    ),
    (
        "Alpaca, Dolly",
        "`instruction`, `input`, `output`",
        {"instruction": "c", "history": [["a", "b"]], "output": "d"},
        {"instruction": "a", "output": THINK},
        None,
    ),
    (
        "xLAM",
        "`query`, `tools`, `answers`",
        {"query": "a", "tools": TOOLS, "answers": [CALL]},
        {"query": "a", "tools": TOOLS, "answers": f"<think>hm</think>{json.dumps([CALL])}"},
        {"query": "a", "tools": TOOLS, "answers": [CALL]},
    ),
    (
        "question and answer",
        "`question`, `answer`",
        {"question": "a", "answer": "b"},
        {"question": "a", "answer": THINK},
        None,
    ),
]


def row(columns: dict[str, Any], **settings: str) -> Row:
    source = {"type": "files", "path": "data.jsonl"}
    collect = validated(CollectParams, {"source": source} | settings, "collect")
    ((_, made),) = collect.rows(SourceRecord(1, columns))
    return made


def line(name: str, columns: str, *records: dict[str, Any] | None) -> str:
    several, reasoning, calls = records
    assert several is not None and reasoning is not None
    assert row(several).learn is None
    learnt = "last or all" if row(several, learn="all").learn == "all" else "the answer"
    assert row(reasoning).reasoning == "hm" and row(reasoning, reasoning="drop").reasoning is None
    called = row(calls) if calls else None
    tools = "yes" if called and called.tool_calls and called.prompt[0].tools else "no"  # type: ignore[union-attr]
    return f"| {name} | {columns} | {learnt} | {tools} | kept or dropped |"


@pytest.mark.parametrize("record", FORMATS, ids=[name for name, *_ in FORMATS])
def test_the_table_says_what_is_read(record):
    assert line(*record) in DOCS.read_text().splitlines()
