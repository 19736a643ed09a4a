"""Turns as tools write them: read as they are, or set aside with the turn and the key."""

import pytest

from cohobate.data.messages import Message, ToolCall
from tasks.collect.conversations import conversation
from tasks.collect.row_content import RowContent
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
    assert conversation([said(asker, "Hello"), said(role, "Hi")]) == RowContent(HELLO, "Hi")


def test_a_long_conversation_keeps_every_turn_as_it_is():
    turns = [
        said("system", "Be brief."),
        said("human", "a"),
        said("gpt", " b "),
        said("human", "c"),
    ]
    roles = ("system", "user", "assistant", "user")
    texts = ("Be brief.", "a", " b ", "c")
    prompt, answer, *_ = conversation([*turns, said("gpt", "d\n")])
    assert [(m.role, m.content) for m in prompt] == list(zip(roles, texts, strict=True))
    assert answer == "d\n"
    assert conversation(turns) == RowContent(prompt)


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
    assert conversation(turns) == RowContent(HELLO, "Hi")


CALL = {"function": {"name": "f", "arguments": "{}"}}
SPEAK = [turn("user", "a"), turn("assistant", None, tool_calls=[CALL])]


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        ([said("human", "a"), said("function_call", "f()")], "the call of ShareGPT turn 2 is not"),
        ([said("human", "a"), said("function_call", "{}")], "ShareGPT turn 2 has a call without"),
        ([turn("user", "a", tool_call_id="x")], "turn 1 has 'tool_call_id', which no user's turn"),
        ([turn("user", "a", tool_calls=[CALL])], "turn 1 has 'tool_calls', which no user's turn"),
        ([turn("user", "a", reasoning="b")], "turn 1 has 'reasoning', which no user's turn"),
        ([*SPEAK, turn("tool", None)], "turn 3 has no 'content'"),
        ([*SPEAK, turn("tool", {"a": 1})], "'content' of turn 3 is an object, not text"),
        ([*SPEAK, turn("tool", "a", name=3)], "'name' of turn 3 is a number, not text"),
        ([turn("tool", "a")], "no turn of the conversation is a user's"),
        ([turn("user", "a"), turn("assistant", "", tools=[CALL])], "turn 2 has 'tools', which"),
        ([turn("user", "a"), turn("bot", "<think>hm")], "turn 2 ends within its reasoning"),
        ([turn("user", "a"), turn("bot", "", thinking="b")], "turn 2 ends within its reasoning"),
        (
            [turn("user", "a"), turn("bot", "<think>b</think>c", reasoning="d")],
            "turn 2 has two different texts of reasoning",
        ),
        (
            [turn("user", "a"), turn("bot", "b", reasoning={"c": 1})],
            "'reasoning' of turn 2 is an object, not text",
        ),
        ([turn("user", "a"), turn("assistant", "", refusal="no")], "turn 2 has 'refusal'"),
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
        ([turn("assistant", "a")], "the conversation does not end with a user's or a"),
        ([turn("user", "a"), turn("gpt", "b"), turn("gpt", "c")], "the conversation does not end"),
        ([], "the conversation does not end with a user's or a"),
        ([turn("user", "\udfff")], "half a surrogate pair"),
    ],
)
def test_what_a_row_cannot_hold_is_named(turns, reason):
    with pytest.raises(UnusableRecordError) as refused:
        conversation(turns)
    assert str(refused.value).startswith(reason)


def test_an_earlier_turn_with_a_weight_of_nought_is_never_learnt():
    turns = [turn("user", "a"), turn("assistant", "b", weight=0), turn("user", "c")]
    content = conversation([*turns, turn("assistant", "d", weight=1)])
    assert [message.learn for message in content.prompt] == [None, False, None]
    assert content.answer == "d" and content.with_earlier_turns_learnt().learn is None


def test_earlier_turns_are_learnt_where_there_are_any():
    turns = [turn("user", "a"), turn("assistant", "b"), turn("user", "c"), turn("assistant", "d")]
    assert conversation(turns).learn is None
    assert conversation(turns).with_earlier_turns_learnt().learn == "all"
    assert conversation(turns[:3]).with_earlier_turns_learnt().learn == "all"
    # one turn; and what an assistant says before the user
    for single in (turns[2:], [turn("assistant", "Welcome"), *turns[2:]]):
        assert conversation(single).with_earlier_turns_learnt().learn is None


@pytest.mark.parametrize(
    "reply",
    [
        turn("assistant", "b", reasoning_content="hm"),
        turn("assistant", "b", reasoning="hm", reasoning_content="hm"),
        turn("assistant", "b", thinking="hm", reasoning=None),
        turn("assistant", "<think>\nhm\n</think>\n\nb"),
        turn("assistant", "<think>hm</think>b", reasoning_content="hm"),
        turn("assistant", [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "b"}]),
        turn(
            "assistant", [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, "b"]
        ),
        {"role": "model", "parts": [{"text": "hm", "thought": True}, {"text": "b"}]},
        said("gpt", "hm\n</think>\n\nb"),
    ],
)
def test_reasoning_is_kept_apart(reply):
    content = conversation([turn("user", "Hello"), reply])
    assert content == RowContent(HELLO, "b", "hm")
    assert content.without_reasoning() == RowContent(HELLO, "b")


def test_reasoning_of_an_earlier_turn_stays_with_it():
    turns = [turn("user", "a"), turn("assistant", "b", reasoning="hm"), turn("user", "c")]
    content = conversation(turns)
    assert [message.reasoning for message in content.prompt] == [None, "hm", None]
    assert all(message.reasoning is None for message in content.without_reasoning().prompt)


