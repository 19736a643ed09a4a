"""Calls of tools in text, in each of the syntaxes that models write."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cohobate.data.messages import ToolCall
from cohobate.data.tool_calls import calls_in, tool_call, with_calls

OSLO = ToolCall(name="weather", arguments='{"city": "Oslo", "days": 2}')
ADD = ToolCall(name="add", arguments='{"a": 1}')
SYNTAXES = {
    "Hermes": '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo", "days": 2}}\n'
    "</tool_call>",
    "Hermes without an end": '<tool_call>{"name": "weather", "arguments": {"city": "Oslo", '
    '"days": 2}}',
    "Qwen3-Coder": "<tool_call>\n<function=weather>\n<parameter=city>\nOslo\n</parameter>\n"
    "<parameter=days>\n2\n</parameter>\n</function>\n</tool_call>",
    "Llama 3": '{"name": "weather", "parameters": {"city": "Oslo", "days": 2}}',
    "Llama 3 behind a tag": '<|python_tag|>{"name": "weather", "parameters": {"city": "Oslo", '
    '"days": 2}}',
    "Mistral": '[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Oslo", "days": 2}}]',
    "Mistral, version 11": '[TOOL_CALLS]weather[ARGS]{"city": "Oslo", "days": 2}',
    "Mistral, with an id": '[TOOL_CALLS]weather[CALL_ID]a1B2c3D4e[ARGS]{"city": "Oslo", "days": 2}',
    "OpenAI": '[{"type": "function", "function": {"name": "weather", "arguments": '
    '"{\\"city\\": \\"Oslo\\", \\"days\\": 2}"}}]',
    "a code fence": '```json\n{"name": "weather", "arguments": {"city": "Oslo", "days": 2}}\n```',
}


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_a_call_is_read(syntax):
    assert calls_in(SYNTAXES[syntax]) == (OSLO,)


@pytest.mark.parametrize(
    "text",
    [
        f"Let me see.\n{with_calls('', [OSLO, ADD])}",
        '{"name": "weather", "parameters": {"city": "Oslo", "days": 2}}; '
        '{"name": "add", "parameters": {"a": 1}}',
        '[TOOL_CALLS]weather{"city": "Oslo", "days": 2}[TOOL_CALLS]add{"a": 1}',
        '[TOOL_CALLS][{"name": "weather", "arguments": {"city": "Oslo", "days": 2}}, '
        '{"name": "add", "arguments": {"a": 1}}]',
    ],
)
def test_several_calls_keep_their_order(text):
    assert calls_in(text) == (OSLO, ADD)


@pytest.mark.parametrize(
    "text", ["", "It rains.", "42", '{"city": "Oslo"}', "[1, 2]", "a [link] {x}", "NaN"]
)
def test_a_text_without_a_call_has_none(text):
    assert calls_in(text) == ()


@pytest.mark.parametrize(
    "text",
    [
        '<tool_call>{"name": "weather", "arguments": {"city": </tool_call>',
        '<tool_call>{"arguments": {}}</tool_call>',
        '<tool_call>{"name": "weather", "arguments": [1]}</tool_call>',
        "[TOOL_CALLS] weather in Oslo",
        '<|python_tag|>weather.call(city="Oslo")',
        "<tool_call>" + "[" * 100_000,
    ],
)
def test_a_malformed_call_is_told_from_no_call(text):
    assert calls_in(text) is None


def test_an_answer_is_written_with_its_calls_and_read_again():
    text = with_calls("Let me see.", [OSLO, ADD])
    assert text.startswith("Let me see.\n<tool_call>\n") and calls_in(text) == (OSLO, ADD)
    assert with_calls("Let me see.", None) == "Let me see."
    assert with_calls("", [OSLO]) == SYNTAXES["Hermes"]


def test_arguments_stay_as_they_were_written():
    assert tool_call("f", '{"b":1,  "a": 2}').arguments == '{"b":1,  "a": 2}'
    assert tool_call("f", "").arguments == tool_call("f", None).arguments == "{}"
    with pytest.raises(ValueError, match="JSON object"):
        tool_call("f", "[1]")
    with pytest.raises(ValueError, match="name"):
        tool_call("", "{}")


@given(st.text())
def test_any_text_can_be_read(text):
    for mark in ("", "<tool_call>", "[TOOL_CALLS]", "<|python_tag|>"):
        calls_in(mark + text)
