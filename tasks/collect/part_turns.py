"""Turns whose parts are calls of tools or their results, as Anthropic and Vertex write them.

{"role": "assistant", "content": [{"type": "tool_use", "id": "1", "name": "f", "input": {}}]}
{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1", "content": "7"}]}
{"role": "model", "parts": [{"functionCall": {"name": "f", "args": {}}}]}
{"role": "user", "parts": [{"functionResponse": {"name": "f", "response": {"result": 7}}}]}
"""

import json
from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import Any

_CALLS = ("tool_use", "functionCall", "function_call")
_RESULTS = ("tool_result", "functionResponse", "function_response")


def with_calls_beside(turn: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield a turn with its calls under `tool_calls`, and each result as a tool's turn."""
    key = "parts" if isinstance(turn.get("parts"), list) else "content"
    parts = turn.get(key)
    if not isinstance(parts, list) or not any(_kind(part) for part in parts):
        yield turn
        return
    if calls := [_value(part, _CALLS) for part in parts if _kind(part) == "call"]:
        text = [part for part in parts if _kind(part) != "call"]
        yield {**turn, key: text, "tool_calls": calls}
        return
    for is_result, group in groupby(parts, key=lambda part: _kind(part) == "result"):
        if is_result:
            yield from map(_result, group)
        else:
            yield {**turn, key: list(group)}


def _kind(part: Any) -> str:
    """Return "call" or "result", "" for any other part."""
    if not isinstance(part, dict):
        return ""
    names = {str(part.get("type")), *(key for key, value in part.items() if value is not None)}
    if names.intersection(_CALLS):
        return "call"
    return "result" if names.intersection(_RESULTS) else ""


def _value(part: Mapping[str, Any], names: tuple[str, ...]) -> Mapping[str, Any]:
    nested = next((part[name] for name in names if isinstance(part.get(name), dict)), None)
    return part if nested is None else nested


def _result(part: Mapping[str, Any]) -> dict[str, Any]:
    result = _value(part, _RESULTS)
    content = result.get("content", result.get("response"))
    if isinstance(content, dict):  # Vertex; any other result is text or parts
        content = json.dumps(content, ensure_ascii=False)
    fields = {"tool_call_id": result.get("tool_use_id"), "name": result.get("name")}
    return {"role": "tool", "content": content or ""} | {k: v for k, v in fields.items() if v}
