"""Lenient parsing of a service's reply: text, reasoning, calls, finish reason and token usage.

An answer that was paid for is kept even where its format is unusual: content may be text or parts,
the reasoning may be in one of several fields, the usage may have other names, be partly missing or
impossible, and the reply may be a stream although none was requested. Usage that cannot be read
counts as the most that it can be.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

from cohobate.backends.token_names import Tokens, add_name, token_name
from cohobate.data.messages import ToolCall
from cohobate.data.tool_calls import tool_call
from cohobate.generation.requests import Usage

Finish = Literal["stop", "length", "filter", "tool"]
_FINISH: dict[str, Finish] = {
    "stop": "stop", "eos": "stop", "eos_token": "stop", "end_turn": "stop",
    "stop_sequence": "stop", "completed": "stop", "end_of_text": "stop",
    "length": "length", "max_tokens": "length", "max_output_tokens": "length",
    "model_length": "length", "model_context_window_exceeded": "length",
    "content_filter": "filter", "content-filter": "filter", "safety": "filter",
    "refusal": "filter", "recitation": "filter", "prohibited_content": "filter",
    "blocklist": "filter", "spii": "filter", "sensitive": "filter",
    "tool_calls": "tool", "tool_use": "tool", "function_call": "tool",
}  # fmt: skip
_THOUGHT = ("reasoning_content", "reasoning", "thinking", "thought", "reasoning_details")
_PROMPT = ("prompt_tokens", "input_tokens", "promptTokens", "inputTokens", "promptTokenCount")
_ANSWER = (
    "completion_tokens", "output_tokens", "completionTokens", "outputTokens",
    "candidatesTokenCount", "generated_tokens",
)  # fmt: skip
_TOTAL = ("total_tokens", "totalTokens", "totalTokenCount")
_CACHED = ("cache_read_input_tokens", "cache_creation_input_tokens")
_HIDDEN = 100_000  # tokens that a service may add to a prompt or think beyond the limit, at most


class TokenLimits(NamedTuple):
    """The most tokens that prompt and answer of a request can have."""

    prompt: int
    answer: int


class Content(NamedTuple):
    """Text, reasoning, refusal and calls of tools of a message."""

    text: str = ""
    reasoning: str = ""
    refusal: str = ""
    calls: tuple[Any, ...] = ()
    """As the service sent them (`tool_calls`)."""


class Choice(NamedTuple):
    """One choice of a reply."""

    content: Content
    finish: Finish
    note: str
    """What was unusual in its format; empty where nothing was."""
    tokens: Tokens
    fields: Mapping[str, Any]


def parse_reply(content: bytes) -> Any:
    """Return a reply as JSON; a stream of events is assembled into one.

    Of a key that occurs twice the last value counts that is not null.

    Raises:
        ValueError: it is neither, or an incomplete stream.
    """
    text = content.decode("utf-8-sig").strip()
    if text.startswith(("data:", "event:", ":")):
        try:
            return _streamed(text)
        except (AttributeError, TypeError):
            raise ValueError("the stream holds other events than a completion's") from None
    return json.loads(text, object_pairs_hook=_last_that_is_not_null)


def best_choice(reply: Mapping[str, Any]) -> Choice | None:
    """Return the first choice with a text or a call, or else the first; None without choices."""
    choices = [_choice(one) for one in _choices(reply)]
    full = [choice for choice in choices if choice.content.text.strip() or choice.content.calls]
    return next(iter(full or choices), None)


def tool_calls(content: Content) -> tuple[ToolCall, ...]:
    """Return the calls of tools of a message.

    Raises:
        ValueError: one has no name, or arguments that are not a JSON object.
    """
    calls = []
    for fields in content.calls:
        function = fields.get("function") if isinstance(fields, dict) else None
        if not isinstance(function, dict):
            raise ValueError("a call needs the field `function`")
        calls.append(tool_call(function.get("name"), function.get("arguments"), fields.get("id")))
    return tuple(calls)


def token_usage(reply: Mapping[str, Any], headers: Mapping[str, str], limits: TokenLimits) -> Usage:
    """Return a reply's tokens, without its price; what is unknown counts as the most."""
    choices = _choices(reply)
    usage = _usage(reply, choices, headers)
    prompt = _count(usage, _PROMPT, limits.prompt)
    cached = sum(_count(usage, (name,), limits.prompt) or 0 for name in _CACHED)
    answer = _count(usage, _ANSWER, limits.answer)
    total = _count(usage, _TOTAL, limits.prompt + limits.answer)
    if prompt and total and total > prompt and not cached:
        # some count the reasoning into the total alone
        answer = max(answer or 0, total - prompt)
    # an answer of 0 tokens cannot have a text: that count is wrong
    written = any(_choice(one).content != Content() for one in choices)
    if answer is None or (answer == 0 and written):
        answer = limits.answer * max(1, len(choices))
    return Usage(prompt + cached if prompt else limits.prompt, answer, 0.0)


