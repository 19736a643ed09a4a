"""Formats told by their columns, with the prompt and the answer that each stands for."""

import json

import pytest

from cohobate.data.messages import Message, ToolCall
from tasks.collect.known_formats import KnownFormat
from tasks.collect.row_content import RowContent
from tasks.collect.source_records import UnusableRecordError

ASK = {"role": "user", "content": "hi"}
REPLY = {"role": "assistant", "content": "ho"}
SYSTEM = {"role": "system", "content": "Be brief."}
PARTS = [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}]
"""A system prompt as Anthropic writes it."""
SHAREGPT = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]

VERTEX = [
    {"role": "user", "parts": [{"text": "hi"}]},
    {"role": "model", "parts": [{"text": "h"}, {"text": "o"}]},
]


def user(text: str) -> tuple[Message, ...]:
    return (Message(role="user", content=text),)


ASKED = user("hi")
BRIEF = (Message(**SYSTEM), *ASKED)
HISTORY = (*user("a"), Message(role="assistant", content="b"), *user("c"))


@pytest.mark.parametrize(
    ("columns", "wanted"),
    [
        ({"text": "a text"}, ("a text", None)),
        ({"prompt": "a"}, ("a", None)),
        ({"prompt": "a", "completion": " b"}, ("a", " b")),
        ({"prompt": "a", "chosen": " b", "rejected": " c"}, ("a", " b")),
        ({"prompt": [ASK], "completion": [REPLY]}, (ASKED, "ho")),
        ({"prompt": [ASK], "chosen": [REPLY], "rejected": [REPLY]}, (ASKED, "ho")),
        ({"chosen": [ASK, REPLY], "rejected": [ASK, REPLY]}, (ASKED, "ho")),
        ({"messages": [ASK, REPLY]}, (ASKED, "ho")),
        ({"conversations": [ASK]}, (ASKED, None)),
        ({"prompt": [ASK]}, (ASKED, None)),
        ({"prompt": "a", "completion": None}, ("a", None)),
        ({"custom_id": "1", "method": "POST", "body": {"messages": [ASK]}}, (ASKED, None)),
        ({"prompt": "hi", "chosen": [ASK, REPLY], "rejected": [ASK, REPLY]}, (ASKED, "ho")),
        ({"prompt": "hi", "chosen": [REPLY], "rejected": [REPLY]}, (ASKED, "ho")),
        ({"prompt": "hi", "completion": "ho", "system": "Be brief."}, (BRIEF, "ho")),
        ({"prompt": "hi", "completion": "ho", "system": ""}, ("hi", "ho")),
        ({"messages": [ASK, REPLY], "tools": [], "images": None}, (ASKED, "ho")),
        ({"messages": [ASK, REPLY], "system": "Be brief."}, (BRIEF, "ho")),
        ({"messages": [ASK, REPLY], "system": PARTS}, (BRIEF, "ho")),
        ({"prompt": "hi", "completion": "ho", "system": PARTS}, (BRIEF, "ho")),
        ({"conversations": SHAREGPT, "system": "Be brief.", "tools": ""}, (BRIEF, "ho")),
        ({"conversations": SHAREGPT[:1], "chosen": SHAREGPT[1], "rejected": {}}, (ASKED, "ho")),
        ({"messages": json.dumps([ASK, REPLY])}, (ASKED, "ho")),
        ({"conversation": [{"human": "hi", "assistant": "ho"}]}, (ASKED, "ho")),
        ({"dialogue": SHAREGPT}, (ASKED, "ho")),
        ({"items": SHAREGPT}, (ASKED, "ho")),
        ({"contents": VERTEX}, (ASKED, "ho")),
        (
            {"contents": VERTEX, "systemInstruction": {"parts": [{"text": "Be brief."}]}},
            (BRIEF, "ho"),
        ),
        ({"prompt": "hi", "response": "ho"}, (ASKED, "ho")),
        ({"prompt": "hi", "completion": "ho", "label": True}, ("hi", "ho")),
        ({"id": "0", "data": ["hi", "ho"]}, (ASKED, "ho")),
        ({"input": {"messages": [ASK]}, "preferred_output": [REPLY]}, (ASKED, "ho")),
        ({"instruction": "hi", "input": "", "output": "ho"}, (ASKED, "ho")),
        ({"instruction": "hi", "input": None, "output": "ho"}, (ASKED, "ho")),
        ({"instruction": "hi", "output": "ho"}, (ASKED, "ho")),
        ({"instruction": "hi", "output": None}, (ASKED, None)),
        ({"instruction": "hi", "input": "x", "output": "ho"}, (user("hi\nx"), "ho")),
        ({"instruction": "hi", "context": "x", "response": "ho"}, (user("hi\nx"), "ho")),
        ({"instruction": "hi", "output": "ho", "system": "Be brief."}, (BRIEF, "ho")),
        ({"instruction": "hi", "chosen": "ho", "rejected": "no"}, (ASKED, "ho")),
        ({"instruction": "c", "output": "ho", "history": [["a", "b"]]}, (HISTORY, "ho")),
        ({"instruction": "hi", "output": "ho", "history": []}, (ASKED, "ho")),
        ({"question": "hi", "answer": "ho", "id": 7}, (ASKED, "ho")),
        ({"query": "hi", "response": "ho"}, (ASKED, "ho")),
        ({"system_prompt": "Be brief.", "question": "hi", "response": "ho"}, (BRIEF, "ho")),
    ],
)
def test_formats_are_told_by_their_columns(columns, wanted):
    assert KnownFormat().render(columns) == RowContent(*wanted)


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"question": "a"}, "unknown format .columns: question."),
        ({"prompt": " "}, "column 'prompt' is empty"),
        ({"prompt": "a", "completion": " "}, "column 'completion' is empty"),
        ({"messages": "hi"}, "is not a list of turns"),
        ({"body": {"input": "hi"}}, "is not a list of turns"),
        ({"messages": [{"role": "robot", "content": "hi"}]}, "turn 1 is by 'robot'"),
        ({"prompt": {"a": 1}}, "holds an object where text is needed"),
        ({"question": "a", "answer": 1, "choices": ["b", "c"]}, "a question with 'choices'"),
        ({"question": "a", "answer": "b", "context": "c"}, "a question with 'context'"),
        ({"question": "a", "answer": ["b", "c"]}, "column 'answer' holds a list where text"),
        ({"turns": ["a", "b"]}, "turn 1 is text, not a role and a text"),
        ({"prompt": "a", "completion": "b", "label": False}, "labelled as bad"),
        ({"messages": "[{'role': 'user', 'content': 'hi'}]"}, "turns as a Python literal"),
        ({"messages": [ASK, REPLY], "tools": {"name": "f"}}, "column 'tools' is not a JSON array"),
        ({"messages": [ASK, REPLY], "tools": "f"}, "column 'tools' is not JSON"),
        ({"prompt": "a", "completion": "<think>b"}, "the answer ends within its reasoning"),
        ({"custom_id": "1", "response": {}, "error": None}, "a batch's output has no prompts"),
        ({"conversations": SHAREGPT, "image": "x.png"}, "column 'image' is not supported"),
        ({"messages": [SYSTEM, ASK], "system": "Be long."}, "a system prompt in a column, and"),
        ({"messages": [ASK, REPLY], "system": [{"type": "image"}]}, "a part that is not text"),
        ({"instruction": "hi", "output": "ho", "history": "a"}, "not a list of questions"),
        (
            {"messages": [ASK, REPLY], "chat_template_kwargs": {"enable_thinking": False}},
            "'chat_template_kwargs' sets the chat template for one row",
        ),
        ({"prompt": "hi", "completion": float("nan")}, "column 'completion' holds NaN"),
    ],
)
def test_what_is_of_no_format_is_said(columns, said):
    with pytest.raises(UnusableRecordError, match=said):
        KnownFormat().render(columns)


