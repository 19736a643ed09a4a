"""Turns as tools write them: read as they are, or set aside with the turn and the key."""

import pytest

from cohobate.data.messages import Message
from tasks.collect.conversations import conversation
from tasks.collect.source_records import UnusableRecordError

NULL_KEYS = {"name": None, "tool_calls": None, "function_call": None, "weight": None}


def turn(role: str, content: object, **others: object) -> dict:
    return {"role": role, "content": content, **others}


def said(role: str, text: str) -> dict:
    return {"from": role, "value": text}


HELLO = (Message(role="user", content="Hello"),)


@pytest.mark.parametrize(
    "role",
    [
        *("gpt", "GPT", "chatgpt", "bing", "bard", "bot", "chatbot", "model", "ai"),
        *("gpt-4", "gpt4", "chatgpt-4o-latest", "claude-3-opus", "assistant", " Assistant "),
    ],
)
@pytest.mark.parametrize("asker", ["human", "user", "User", "prompter"])
def test_sharegpt_roles(asker, role):
    assert conversation([said(asker, "Hello"), said(role, "Hi")]) == (HELLO, "Hi")


def test_a_long_conversation_keeps_every_turn_as_it_is():
    turns = [
        said("system", "Be brief."),
        said("human", "a"),
        said("gpt", " b "),
        said("human", "c"),
    ]
    roles = ("system", "user", "assistant", "user")
    texts = ("Be brief.", "a", " b ", "c")
    prompt, answer = conversation([*turns, said("gpt", "d\n")])
    assert [(m.role, m.content) for m in prompt] == list(zip(roles, texts, strict=True))
    assert answer == "d\n"
    assert conversation(turns) == (prompt, None)


@pytest.mark.parametrize(
    "turns",
    [
        [turn("user", "Hello", **NULL_KEYS), turn("assistant", "Hi", **NULL_KEYS)],
        [turn("user", "Hello", name="Ann"), turn("assistant", "Hi", weight=1)],
        [turn("user", "Hello", id=7, meta={"a": 1}), turn("assistant", "Hi", train=True)],
        [turn("user", "Hello"), turn("assistant", "Hi", tool_calls=[], refusal=None)],
        [turn("user", [{"type": "text", "text": "Hello", "image_url": None}]), turn("bot", "Hi")],
        [turn("user", [{"type": "text", "text": "Hel"}, "lo"]), turn("model", "Hi")],
        [{"human": "Hello", "assistant": "Hi"}],
        [{"input": "Hello", "output": "Hi"}],
        [turn("user", None, parts=[{"text": "Hello"}]), turn("model", None, parts=["Hi"])],
        [{"speaker": "human", "text": "Hello"}, {"speaker": "ai", "text": "Hi"}],
    ],
)
def test_the_same_turns_as_tools_write_them(turns):
    assert conversation(turns) == (HELLO, "Hi")


CALL = {"function": {"name": "f", "arguments": "{}"}}


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        ([said("human", "a"), said("function_call", "f()")], "ShareGPT turn 2 is a tool's"),
        ([said("human", "a"), said("observation", "7")], "ShareGPT turn 2 is a tool's"),
        ([turn("user", "a"), turn("tool", "7", tool_call_id="x")], "turn 2 has 'tool_call_id'"),
        (
            [turn("user", "a"), turn("assistant", None, tool_calls=[CALL])],
            "turn 2 has 'tool_calls'",
        ),
        ([turn("user", "a"), turn("assistant", "", refusal="no")], "turn 2 has 'refusal'"),
        (
            [turn("user", "a"), turn("assistant", "b", reasoning_content="c")],
            "turn 2 has 'reasoning_content' (remove the key to keep the row)",
        ),
        (
            [turn("user", [{"type": "image_url", "image_url": {"url": "x"}}])],
            "'content' of turn 1 has a part that is not text ('image_url')",
        ),
        ([said("human", "a"), {"from": "gpt"}], "ShareGPT turn 2 has no 'value'"),
        ([said("human", "a"), {"value": "b"}], "ShareGPT turn 2 has no 'from' (keys: value)"),
        ([turn("user", "a"), turn("assistant", None)], "turn 2 has no 'content'"),
        ([{"content": "a"}], "turn 1 has no 'role' (keys: content)"),
        ([said("robot", "a")], "ShareGPT turn 1 is by 'robot', which is not a known role"),
        ([turn("user", 3)], "'content' of turn 1 is a number, not text"),
        ([turn("user", {"a": 1})], "'content' of turn 1 is an object, not text"),
        ([{"role": 3, "content": "a"}], "the role of turn 1 is a number"),
        ([["a"]], "turn 1 is a list, not a role and a text"),
        (["a", "b"], "turn 1 is text, not a role and a text"),
        ([turn("user", "a"), turn("assistant", "b", weight=0)], "the answer is excluded"),
        ([said("human", "a"), said("gpt", "b") | {"train": False}], "the answer is excluded"),
        ([turn("assistant", "a")], "the conversation does not end with a user's turn"),
        ([turn("user", "a"), turn("gpt", "b"), turn("gpt", "c")], "the conversation does not end"),
        ([], "the conversation does not end with a user's turn"),
        ([turn("user", "\udfff")], "half a surrogate pair"),
    ],
)
def test_what_a_row_cannot_hold_is_named(turns, reason):
    with pytest.raises(UnusableRecordError) as refused:
        conversation(turns)
    assert str(refused.value).startswith(reason)


def test_a_weight_of_nought_on_an_earlier_turn_costs_nothing():
    turns = [turn("user", "a"), turn("assistant", "b", weight=0), turn("user", "c")]
    prompt, answer = conversation([*turns, turn("assistant", "d", weight=1)])
    assert len(prompt) == 3 and answer == "d"
