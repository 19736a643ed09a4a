"""Conversations: the turns of a record as a prompt and its answer."""

import json
import re
from collections.abc import Sequence
from typing import Any

from cohobate.data.messages import Message
from tasks.collect.row_content import RowContent
from tasks.collect.source_records import MAX_CHARACTERS, UnusableRecordError
from tasks.collect.turns import ROLE_KEYS, messages_of

_NO_END = "the conversation does not end with a user's or a tool's turn, or an answer to one"
_PYTHON_TURNS = re.compile(r"\[\s*\{\s*'")


def conversation(turns: list[Any], system: str = "", tools: str | None = None) -> RowContent:
    """Return prompt and answer of a conversation; the answer is the assistant's last turn, if any.

    Args:
        turns: in any of the formats that tasks/collect/turns.py reads.
        system: a system prompt from another column.
        tools: schemas from another column, a JSON array.

    Raises:
        UnusableRecordError: a turn cannot be read, or no user's turn precedes the answer.
    """
    messages = list(messages_of(turns))
    if messages and messages[0].tools:
        tools = _only_tools(messages[0].tools, tools)
        messages[0] = messages[0].model_copy(update={"tools": None})
    if system and messages and messages[0].role != "system":
        messages.insert(0, Message(role="system", content=system))
    elif system and messages and messages[0].content != system:
        raise UnusableRecordError("a system prompt in a column, and another one as the first turn")
    answer = messages.pop() if messages and messages[-1].role == "assistant" else None
    if not messages or messages[-1].role not in ("user", "tool"):
        raise UnusableRecordError(_NO_END)
    _check([*messages, answer] if answer else messages)
    if len(tools or "") > MAX_CHARACTERS:
        raise UnusableRecordError(f"longer than {MAX_CHARACTERS} characters")
    if tools:
        messages[0] = messages[0].model_copy(update={"tools": tools})
    prompt = tuple(messages)
    if answer is None or not (answer.content or answer.tool_calls):
        return RowContent(prompt)
    if answer.learn is False:
        raise UnusableRecordError("the answer is excluded from training (weight, train or loss)")
    return RowContent(prompt, answer.content, answer.reasoning, answer.tool_calls)


def turns_in(value: Any) -> list[Any] | None:
    """Return the turns in a column, a list or JSON text; None where it holds none.

    Raises:
        UnusableRecordError: the text is a Python list literal.
    """
    if isinstance(value, list):
        return value
    if not isinstance(value, str) or not value.lstrip().startswith("["):
        return None
    try:
        turns = json.loads(value)
    except (ValueError, RecursionError):
        if _PYTHON_TURNS.match(value.lstrip()):
            raise UnusableRecordError(
                "turns as a Python literal, which is not JSON (write them with json.dumps)"
            ) from None
        return None
    is_turn = [isinstance(turn, dict) and any(key in turn for key in ROLE_KEYS) for turn in turns]
    return turns if turns and all(is_turn) else None


def _check(messages: Sequence[Message]) -> None:
    """Refuse a conversation without a user, with results of no call, or that is too long."""
    if all(message.role != "user" for message in messages):
        raise UnusableRecordError("no turn of the conversation is a user's")
    length, call_ids = 0, set()
    for message in messages:
        length += len(message.content) + len(message.reasoning or "")
        for call in message.tool_calls or ():
            length += len(call.arguments)
            call_ids.add(call.id)
        # where calls have no ids, results belong to them by their order
        if message.tool_call_id and call_ids - {None} and message.tool_call_id not in call_ids:
            raise UnusableRecordError("a tool's turn answers a call that no turn before it makes")
    if length > MAX_CHARACTERS:
        raise UnusableRecordError(f"longer than {MAX_CHARACTERS} characters")


def _only_tools(own: str, others: str | None) -> str:
    """Return the tools of the first turn, where a column holds no others."""
    if others and json.loads(own) != json.loads(others):
        raise UnusableRecordError("tools in a column, and others in the first turn")
    return own