TOOLS = '[{"type": "function", "function": {"name": "f", "description": "ü", "parameters": {}}}]'
SCHEMA = json.loads(TOOLS)


@pytest.mark.parametrize(
    "columns",
    [
        {"messages": [ASK, REPLY], "tools": SCHEMA},
        {"messages": [ASK, REPLY], "tools": TOOLS},
        {"messages": [ASK, REPLY], "functions": [SCHEMA[0]["function"]]},
        {"messages": [ASK], "tools": [{"name": "f", "description": "ü", "input_schema": {}}]},
        {"prompt": [ASK], "completion": [REPLY], "tools": SCHEMA},
        {"prompt": "hi", "completion": "ho", "tools": SCHEMA},
        {"conversations": SHAREGPT, "tools": TOOLS},
        {"body": {"messages": [ASK], "tools": SCHEMA}},
        {"question": "hi", "answer": "ho", "tools": TOOLS},
    ],
)
def test_tools_of_a_column(columns):
    prompt = KnownFormat().render(columns).prompt
    assert prompt == (Message(role="user", content="hi", tools=TOOLS),)


def test_calls_as_an_answer_column():
    calls = '[{"name": "f", "arguments": {"a": 1}}]'
    content = KnownFormat().render({"query": "hi", "tools": TOOLS, "answers": calls})
    assert content.answer == "" and content.tool_calls == (
        ToolCall(name="f", arguments='{"a": 1}'),
    )


