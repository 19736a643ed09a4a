"""Turns of conversations as OpenAI, TRL, ShareGPT, Anthropic and Vertex write them, and as pairs.

    {"role": "user", "content": "Hello"}          {"from": "human", "value": "Hello"}
    {"role": "assistant", "tool_calls": [...]}    {"from": "function_call", "value": "{...}"}
    {"role": "tool", "content": "7"}              {"from": "observation", "value": "7"}
    {"human": "Hello", "assistant": "Hi"}         {"role": "model", "parts": [{"text": "Hi"}]}

Keys with null are ignored. A turn that cannot be read, or that holds more than a row can (an
image), quarantines the record; the reason names turn and key. Nothing is cut or merged.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from cohobate.data.messages import Message, Role
from cohobate.data.reasoning import split
from tasks.collect.part_turns import with_calls_beside
from tasks.collect.source_records import (
    EMPTY,
    UnusableRecordError,
    excerpt,
    json_type,
    storable,
)
from tasks.collect.tool_calls import calls_in, schemas, tool_calls

_Role = Role | Literal["call"]
_ROLES: dict[str, _Role] = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bing", "bard", "bot", "chatbot"), "assistant"),
    **dict.fromkeys(("model", "ai", "claude", "gemini", "llm"), "assistant"),
    **dict.fromkeys(("tool", "tools", "tool_response", "tool_result", "tool_results"), "tool"),
    **dict.fromkeys(("function", "function_response", "observation", "ipython"), "tool"),
    # an assistant's turn whose text is the call
    **dict.fromkeys(("function_call", "tool_call", "tool_calls"), "call"),
}
_MODEL_NAME = re.compile(r"(?:chat)?gpt[-_. ]?\d.*|claude[-_. ].*|gemini[-_. ].*")
ROLE_KEYS = ("role", "from", "speaker", "author")
_TEXT_KEYS = ("content", "value", "text", "message", "parts")
_PAIRS = (
    ("human", "assistant"),
    ("user", "assistant"),
    ("human", "gpt"),
    ("user", "bot"),
    ("question", "answer"),
    ("instruction", "output"),
    ("input", "output"),
)
_REASONING = ("reasoning_content", "reasoning", "thinking")
_MORE_THAN_TEXT = frozenset({"refusal", "image", "images", "audio", "video", "videos"})
_OF_SOME_ROLES: dict[str, tuple[_Role, ...]] = {
    **dict.fromkeys(("tool_calls", "function_call", *_REASONING), ("assistant", "call")),
    "tool_call_id": ("tool",),
}
"""Keys that only turns of these roles have."""
_SPECIAL = _MORE_THAN_TEXT | _OF_SOME_ROLES.keys()
_MARKS = frozenset({"weight", "train", "loss"})
"""Keys that exclude a turn from training where they are 0 or false."""
_TEXT_PARTS = frozenset({"text", "input_text", "output_text"})
_REASONING_PARTS = frozenset({"thinking", "reasoning"})


def messages_of(turns: list[Any]) -> Iterator[Message]:
    """Yield the messages of turns; a pair is two of them, or three with its system prompt.

    Raises:
        UnusableRecordError: a turn cannot be read.
    """
    for number, turn in enumerate(turns, start=1):
        if not isinstance(turn, dict):
            raise UnusableRecordError(f"turn {number} is {json_type(turn)}, not a role and a text")
        present = {key: value for key, value in turn.items() if value is not None}
        if isinstance(present.get("content"), str):
            yield from _read(number, present)
            continue
        for one in with_calls_beside(present):
            yield from _read(number, one)


def _read(number: int, turn: Mapping[str, Any]) -> Iterator[Message]:
    place = f"ShareGPT turn {number}" if "from" in turn or "value" in turn else f"turn {number}"
    role_key = next((key for key in ROLE_KEYS if key in turn), None)
    role = _role(place, turn[role_key]) if role_key else "assistant"
    _refuse_keys(place, turn, role)
    if role_key is None:
        yield from _pair(place, turn)
        return
    text_key = next((key for key in _TEXT_KEYS if key in turn), None)
    if role == "call":
        message = _call_turn(place, turn, text_key)
    elif role == "assistant":
        message = _assistant_turn(place, turn, text_key)
    else:
        message = Message(role=role, content=_text(place, _needed(place, turn, text_key), turn))
        if role == "tool":
            message = message.model_copy(update=_tool_fields(place, turn))
    if (tools := turn.get("tools")) not in EMPTY:
        message = message.model_copy(update={"tools": _own_tools(number, place, tools)})
    yield message


def _refuse_keys(place: str, turn: Mapping[str, Any], role: _Role) -> None:
    # in the order of the turn: of several reasons the same one in every run
    for key in turn:
        if key not in _SPECIAL or turn[key] in EMPTY:
            continue
        if key in _MORE_THAN_TEXT:
            raise UnusableRecordError(f"{place} has {key!r} (remove the key to keep the row)")
        if role not in _OF_SOME_ROLES[key]:
            raise UnusableRecordError(f"{place} has {key!r}, which no {role}'s turn can have")


def _own_tools(number: int, place: str, tools: Any) -> str | None:
    if number > 1:
        raise UnusableRecordError(f"{place} has 'tools', which only the first turn can have")
    return schemas("tools", tools)


def _role(place: str, name: Any) -> _Role:
    if not isinstance(name, str):
        raise UnusableRecordError(f"the role of {place} is {json_type(name)}")
    plain = name.strip().lower()
    if plain in _ROLES:
        return _ROLES[plain]
    if _MODEL_NAME.fullmatch(plain):
        return "assistant"
    known = "system, user, human, assistant, gpt, tool, ..."
    raise UnusableRecordError(
        f"{place} is by {excerpt(name)[:40]!r}, which is not a known role ({known})"
    )


def _needed(place: str, turn: Mapping[str, Any], text_key: str | None) -> str:
    if text_key is None:
        raise UnusableRecordError(f"{place} has no {'value' if 'from' in turn else 'content'!r}")
    return text_key


def _assistant_turn(place: str, turn: Mapping[str, Any], text_key: str | None) -> Message:
    calls = tool_calls(place, turn)
    if not calls:
        text_key = _needed(place, turn, text_key)
    thoughts: list[str] = []
    content = _text(place, text_key, turn, thoughts) if text_key else ""
    content, reasoning = _split(place, content, _reasoning(place, turn, "".join(thoughts)))
    if reasoning and not content.strip() and not calls:
        raise UnusableRecordError(f"{place} ends within its reasoning")
    return _assistant(turn, content, reasoning, calls)


def _call_turn(place: str, turn: Mapping[str, Any], text_key: str | None) -> Message:
    """Return the turn of a call as ShareGPT writes it: the text is the call."""
    value, reasoning = turn[_needed(place, turn, text_key)], _reasoning(place, turn, "")
    if isinstance(value, str):
        value, reasoning = _split(place, value, reasoning)
    return _assistant(turn, "", reasoning, calls_in(place, value))


def _assistant(turn: Mapping[str, Any], content: str, reasoning: str, calls: Any) -> Message:
    is_excluded = any(turn[mark] in (0, False) for mark in _MARKS & turn.keys())
    return Message(
        role="assistant",
        content=content,
        reasoning=reasoning or None,
        tool_calls=calls or None,
        learn=False if is_excluded else None,
    )


def _reasoning(place: str, turn: Mapping[str, Any], thoughts: str) -> str:
    """Return the reasoning that stands in keys of a turn, or in parts of its content."""
    values = {key: turn[key] for key in _REASONING if key in turn and turn[key] not in EMPTY}
    if not values and not thoughts:
        return ""
    for key, value in values.items():
        if not isinstance(value, str):
            raise UnusableRecordError(f"{key!r} of {place} is {json_type(value)}, not text")
    texts = [text for text in (*values.values(), thoughts) if text.strip()]
    # services write one text under two keys
    if len(set(texts)) > 1:
        raise UnusableRecordError(f"{place} has two different texts of reasoning")
    return storable(texts[0]) if texts else ""


def _split(place: str, content: str, reasoning: str) -> tuple[str, str]:
    """Return the content without reasoning between tags, and the reasoning."""
    text, between = split(content)
    if not reasoning or not between:
        return text, reasoning or between
    if between != reasoning.strip():
        raise UnusableRecordError(f"{place} has two different texts of reasoning")
    return text, reasoning


def _tool_fields(place: str, turn: Mapping[str, Any]) -> dict[str, str]:
    fields = {key: turn[key] for key in ("tool_call_id", "name") if turn.get(key) not in EMPTY}
    for key, value in fields.items():
        if not isinstance(value, str):
            raise UnusableRecordError(f"{key!r} of {place} is {json_type(value)}, not text")
        storable(value)
    return fields


def _pair(place: str, turn: Mapping[str, Any]) -> Iterator[Message]:
    for user, assistant in _PAIRS:
        if user in turn and assistant in turn:
            if turn.get("system"):
                yield Message(role="system", content=_text(place, "system", turn))
            yield Message(role="user", content=_text(place, user, turn))
            yield _assistant_turn(place, turn, assistant)
            return
    missing = "from" if "value" in turn else "role"
    raise UnusableRecordError(f"{place} has no {missing!r} (keys: {excerpt(', '.join(turn))})")


def _text(place: str, key: str, turn: Mapping[str, Any], thoughts: list[str] | None = None) -> str:
    """Return the text of a turn; text parts are joined as chat templates join them.

    Args:
        place: names the turn in errors.
        key: where the text is.
        turn: the turn.
        thoughts: is given the parts that are reasoning, where the turn can have some.
    """
    content = turn[key]
    if isinstance(content, list):
        return "".join(_part(place, key, part, thoughts) for part in content)
    if not isinstance(content, str):
        raise UnusableRecordError(f"{key!r} of {place} is {json_type(content)}, not text")
    return storable(content)


def _part(place: str, key: str, part: Any, thoughts: list[str] | None) -> str:
    if isinstance(part, str):
        return storable(part)
    kind = str(part.get("type") or "text") if isinstance(part, dict) else json_type(part)
    if thoughts is not None and isinstance(part, dict):
        is_thought = kind in _REASONING_PARTS or part.get("thought") is True  # Vertex
        inner = next((part[k] for k in ("thinking", "reasoning", "text") if part.get(k)), "")
        if is_thought:
            # Mistral: a list of text parts
            parts = inner if isinstance(inner, list) else [inner]
            thoughts += [_part(place, key, one, None) for one in parts]
            return ""
    text = part.get("text") if isinstance(part, dict) else None
    if kind not in _TEXT_PARTS or not isinstance(text, str):
        raise UnusableRecordError(f"{key!r} of {place} has a part that is not text ({kind!r})")
    return storable(text)
