"""Calls of tools in text: read in the syntaxes of common models, and written in one of them.

    Hermes, Qwen 2.5 and 3    <tool_call>{"name": "f", "arguments": {"x": 1}}</tool_call>
    Qwen3-Coder, Qwen 3.5     <tool_call><function=f><parameter=x>1</parameter></function>
                              </tool_call>
    Llama 3                   {"name": "f", "parameters": {"x": 1}}, also behind <|python_tag|>;
                              several with a semicolon between them
    Mistral                   [TOOL_CALLS][{"name": "f", "arguments": {"x": 1}}]
                              [TOOL_CALLS]f[ARGS]{"x": 1}, from tokenizer version 11 on
    JSON                      one call or a list of them, also as OpenAI's API writes them

Sources: NousResearch/Hermes-Function-Calling (README), Meta's prompt format of Llama 3.1, and the
parsers of vLLM (vllm/tool_parsers: hermes, qwen3coder, llama, mistral).
"""

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

from cohobate.data.messages import ToolCall

_TAGGED = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)
_FUNCTION = re.compile(r"<function=([^>\n]+)>(.*?)(?:</function>|\Z)", re.DOTALL)
_PARAMETER = re.compile(r"<parameter=([^>\n]+)>\n?(.*?)\n?</parameter>", re.DOTALL)
_MISTRAL = "[TOOL_CALLS]"
_NAMED = re.compile(r"([\w.-]+)\s*(?:\[CALL_ID\][^\[{]*)?(?:\[ARGS\])?\s*(?=\{)")
_LLAMA = "<|python_tag|>"
_FENCE = re.compile(r"\A```(?:json)?\s*(.*?)\s*```\Z", re.DOTALL)
_BETWEEN = re.compile(r"[\s;,]*")
_ARGUMENTS = ("arguments", "parameters")


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


_JSON = json.JSONDecoder(parse_constant=_refuse_constant)


def tool_call(name: Any, arguments: Any, id: Any = None) -> ToolCall:
    """Return a call; arguments that are text already stay as they are, to the letter.

    Raises:
        ValueError: it has no name, or the arguments are not a JSON object.
    """
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    # no arguments at all: services send null or an empty text
    text = "{}" if text.strip() in ("", "null") else text
    if not isinstance(name, str) or not name or not isinstance(_JSON.decode(text), dict):
        raise ValueError("a call needs a name, and a JSON object as its arguments")
    return ToolCall(name=name, arguments=text, id=id if isinstance(id, str) and id else None)


def with_calls(text: str, calls: Iterable[ToolCall] | None) -> str:
    """Return an answer as text, its calls behind it in the syntax of Hermes."""
    blocks = [
        f'<tool_call>\n{{"name": {json.dumps(call.name, ensure_ascii=False)}, '
        f'"arguments": {call.arguments}}}\n</tool_call>'
        for call in calls or ()
    ]
    return "\n".join([text, *blocks] if text else blocks) if blocks else text


def calls_in(text: str) -> tuple[ToolCall, ...] | None:
    """Return the calls in a text, in their order; None where one of them is malformed."""
    try:
        return tuple(_read(text))
    except (ValueError, RecursionError):
        return None


def _read(text: str) -> Iterator[ToolCall]:
    if "<tool_call>" in text:
        for match in _TAGGED.finditer(text):
            yield from _read_tagged(match[1].strip())
    elif _MISTRAL in text:
        for part in text.split(_MISTRAL)[1:]:
            yield from _read_mistral(part.strip())
    else:
        yield from _read_json(text.strip())


def _read_tagged(body: str) -> Iterator[ToolCall]:
    if not body.startswith("<function="):
        yield from map(_call, _json_values(body))
        return
    for function in _FUNCTION.finditer(body):
        arguments = {name: _value(value) for name, value in _PARAMETER.findall(function[2])}
        yield tool_call(function[1].strip(), arguments)


def _read_mistral(body: str) -> Iterator[ToolCall]:
    if named := _NAMED.match(body):
        arguments, _ = _JSON.raw_decode(body, named.end())
        yield tool_call(named[1], arguments)
    else:
        yield from map(_call, _json_values(body))


def _read_json(text: str) -> Iterator[ToolCall]:
    fenced = _FENCE.match(text)
    body = fenced[1] if fenced else text
    marked = body.startswith(_LLAMA)
    try:
        values = list(_json_values(body.removeprefix(_LLAMA).strip()))
    except ValueError:
        values = []
    # without a mark an answer may be any text, and any JSON
    if marked or all(map(_is_call, values)):
        yield from map(_call, values or [None] * marked)


def _json_values(text: str) -> Iterator[Any]:
    """Yield the JSON values that a text consists of, the items of lists one by one."""
    position = 0
    while position < len(text):
        value, position = _JSON.raw_decode(text, position)
        yield from value if isinstance(value, list) else [value]
        between = _BETWEEN.match(text, position)
        position = between.end() if between else position


def _is_call(value: Any) -> bool:
    fields = value.get("function", value) if isinstance(value, dict) else None
    return isinstance(fields, dict) and "name" in fields and bool({*_ARGUMENTS} & fields.keys())


def _call(value: Any) -> ToolCall:
    if not isinstance(value, dict):
        raise ValueError("a call is a JSON object")
    fields = value.get("function", value)
    if not isinstance(fields, dict):
        raise ValueError("a call is a JSON object")
    arguments = next((fields[name] for name in _ARGUMENTS if name in fields), None)
    return tool_call(fields.get("name"), arguments, value.get("id"))


def _value(text: str) -> Any:
    """Return a parameter between tags: JSON where it is, else text."""
    try:
        return _JSON.decode(text)
    except ValueError:
        return text
