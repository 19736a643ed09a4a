"""Records of any shape: each becomes a row that a file can hold, or says why it cannot."""

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from cohobate.data.records import Row
from tasks.collect.known_formats import KnownFormat
from tasks.collect.source_records import UnusableRecordError

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-1, 1)
    | st.sampled_from(
        ["", "a", "f", "<think>a</think>b", "</think>", "[]", "{}", '{"a": 1}', "\ud800"]
    )
    | st.floats(),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["name", "arguments", "type", "text"]), inner, max_size=3)
    ),
    max_leaves=5,
)
PARTS = st.dictionaries(
    st.sampled_from(["type", "text", "thinking", "thought", "functionCall", "input", "content"]),
    VALUES | st.sampled_from(["tool_use", "tool_result", "thinking", "text"]),
    max_size=4,
)
CALLS = st.fixed_dictionaries(
    {"name": st.just("f") | VALUES},
    optional={"arguments": VALUES, "id": VALUES, "function": VALUES},
)
ROLES = ["user", "human", "assistant", "gpt", "tool", "function_call", "observation", "system"]
TURNS = st.fixed_dictionaries(
    {
        "role": st.sampled_from(ROLES),
        "content": st.just("a") | VALUES | st.lists(PARTS, max_size=3),
    },
    optional={
        "tool_calls": st.lists(CALLS, max_size=2) | VALUES,
        "function_call": CALLS | VALUES,
        "reasoning": VALUES,
        "thinking": VALUES,
        "tool_call_id": VALUES,
        "name": VALUES,
        "weight": VALUES,
        "tools": VALUES,
        "value": VALUES,
    },
)
CHATS = st.lists(TURNS | VALUES, max_size=5)
COLUMNS = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(("messages", "conversations", "prompt", "completion", "chosen"), CHATS),
        **dict.fromkeys(("tools", "functions", "system", "query", "answers", "answer"), VALUES),
        **dict.fromkeys(("instruction", "output", "history", "data", "error"), VALUES),
        "body": st.fixed_dictionaries({"messages": CHATS}, optional={"tools": VALUES}) | VALUES,
        "response": st.fixed_dictionaries(
            {"choices": st.lists(st.fixed_dictionaries({"message": TURNS}), max_size=2)}
        )
        | VALUES,
        "custom_id": VALUES,
    },
)


def check(columns: dict) -> None:
    try:
        content = KnownFormat().render(columns)
    except UnusableRecordError as error:
        assert str(error)
        return
    for one in (content, content.without_reasoning(), content.with_earlier_turns_learnt()):
        row = one.row("")
        assert Row.model_validate_json(row.model_dump_json()) == row
    if not isinstance(content.prompt, str):
        assert content.prompt[-1].role in ("user", "tool")
        calls = [call for turn in content.prompt for call in turn.tool_calls or ()]
        for call in (*calls, *(content.tool_calls or ())):
            assert isinstance(json.loads(call.arguments), dict)


@settings(max_examples=100)
@given(COLUMNS)
def test_a_record_of_any_columns(columns):
    check(columns)


@settings(max_examples=100)
@given(st.lists(TURNS, min_size=1, max_size=4))
def test_a_conversation_of_any_turns(turns):
    check({"messages": turns})