@pytest.mark.parametrize(
    ("columns", "name"),
    [
        ({"messages": [ASK, REPLY]}, "chat"),
        ({"conversations": SHAREGPT}, "ShareGPT"),
        ({"contents": VERTEX}, "Vertex"),
        ({"conversation": [{"human": "hi", "assistant": "ho"}]}, "pairs"),
        ({"data": ["hi", "ho"]}, "UltraChat"),
        ({"body": {"messages": [ASK]}}, "OpenAI batch"),
        ({"prompt": "a", "completion": "b"}, "prompt and completion"),
        ({"prompt": "a", "response": "b"}, "prompt and response"),
        ({"prompt": "a", "chosen": "b"}, "preference"),
        ({"prompt": "a"}, "prompt"),
        ({"instruction": "a", "output": "b"}, "Alpaca"),
        ({"question": "a", "answer": "b"}, "question and answer"),
        ({"text": "a"}, "text"),
    ],
)
def test_the_name_of_a_format(columns, name):
    assert KnownFormat().recognise(columns).name == name


def batch_line(message: dict, finish: str = "stop", status: int = 200, **others) -> dict:
    choice = {"index": 0, "message": message, "finish_reason": finish}
    response = {"status_code": status, "body": {"choices": [choice], "usage": {}}}
    return {"custom_id": "1", "response": response, "error": None} | others


def test_a_reply_beside_its_request():
    request = {"body": {"model": "m", "messages": [ASK]}}
    assert KnownFormat().render(batch_line(REPLY) | request) == RowContent(ASKED, "ho")
    log = {"messages": [ASK], "response": {"choices": [{"message": REPLY}]}}
    assert KnownFormat().render(log) == RowContent(ASKED, "ho")
    log = {"messages": [ASK], "choices": [{"message": REPLY, "finish_reason": "stop"}]}
    assert KnownFormat().render(log) == RowContent(ASKED, "ho")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (batch_line(REPLY, "length"), "the completion is cut: finish_reason 'length'"),
        (batch_line(REPLY, status=500), "the request failed: status 500"),
        (batch_line(REPLY, error={"code": "expired"}), "the request failed: expired"),
        (batch_line(REPLY, response={"body": {"choices": []}}), "the completion has 0 choices"),
    ],
)
def test_a_reply_that_is_no_answer(line, reason):
    with pytest.raises(UnusableRecordError, match=reason):
        KnownFormat().render(line | {"body": {"messages": [ASK]}})
