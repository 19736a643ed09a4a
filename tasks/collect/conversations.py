"""Turns of a conversation as tools write them: OpenAI's, ShareGPT's, Vertex's, and pairs.

    {"role": "user", "content": "Hello"}        {"from": "human", "value": "Hello"}
    {"human": "Hello", "assistant": "Hi"}       {"role": "model", "parts": [{"text": "Hi"}]}

Keys that are null are absent. A turn that says more than a row can hold costs the row, and the
reason names turn and key; nothing is cut or merged.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from cohobate.data.records import Message
from tasks.collect.examples import MAX_CHARACTERS, NoExampleError, clipped, kind_of, storable

Prompt = str | tuple[Message, ...]
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
_NO_END = "the conversation does not end with the user's turn and an answer"
_PYTHON_TURNS = re.compile(r"\[\s*\{\s*'")


def conversation(turns: list[Any], system: str = "") -> tuple[Prompt, str | None]:
    """Return the prompt and the answer of a conversation: its last turn, if the assistant's.

    Args:
        turns: in any of the forms above.
        system: a system prompt that stands beside the turns.

    Raises:
        NoExampleError: a turn cannot be read, or the user's is not the last one before the answer.
    """
    read = list(_messages(turns))
    messages = [message for message, _ in read]
    if system and messages and messages[0].role != "system":
        messages.insert(0, Message(role="system", content=system))
    elif system and messages and messages[0].content != system:
        raise NoExampleError("a system prompt in a column, and another as the first turn")
    if sum(len(message.content) for message in messages) > MAX_CHARACTERS:
        raise NoExampleError(f"longer than {MAX_CHARACTERS} characters")
    answered = bool(messages) and messages[-1].role == "assistant"
    prompt = messages[:-1] if answered else messages
    if not prompt or prompt[-1].role != "user":
        raise NoExampleError(_NO_END)
    if answered and not read[-1][1]:
        raise NoExampleError("the answer is marked as not to be learnt (weight, train or loss)")
    return tuple(prompt), (messages[-1].content or None) if answered else None


def turns_in(value: Any) -> list[Any] | None:
    """Return the turns that a column holds, as a list or as JSON text; None where it holds none.

    Raises:
        NoExampleError: the text is a list as Python shows it.
    """
    if isinstance(value, list):
        return value
    if not isinstance(value, str) or not value.lstrip().startswith("["):
        return None
    try:
        turns = json.loads(value)
    except (ValueError, RecursionError):
        if _PYTHON_TURNS.match(value.lstrip()):
            raise NoExampleError(
                "turns as Python shows them, which is not JSON (write them with json.dumps)"
            ) from None
        return None
    told = [isinstance(turn, dict) and any(key in turn for key in _ROLE_KEYS) for turn in turns]
    return turns if turns and all(told) else None


def _messages(turns: list[Any]) -> Iterator[tuple[Message, bool]]:
    """Yield each turn's message, and whether it may be learnt."""
    for number, turn in enumerate(turns, start=1):
        if not isinstance(turn, dict):
            raise NoExampleError(f"turn {number} is {kind_of(turn)}, not a role and a text")
        yield from _read(number, {k: v for k, v in turn.items() if v is not None})


def _read(number: int, turn: Mapping[str, Any]) -> Iterator[tuple[Message, bool]]:
    place = f"ShareGPT turn {number}" if "from" in turn or "value" in turn else f"turn {number}"
    for key in _MORE_THAN_TEXT:
        if turn.get(key) not in (None, "", [], {}):
            raise NoExampleError(f"{place} has {key!r} (remove the key to keep the row)")
    role_key = next((key for key in _ROLE_KEYS if key in turn), None)
    if role_key is None:
        yield from _pair(place, turn)
        return
    text_key = next((key for key in _TEXT_KEYS if key in turn), None)
    role = _role(place, turn[role_key])
    if text_key is None:
        raise NoExampleError(f"{place} has no {'value' if role_key == 'from' else 'content'!r}")
    content = _text(place, text_key, turn[text_key])
    learnt = all(turn.get(mark, True) not in (0, False) for mark in ("weight", "train", "loss"))
    yield Message(role=role, content=content), learnt


def _pair(place: str, turn: Mapping[str, Any]) -> Iterator[tuple[Message, bool]]:
    for asked, answered in _PAIRS:
        if asked in turn and answered in turn:
            system = turn.get("system")
            if system:
                yield Message(role="system", content=_text(place, "system", system)), True
            yield Message(role="user", content=_text(place, asked, turn[asked])), True
            yield Message(role="assistant", content=_text(place, answered, turn[answered])), True
            return
    missing = "from" if "value" in turn else "role"
    raise NoExampleError(f"{place} has no {missing!r} (keys: {clipped(', '.join(turn))})")


def _role(place: str, name: Any) -> Role:
    if not isinstance(name, str):
        raise NoExampleError(f"the role of {place} is {kind_of(name)}")
    plain = name.strip().lower()
    if plain in _TOOL_ROLES:
        raise NoExampleError(f"{place} is a tool's ({plain!r}), which a row cannot hold")
    if plain in _ROLES:
        return _ROLES[plain]
    if _MODEL_NAME.fullmatch(plain):
        return "assistant"
    known = "system, user, human, assistant, gpt, ..."
    raise NoExampleError(f"{place} is by {clipped(name)[:40]!r}, which is no known role ({known})")


def _text(place: str, key: str, content: Any) -> str:
    """Return the text of a turn; parts that are all text are joined as chat templates join them."""
    if isinstance(content, list):
        return "".join(_part(place, key, part) for part in content)
    if not isinstance(content, str):
        raise NoExampleError(f"{key!r} of {place} is {kind_of(content)}, not text")
    return storable(content)


def _part(place: str, key: str, part: Any) -> str:
    if isinstance(part, str):
        return storable(part)
    text = part.get("text") if isinstance(part, dict) else None
    kind = part.get("type", "text") if isinstance(part, dict) else kind_of(part)
    if kind not in _TEXT_PARTS or not isinstance(text, str):
        raise NoExampleError(f"{key!r} of {place} has a part that is no text ({kind!r})")
    return storable(text)
