"""Calls of tools and schemas of tools, as OpenAI, TRL, ShareGPT and Anthropic write them."""

import json
from collections.abc import Mapping
from typing import Any

from cohobate.data.messages import ToolCall
from tasks.collect.source_records import EMPTY, UnusableRecordError, json_type, storable

_ARGUMENTS = ("arguments", "parameters", "args", "input")


def tool_calls(place: str, turn: Mapping[str, Any]) -> tuple[ToolCall, ...]:
    """Return the calls of an assistant's turn, under `tool_calls` or OpenAI's `function_call`.

    Raises:
        UnusableRecordError: a call has no name, or its arguments are no JSON object.
    """
    if (calls := turn.get("tool_calls")) not in EMPTY:
        if isinstance(calls, str):
            calls = _json(calls, f"'tool_calls' of {place} are")
        if not isinstance(calls, list):
            raise UnusableRecordError(f"'tool_calls' of {place} are {json_type(calls)}, not a list")
        return tuple(_call(place, call) for call in calls)
    if (call := turn.get("function_call")) not in EMPTY:
        return (_call(place, call),)
    return ()


def calls_in(place: str, value: Any) -> tuple[ToolCall, ...]:
    """Return the calls that a turn consists of: an object or a list of them, or JSON text.

    Raises:
        UnusableRecordError: they cannot be read.
    """
    calls = _json(value, f"the call of {place} is") if isinstance(value, str) else value
    return tuple(_call(place, call) for call in (calls if isinstance(calls, list) else [calls]))


def schemas(column: str, value: Any) -> str | None:
    """Return the tools of a column as a JSON array; None where there are none.

    Text stays as it is, to the letter. OpenAI's older `functions`, and tools with Anthropic's
    `input_schema`, are brought into the form of OpenAI's `tools`.

    Raises:
        UnusableRecordError: it is no array of schemas.
    """
    if value in EMPTY:
        return None
    tools = _json(value, f"column {column!r} is") if isinstance(value, str) else value
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise UnusableRecordError(f"column {column!r} is not a JSON array of schemas of tools")
    if not tools:
        return None
    if column == "functions" or any("input_schema" in tool for tool in tools):
        return _text(f"column {column!r} has", [_as_tool(tool) for tool in tools])
    return storable(value) if isinstance(value, str) else _text(f"column {column!r} has", tools)


def _as_tool(tool: dict[str, Any]) -> dict[str, Any]:
    if "function" in tool:
        return tool
    names = {"input_schema": "parameters"}
    return {"type": "function", "function": {names.get(k, k): v for k, v in tool.items()}}


def _call(place: str, call: Any) -> ToolCall:
    if not isinstance(call, dict):
        raise UnusableRecordError(f"{place} has a call that is {json_type(call)}, not an object")
    function = call["function"] if isinstance(call.get("function"), dict) else call
    name, call_id = function.get("name"), call.get("id")
    if not isinstance(name, str) or not name.strip():
        raise UnusableRecordError(f"{place} has a call without 'name'")
    if call_id is not None and not isinstance(call_id, str):
        raise UnusableRecordError(f"{place} has a call whose 'id' is {json_type(call_id)}")
    arguments = next((function[key] for key in _ARGUMENTS if function.get(key) is not None), "")
    return ToolCall(
        name=storable(name),
        arguments=_arguments(place, arguments),
        id=storable(call_id) if call_id else None,
    )


def _arguments(place: str, value: Any) -> str:
    if value == "":
        return "{}"
    if isinstance(value, dict):
        return _text(f"{place} has a call with", value)
    if not isinstance(value, str):
        raise UnusableRecordError(
            f"{place} has a call whose arguments are {json_type(value)}, not an object"
        )
    arguments = _json(value, f"{place} has a call whose arguments are")
    if not isinstance(arguments, dict):
        raise UnusableRecordError(
            f"{place} has a call whose arguments are {json_type(arguments)} as text, not an object"
        )
    return storable(value)


def _json(text: str, subject: str) -> Any:
    try:
        return json.loads(text, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise UnusableRecordError(f"{subject} not JSON ({error.msg})") from None
    except (ValueError, RecursionError):
        raise UnusableRecordError(f"{subject} not JSON") from None


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _text(subject: str, value: Any) -> str:
    """Write JSON as text; keys keep their order."""
    try:
        return storable(json.dumps(value, ensure_ascii=False, allow_nan=False))
    except (ValueError, TypeError):  # NaN; dates and bytes of an Arrow table
        raise UnusableRecordError(f"{subject} a value that JSON cannot hold") from None