def _last_that_is_not_null(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, value in pairs:
        if value is not None or name not in fields:
            fields[name] = value
    return fields


def _streamed(text: str) -> dict[str, Any]:
    """Assemble a stream of events into one reply.

    Raises:
        ValueError: the stream is incomplete.
    """
    message: dict[str, Any] = {}
    choice: dict[str, Any] = {"message": message, "finish_reason": None}
    reply: dict[str, Any] = {"choices": [choice]}
    ended = False
    for line in text.splitlines():
        data = line.removeprefix("data:").strip()
        if not line.startswith("data:") or data == "[DONE]":
            ended |= data == "[DONE]"
            continue
        event = json.loads(data)
        reply |= {k: v for k, v in event.items() if k != "choices" and v is not None}
        for part in event.get("choices") or ():
            # deltas of further choices: the first is kept alone
            if part.get("index"):
                continue
            content = Content(str(part.get("text") or ""))
            if not content.text:
                content = _content(part.get("delta") or part.get("message"))
            # a delta adds to each text of the message
            for name, more in zip(("content", "reasoning", "refusal"), content, strict=False):
                message[name] = message.get(name, "") + more
            for call in content.calls:
                _add_to_call(message.setdefault("tool_calls", []), call)
            choice["finish_reason"] = part.get("finish_reason") or choice["finish_reason"]
    # a stream that just stops was cut off: its text is incomplete
    if not (ended or choice["finish_reason"] or reply.get("error")):
        raise ValueError("the stream of events breaks off")
    return reply


def _add_to_call(calls: list[dict[str, Any]], delta: Mapping[str, Any]) -> None:
    """Add a delta to the call that it belongs to: the first has id and name, all have arguments."""
    number, function = delta.get("index", 0), delta.get("function") or {}
    call = next((call for call in calls if call["index"] == number), None)
    if call is None:
        call = {"index": number, "id": None, "function": {"name": None, "arguments": ""}}
        calls.append(call)
    call["id"] = delta.get("id") or call["id"]
    call["function"]["name"] = function.get("name") or call["function"]["name"]
    call["function"]["arguments"] += function.get("arguments") or ""


def _choices(reply: Mapping[str, Any]) -> list[dict[str, Any]]:
    listed = reply.get("choices")
    return [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []


def _choice(fields: dict[str, Any]) -> Choice:
    content = _content(fields.get("message") or fields.get("delta"))
    if not content.text and isinstance(fields.get("text"), str):
        content = content._replace(text=fields["text"])
    reason = fields.get("finish_reason")
    finish = _FINISH.get(str(reason).lower())
    note = "" if finish else f"unknown finish_reason {reason!r}, taken as stop"
    return Choice(content, finish or "stop", note, _tokens(fields), fields)


def _content(message: Any) -> Content:
    """Return the content of a message, given as text or as parts."""
    if not isinstance(message, dict):
        return Content(message if isinstance(message, str) else "")
    value = message.get("content")
    parts = value if isinstance(value, list) else [value]
    text = "".join(_text(part, ("text", "output_text")) for part in parts)
    inside = [_text(part, ("thinking", "reasoning", "summary_text")) for part in parts]
    beside = next((_flat(message[name]) for name in _THOUGHT if message.get(name)), "")
    refused = [_flat(p.get("refusal")) for p in parts if isinstance(p, dict)]
    refusal = _flat(message.get("refusal")) or "".join(refused)
    return Content(text, "\n".join(filter(None, [beside, *inside])), refusal, _calls(message))


def _calls(message: dict[str, Any]) -> tuple[Any, ...]:
    calls = message.get("tool_calls")
    if isinstance(calls, list) and calls:
        return tuple(calls)
    # the field before there were several calls
    call = message.get("function_call")
    return ({"function": call},) if isinstance(call, dict) else ()


def _text(part: Any, kinds: tuple[str, ...]) -> str:
    """Return the text of a part of one of these kinds."""
    if isinstance(part, str):
        return part if "text" in kinds else ""
    if not isinstance(part, dict) or part.get("type", "text") not in kinds:
        return ""
    return next((_flat(part[k]) for k in (*kinds, "text", "summary") if part.get(k)), "")


def _flat(value: Any) -> str:
    """Return the texts inside a value, one below the other."""
    if isinstance(value, list):
        return "\n".join(filter(None, map(_flat, value)))
    if isinstance(value, dict):
        names = ("text", "content", "summary", "thinking")
        return next((_flat(value[name]) for name in names if value.get(name)), "")
    return value if isinstance(value, str) else ""


def _tokens(choice: dict[str, Any]) -> Tokens:
    """Return (token, logprob, others in its position) of each token; empty if malformed."""
    try:
        return list(_listed_tokens(choice.get("logprobs") or {}))
    except (AttributeError, KeyError, TypeError, ValueError):
        return []


def _listed_tokens(logprobs: Mapping[str, Any]) -> Iterator[tuple[str, float, dict[str, float]]]:
    # the form of chat; below that of completions
    if logprobs.get("content"):
        for one in logprobs["content"]:
            others: dict[str, float] = {}
            for other in one.get("top_logprobs") or ():
                add_name(others, token_name(other), float(other["logprob"]))
            yield token_name(one), float(one["logprob"]), others
        return
    names = logprobs.get("tokens") or []
    places = logprobs.get("top_logprobs") or [{}] * len(names)
    for name, logprob, others in zip(names, logprobs["token_logprobs"], places, strict=True):
        yield str(name), float(logprob), dict(others or {})


def _usage(
    reply: Mapping[str, Any], choices: list[dict[str, Any]], headers: Mapping[str, str]
) -> Mapping[str, Any]:
    """Return the usage of the reply, of a choice, or of the headers, whichever has one."""
    groq = reply.get("x_groq")
    places = [reply.get("usage"), *(choice.get("usage") for choice in choices)]
    places += [groq.get("usage") if isinstance(groq, dict) else None, reply.get("usageMetadata")]
    places.append(reply.get("meta_info"))  # of SGLang's own /generate
    usage = next((usage for usage in places if isinstance(usage, dict) and usage), None)
    # some proxies send the counts as headers, such as x-prompt-tokens
    in_headers = {name.removeprefix("x-").replace("-", "_"): v for name, v in headers.items()}
    return usage or in_headers


def _count(usage: Mapping[str, Any], names: tuple[str, ...], most: int) -> int | None:
    """Return a number of tokens; None where it is missing or impossible."""
    value = next((usage[name] for name in names if usage.get(name) is not None), None)
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    # a wrong count could empty the budget, or hide what was spent
    possible = number.is_integer() and 0 <= number <= most + _HIDDEN
    return int(number) if possible else None
