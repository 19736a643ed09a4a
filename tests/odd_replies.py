"""Replies that services in use send now and then, and what each should lead to.

A reply is made of a good one. `fate` is what becomes of a prompt whose replies are all of the kind:
`kept` an answer, `refused` for good after one request, `twice` refused after two, `failed` after
two and asked again by the next run. `cost` is what the service charges for it: `usage` as in
the good reply, `most` no usage that can be read, or `none`.
"""

import gzip
import json
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

Made = tuple[int, dict[str, str], bytes]


class OddReply(NamedTuple):
    make: Callable[[dict[str, Any]], Made]
    fate: Literal["kept", "refused", "twice", "failed"] = "kept"
    cost: Literal["usage", "most", "none"] = "usage"
    reason: str = ""
    reasoning: str | None = None
    in_files: bool = True
    """Whether it can stand in a line of a results file."""


def altered(*, choice: Any = None, message: Any = None, **fields: Any) -> Callable[[Any], Made]:
    def make(good: dict[str, Any]) -> Made:
        first = good["choices"][0] | (choice or {})
        first["message"] = first["message"] | (message or {})
        reply = good | {"choices": [first]} | fields
        return 200, {}, json.dumps(reply).encode()

    return make


def usage(**fields: Any) -> Callable[[Any], Made]:
    return altered(usage=fields or None)


def failing(status: int, error: Any) -> Callable[[Any], Made]:
    return lambda _: (status, {}, json.dumps(error).encode())


def text(prefix: str) -> Callable[[Any], Made]:
    return lambda good: altered(
        message={"content": prefix + good["choices"][0]["message"]["content"]}
    )(good)


