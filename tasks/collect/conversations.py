"""Conversations in the formats of OpenAI, ShareGPT and Vertex, and as pairs.

    {"role": "user", "content": "Hello"}        {"from": "human", "value": "Hello"}
    {"human": "Hello", "assistant": "Hi"}       {"role": "model", "parts": [{"text": "Hi"}]}

Keys with null are ignored. A turn with more than a row can hold (a tool call, an image) quarantines
the record; the reason names turn and key. Nothing is cut or merged.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from cohobate.data.messages import Message, Prompt
from tasks.collect.source_records import (
    MAX_CHARACTERS,
    UnusableRecordError,
    excerpt,
    json_type,
    storable,
)

Role = Literal["system", "user", "assistant"]

_ROLES: dict[str, Role] = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bing", "bard", "bot", "chatbot"), "assistant"),
    **dict.fromkeys(("model", "ai", "claude", "gemini", "llm"), "assistant"),
}
_MODEL_NAME = re.compile(r"(?:chat)?gpt[-_. ]?\d.*|claude[-_. ].*|gemini[-_. ].*")
_TOOL_ROLES = frozenset(
    {"tool", "tools", "tool_call", "tool_calls", "tool_response", "tool_result"}
)
_TOOL_ROLES |= {"function", "function_call", "function_response", "observation", "ipython"}
_ROLE_KEYS = ("role", "from", "speaker", "author")
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
_MORE_THAN_TEXT = (
    *("tool_calls", "function_call", "tool_call_id", "refusal"),
    *("image", "images", "audio", "video", "videos"),
    *("reasoning_content", "reasoning", "thinking"),
)
_TEXT_PARTS = frozenset({"text", "input_text", "output_text"})
_NO_END = "the conversation does not end with a user's turn and an answer"
_PYTHON_TURNS = re.compile(r"\[\s*\{\s*'")


def conversation(turns: list[Any], system: str = "") -> tuple[Prompt, str | None]:
    """Return prompt and answer of a conversation; the answer is the assistant's last turn, if any.

    Args:
        turns: in any of the formats above.
        system: a system prompt from another column.

    Raises:
        UnusableRecordError: a turn cannot be read, or no user's turn precedes the answer.
    """
    read = list(_messages(turns))
    messages = [message for message, _ in read]
    if system and messages and messages[0].role != "system":
        messages.insert(0, Message(role="system", content=system))
    elif system and messages and messages[0].content != system:
        raise UnusableRecordError("a system prompt in a column, and another one as the first turn")
    if sum(len(message.content) for message in messages) > MAX_CHARACTERS:
        raise UnusableRecordError(f"longer than {MAX_CHARACTERS} characters")
    answered = bool(messages) and messages[-1].role == "assistant"
    prompt = messages[:-1] if answered else messages
    if not prompt or prompt[-1].role != "user":
        raise UnusableRecordError(_NO_END)
    if answered and not read[-1][1]:
        raise UnusableRecordError("the answer is excluded from training (weight, train or loss)")
    return tuple(prompt), (messages[-1].content or None) if answered else None


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
    is_turn = [isinstance(turn, dict) and any(key in turn for key in _ROLE_KEYS) for turn in turns]
    return turns if turns and all(is_turn) else None


def _messages(turns: list[Any]) -> Iterator[tuple[Message, bool]]:
    """Yield each turn's message, and whether it may be trained on."""
    for number, turn in enumerate(turns, start=1):
        if not isinstance(turn, dict):
            raise UnusableRecordError(f"turn {number} is {json_type(turn)}, not a role and a text")
        yield from _read(number, {k: v for k, v in turn.items() if v is not None})


def _read(number: int, turn: Mapping[str, Any]) -> Iterator[tuple[Message, bool]]:
    place = f"ShareGPT turn {number}" if "from" in turn or "value" in turn else f"turn {number}"
    for key in _MORE_THAN_TEXT:
        if turn.get(key) not in (None, "", [], {}):
            raise UnusableRecordError(f"{place} has {key!r} (remove the key to keep the row)")
    role_key = next((key for key in _ROLE_KEYS if key in turn), None)
    if role_key is None:
        yield from _pair(place, turn)
        return
    text_key = next((key for key in _TEXT_KEYS if key in turn), None)
    role = _role(place, turn[role_key])
    if text_key is None:
        raise UnusableRecordError(
            f"{place} has no {'value' if role_key == 'from' else 'content'!r}"
        )
    content = _text(place, text_key, turn[text_key])
    trainable = all(turn.get(mark, True) not in (0, False) for mark in ("weight", "train", "loss"))
    yield Message(role=role, content=content), trainable


def _pair(place: str, turn: Mapping[str, Any]) -> Iterator[tuple[Message, bool]]:
    for user, assistant in _PAIRS:
        if user in turn and assistant in turn:
            system = turn.get("system")
            if system:
                yield Message(role="system", content=_text(place, "system", system)), True
            yield Message(role="user", content=_text(place, user, turn[user])), True
            yield Message(role="assistant", content=_text(place, assistant, turn[assistant])), True
            return
    missing = "from" if "value" in turn else "role"
    raise UnusableRecordError(f"{place} has no {missing!r} (keys: {excerpt(', '.join(turn))})")


def _role(place: str, name: Any) -> Role:
    if not isinstance(name, str):
        raise UnusableRecordError(f"the role of {place} is {json_type(name)}")
    plain = name.strip().lower()
    if plain in _TOOL_ROLES:
        raise UnusableRecordError(f"{place} is a tool's ({plain!r}), which a row cannot hold")
    if plain in _ROLES:
        return _ROLES[plain]
    if _MODEL_NAME.fullmatch(plain):
        return "assistant"
    known = "system, user, human, assistant, gpt, ..."
    raise UnusableRecordError(
        f"{place} is by {excerpt(name)[:40]!r}, which is not a known role ({known})"
    )


def _text(place: str, key: str, content: Any) -> str:
    """Return the text of a turn; text parts are joined as chat templates join them."""
    if isinstance(content, list):
        return "".join(_part(place, key, part) for part in content)
    if not isinstance(content, str):
        raise UnusableRecordError(f"{key!r} of {place} is {json_type(content)}, not text")
    return storable(content)


def _part(place: str, key: str, part: Any) -> str:
    if isinstance(part, str):
        return storable(part)
    text = part.get("text") if isinstance(part, dict) else None
    kind = part.get("type", "text") if isinstance(part, dict) else json_type(part)
    if kind not in _TEXT_PARTS or not isinstance(text, str):
        raise UnusableRecordError(f"{key!r} of {place} has a part that is not text ({kind!r})")
    return storable(text)