F = ToolCall(name="f", arguments='{"b": 1, "a": "ü"}')


@pytest.mark.parametrize(
    "reply",
    [
        turn("assistant", None, tool_calls=[{"function": F.model_dump(exclude={"id"})}]),
        turn("assistant", "", tool_calls=[{"name": "f", "arguments": {"b": 1, "a": "ü"}}]),
        turn("assistant", "", tool_calls='[{"name": "f", "parameters": {"b": 1, "a": "ü"}}]'),
        turn("assistant", None, function_call={"name": "f", "arguments": F.arguments}),
        said("function_call", '{"name": "f", "arguments": {"b": 1, "a": "ü"}}'),
        said("tool_call", '[{"name": "f", "arguments": {"b": 1, "a": "ü"}}]'),
        said("function_call", {"name": "f", "arguments": {"b": 1, "a": "ü"}}),
    ],
)
def test_calls_of_tools(reply):
    assert conversation([turn("user", "Hello"), reply]) == RowContent(HELLO, "", None, (F,))


def test_a_text_before_a_call_and_the_id_of_the_call():
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": ""}}
    content = conversation([turn("user", "Hello"), turn("assistant", "I look.", tool_calls=[call])])
    no_arguments = ToolCall(name="f", arguments="{}", id="c1")
    assert content == RowContent(HELLO, "I look.", None, (no_arguments,))


@pytest.mark.parametrize(
    "result",
    [
        turn("tool", "7", tool_call_id="c1", name="f"),
        turn("function", "7", name="f"),
        turn("ipython", "7"),
        said("observation", "7"),
        said("tool", "7"),
        turn("tool", [{"type": "text", "text": "7"}]),
    ],
)
def test_a_conversation_that_ends_with_a_result_is_a_prompt(result):
    call = {"id": "c1", "function": {"name": "f", "arguments": "{}"}}
    turns = [turn("user", "Hello"), turn("assistant", None, tool_calls=[call]), result]
    prompt = conversation(turns).prompt
    assert [message.role for message in prompt] == ["user", "assistant", "tool"]
    assert prompt[2].content == "7" and prompt[2].name == result.get("name")
    assert conversation(turns) == RowContent(prompt)
    assert conversation([*turns, turn("assistant", "seven")]) == RowContent(prompt, "seven")


@pytest.mark.parametrize(
    ("call", "result"),
    [
        (
            turn("assistant", ["I look.", {"type": "tool_use", "id": "c1", "name": "f"}]),
            turn("user", [{"type": "tool_result", "tool_use_id": "c1", "content": '{"a": 7}'}]),
        ),
        (
            {"role": "model", "parts": [{"text": "I look."}, {"functionCall": {"name": "f"}}]},
            {
                "role": "user",
                "parts": [{"functionResponse": {"name": "f", "response": {"a": 7}}}],
            },
        ),
    ],
    ids=["Anthropic", "Vertex"],
)
def test_calls_and_results_as_parts(call, result):
    content = conversation([turn("user", "Hello"), call, result, turn("assistant", "seven")])
    _, speaks, answers = content.prompt
    assert (speaks.role, speaks.content, speaks.tool_calls[0].name) == ("assistant", "I look.", "f")
    assert (answers.role, answers.content) == ("tool", '{"a": 7}')
    assert content.answer == "seven"


def test_a_result_of_no_call_is_named():
    call = {"id": "c1", "function": {"name": "f", "arguments": "{}"}}
    turns = [turn("user", "a"), turn("assistant", None, tool_calls=[call])]
    with pytest.raises(UnusableRecordError, match="answers a call that no turn before it makes"):
        conversation([*turns, turn("tool", "7", tool_call_id="c2")])


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        ({"name": "f", "arguments": "{a: 1}"}, "turn 2 has a call whose arguments are not"),
        ({"name": "f", "arguments": "[1]"}, "turn 2 has a call whose arguments are a list as text"),
        ({"name": "f", "arguments": [1]}, "turn 2 has a call whose arguments are a list, not an"),
        (
            {"name": "f", "arguments": '{"a": NaN}'},
            "turn 2 has a call whose arguments are not",
        ),
        (
            {"name": "f", "arguments": {"a": float("nan")}},
            "turn 2 has a call with a value that",
        ),
        ({"name": "", "arguments": {}}, "turn 2 has a call without 'name'"),
        ({"name": "f", "id": 7}, "turn 2 has a call whose 'id' is a number"),
        ("f()", "turn 2 has a call that is text, not an object"),
    ],
)
def test_a_call_that_cannot_be_read_is_named(call, reason):
    with pytest.raises(UnusableRecordError) as refused:
        conversation([turn("user", "a"), turn("assistant", None, tool_calls=[call])])
    assert str(refused.value).startswith(reason)


def test_tools_stand_on_the_first_turn():
    tools = '[{"name": "f"}]'
    turns = [turn("system", "Be brief.", tools=[{"name": "f"}]), turn("user", "a")]
    assert [m.tools for m in conversation(turns).prompt] == [tools, None]
    assert [m.tools for m in conversation(turns[1:], "Be brief.", tools).prompt] == [tools, None]
    assert [m.tools for m in conversation(turns, tools=tools).prompt] == [tools, None]
    with pytest.raises(UnusableRecordError, match="tools in a column, and others in the first"):
        conversation(turns, tools='[{"name": "g"}]')