def parts(good: dict[str, Any]) -> Made:
    content = good["choices"][0]["message"]["content"]
    thought = {"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]}
    return altered(message={"content": [thought, {"type": "text", "text": content}]})(good)


def several(good: dict[str, Any]) -> Made:
    empty = {"index": 0, "message": {"role": "assistant", "content": ""}, "finish_reason": "stop"}
    return 200, {}, json.dumps(good | {"choices": [empty, *good["choices"]]}).encode()


def stream(good: dict[str, Any]) -> Made:
    words = good["choices"][0]["message"]["content"]
    deltas = [{"role": "assistant", "content": ""}, {"reasoning_content": "Hm."}]
    deltas += [{"content": words[:3]}, {"content": words[3:]}]
    events: list[Any] = [{"choices": [{"index": 0, "delta": delta}]} for delta in deltas]
    events += [{"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "usage": None}]
    events += [{"choices": [], "usage": good["usage"]}]
    lines = ["data: " + json.dumps(event) for event in events]
    body = "\n\n".join([": keep-alive", *lines, "data: [DONE]", ""])
    return 200, {"content-type": "text/event-stream"}, body.encode()


def twice_the_keys(good: dict[str, Any]) -> Made:
    plain = json.dumps(good)
    return 200, {}, f'{plain[:-1]}, "usage": null, "choices": null}}'.encode()


def in_headers(good: dict[str, Any]) -> Made:
    status, _, body = usage()(good)
    return status, {"x-prompt-tokens": "10", "x-generated-tokens": "5"}, body


def cut_gzip(good: dict[str, Any]) -> Made:
    whole = gzip.compress(json.dumps(good).encode())
    return 200, {"content-encoding": "gzip"}, whole[: len(whole) // 2]


LIMIT = {"finish_reason": "length"}
CALL = {"type": "function", "function": {"name": "search", "arguments": "{}"}}
FLAGGED = {"message": "Input was flagged", "code": 403, "metadata": {"reasons": ["violence"]}}
ODD = {
    # a good answer in an odd frame
    "finish null": OddReply(altered(choice={"finish_reason": None})),
    "finish error": OddReply(altered(choice={"finish_reason": "error"})),
    "finish eos_token": OddReply(altered(choice={"finish_reason": "eos_token"})),
    "usage renamed": OddReply(usage(input_tokens=10, output_tokens=5)),
    "usage as text": OddReply(usage(prompt_tokens="10", completion_tokens="5")),
    "usage without reasoning": OddReply(
        usage(prompt_tokens=10, completion_tokens=2, total_tokens=15)
    ),
    "usage in headers": OddReply(in_headers, in_files=False),
    "no usage": OddReply(usage(), cost="most"),
    "usage a list": OddReply(altered(usage=[10, 5]), cost="most"),
    "usage negative": OddReply(usage(prompt_tokens=-10, completion_tokens=-5), cost="most"),
    "usage enormous": OddReply(
        usage(prompt_tokens=10**12, completion_tokens=10**12), cost="most"
    ),
    "usage nothing": OddReply(usage(prompt_tokens=0, completion_tokens=0), cost="most"),
    "content in parts": OddReply(parts, reasoning="Hm."),
    "more choices than asked": OddReply(several),
    "a stream": OddReply(stream, reasoning="Hm.", in_files=False),
    "keys twice": OddReply(twice_the_keys, in_files=False),
    "a byte order mark": OddReply(
        lambda good: (200, {}, b"\xef\xbb\xbf" + json.dumps(good).encode()), in_files=False
    ),
    "log-probabilities cut short": OddReply(
        altered(choice={"logprobs": {"tokens": ["a"], "token_logprobs": []}})
    ),
    "reasoning_content": OddReply(altered(message={"reasoning_content": "Hm."}), reasoning="Hm."),
    "reasoning": OddReply(altered(message={"reasoning": "Hm."}), reasoning="Hm."),
    "reasoning_details": OddReply(
        altered(message={"reasoning_details": [{"type": "reasoning.text", "text": "Hm."}]}),
        reasoning="Hm.",
    ),
    "think tags": OddReply(text("<think>\nHm.\n</think>\n\n"), reasoning="Hm."),
    "a closing think tag alone": OddReply(text("Hm.\n</think>\n\n"), reasoning="Hm."),
    # no answer, and none to come
    "content filter": OddReply(
        altered(choice={"finish_reason": "content_filter"}, message={"content": None}),
        "refused", reason="filtered",
    ),
    "a refusal": OddReply(
        altered(message={"content": None, "refusal": "I cannot help with that."}),
        "refused", reason="I cannot help",
    ),
    "a refusal among parts": OddReply(
        altered(message={"content": [{"type": "refusal", "refusal": "I cannot."}]}),
        "refused", reason="I cannot",
    ),
    "a tool call": OddReply(
        altered(
            choice={"finish_reason": "tool_calls"},
            message={"content": None, "tool_calls": [CALL]},
        ),
        "refused", reason="calls a tool",
    ),
    "reasoning up to the limit": OddReply(
        altered(choice=LIMIT, message={"content": None, "reasoning_content": "Hm, hm, hm"}),
        "refused", reason="limit of 8 tokens went into reasoning: raise",
    ),
    "a think tag up to the limit": OddReply(
        altered(choice=LIMIT, message={"content": "<think>Hm, hm, hm"}),
        "refused", reason="limit of 8 tokens went into reasoning: raise",
    ),
    "400 content filter": OddReply(
        failing(400, {"error": {"message": "It triggered", "code": "content_filter"}}),
        "refused", "none", "It triggered",
    ),
    "403 moderation": OddReply(failing(403, {"error": FLAGGED}), "refused", "none", "violence"),
    "413 context": OddReply(
        failing(413, {"error": "maximum context length exceeded"}), "refused", "none", "maximum"
    ),
    "400 context": OddReply(
        failing(400, {"detail": "max_tokens is too large: maximum context length is 16"}),
        "refused", "none", "maximum context",
    ),
    "a filter's error in a 200": OddReply(
        failing(200, {"choices": None, "error": {"message": "m", "code": "content_filter"}}),
        "refused", "none", "200: m",
    ),
    # no answer; the next may be one
    "empty": OddReply(altered(message={"content": ""}), "twice", reason="no text"),
    "reasoning alone": OddReply(
        altered(message={"content": "<think>Hm.</think>"}), "twice", reason="after its reasoning"
    ),
    "no choices": OddReply(altered(choices=[]), "twice", reason="no choice"),
    "not JSON": OddReply(
        lambda good: (200, {}, json.dumps(good).encode().replace(b":", b"=", 3)),
        "failed", "most", "not JSON", in_files=False,
    ),
    "a stream that breaks off": OddReply(
        lambda good: (200, {}, b"\n\n".join(stream(good)[2].split(b"\n\n")[:-4])),
        "failed", "most", "incomplete JSON", in_files=False,
    ),
    "half of a gzip": OddReply(cut_gzip, "failed", "most", "incomplete JSON", in_files=False),
}  # fmt: skip

# (reply, what the error says, what it says to do): no request can succeed, so one is enough
STOPPING = {
    "no /v1": ((200, {}, b'{"error": "Unexpected endpoint or method."}'), "Unexpected endp", "/v1"),
    "a login page": (
        (200, {"content-type": "text/html"}, b"<html><title>Sign in &amp; go</title></html>"),
        "a web page: Sign in & go", "endpoint",
    ),
    "402": ((402, {}, b'{"error": {"message": "Insufficient Balance"}}'), "quota is used", "pay"),
    "no credit": (
        (400, {}, b'{"error": {"message": "Your credit balance is too low"}}'), "quota is", "pay",
    ),
    "no balance in a 200": (
        (200, {}, b'{"choices": null, "base_resp": {"status_code": 1008, "status_msg": '
                  b'"insufficient balance"}}'),
        "insufficient balance", "pay",
    ),
    "404 model": ((404, {}, b'{"error": {"message": "no model x"}}'), "no model x", "teachers"),
    "400 key": (
        (400, {}, b'[{"error": {"code": 400, "message": "API key not valid."}}]'),
        "refuses the API key", "teachers.*.key",
    ),
    "403 key": ((403, {}, b'{"message": "Forbidden"}'), "refuses the API key", "teachers.*.key"),
    "max_tokens": (
        (400, {}, b'{"error": {"message": "Unsupported parameter: \'max_tokens\' is not supported '
                  b'with this model. Use \'max_completion_tokens\' instead.", "param": '
                  b'"max_tokens", "code": "unsupported_parameter"}}'),
        "the parameter max_tokens", "max_tokens_key=max_completion_tokens",
    ),
    "temperature": (
        (400, {}, b'{"error": {"message": "\'temperature\' does not support 0 with this model. '
                  b'Only the default (1) value is supported.", "param": "temperature"}}'),
        "the parameter temperature", "extra={temperature: null}",
    ),
    "a field that is extra": (
        (422, {}, b'{"detail": [{"type": "extra_forbidden", "loc": ["body", "temperature"], '
                  b'"msg": "Extra inputs are not permitted"}]}'),
        "the parameter temperature", "extra={temperature: null}",
    ),
    "a validation error of TGI": (
        (422, {}, b'{"error": "Input validation error: `temperature` must be strictly positive", '
                  b'"error_type": "validation"}'),
        "`temperature` must be", "extra={temperature: null}",
    ),
}  # fmt: skip

# the service has too much to do: one request less at once, and the prompt again
BUSY = {
    "429 in a 200": (200, {}, b'{"choices": null, "error": {"message": "slow", "code": 429}}'),
    "429 in a choice": (
        200, {}, b'{"choices": [{"error": {"code": "429", "message": "slow"}, "message": null}]}'
    ),
    "429 below a 400": (400, {}, b'{"error": {"message": "slow", "code": 429}}'),
    "529": (529, {}, b'{"type": "error", "error": {"type": "overloaded_error"}}'),
    "524": (524, {}, b"<html><title>524: A timeout occurred</title></html>"),
    "milliseconds": (429, {"retry-after-ms": "30", "retry-after": "600"}, b'{"error": "slow"}'),
    "a delay in the body": (
        429, {}, b'{"error": {"details": [{"retryDelay": "0.03s"}], "message": "quota exceeded"}}'
    ),
}  # fmt: skip
