"""Requests and replies of OpenAI's chat and completions API.

https://platform.openai.com/docs/api-reference/chat and /completions. What a model on this machine
cannot do (tools, images) is refused by name; settings that change no answer, such as `user`, are
ignored. Without a temperature the likeliest answer is given, as in evaluation.
"""

import json
import secrets
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cohobate.data.messages import Message, Prompt, Role
from cohobate.errors import UserError
from cohobate.generation.requests import Answer, Decoding
from cohobate.serving.token_logprobs import ServedToken, chat_logprobs, completion_logprobs

DEFAULT_TOKENS = 256
"""Most tokens of an answer where the request gives none."""
MOST_LOGPROBS = 20
"""Most of the likeliest tokens that a request can have listed."""
_REFUSED = ("tools", "tool_choice", "functions", "response_format")


class Query(NamedTuple):
    """What a request asks for."""

    kind: Literal["chat", "completion"]
    prompts: list[Prompt]
    samples: int
    decoding: Decoding
    stop: tuple[str, ...]
    """Texts at which an answer ends; they are not part of it."""
    stream: bool
    top_logprobs: int | None = None
    """Likeliest tokens to list at each token of an answer; None: no log-probabilities."""


class _Settings(BaseModel):
    model_config = ConfigDict(extra="ignore")
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = None
    n: int | None = Field(None, ge=1, le=64)
    stop: str | list[str] | None = None
    stream: bool | None = None


class _Part(BaseModel):
    type: Literal["text"]
    text: str


class _Turn(BaseModel):
    model_config = ConfigDict(extra="ignore")
    role: Role | Literal["developer"]
    content: str | list[_Part]


_Form = TypeVar("_Form", bound=_Settings)


class _Chat(_Settings):
    messages: list[_Turn] = Field(min_length=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MOST_LOGPROBS)


class _Completion(_Settings):
    prompt: str | list[str]
    logprobs: int | None = Field(None, ge=0, le=MOST_LOGPROBS)


def chat_query(body: Mapping[str, Any]) -> Query:
    """Read the body of a request to /v1/chat/completions.

    Raises:
        UserError: a field is missing, wrong, or of something that is not served.
    """
    request = _read(_Chat, body)
    count = (request.top_logprobs or 0) if request.logprobs else None
    return _query("chat", request, [tuple(map(_message, request.messages))], count)


def completion_query(body: Mapping[str, Any]) -> Query:
    """Read the body of a request to /v1/completions.

    Raises:
        UserError: a field is missing, wrong, or of something that is not served.
    """
    request = _read(_Completion, body)
    prompts = [request.prompt] if isinstance(request.prompt, str) else request.prompt
    return _query("completion", request, [*prompts], request.logprobs)


def _read(form: type[_Form], body: Mapping[str, Any]) -> _Form:
    for name in _REFUSED:
        if body.get(name):
            raise UserError(f"{name} is not served", where=name, fix="leave it out")
    try:
        return form.model_validate(body)
    except ValidationError as error:
        deepest = max(error.errors(), key=lambda one: len(one["loc"]))  # of a union's attempts
        where = ".".join(str(part) for part in deepest["loc"])
        raise UserError(f"{where}: {deepest['msg']}", where=where) from None


def _query(
    kind: Literal["chat", "completion"],
    request: _Settings,
    prompts: list[Prompt],
    top_logprobs: int | None,
) -> Query:
    given = {
        "max_tokens": request.max_completion_tokens or request.max_tokens or DEFAULT_TOKENS,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "seed": request.seed,
    }
    if request.temperature and request.seed is None:
        given["seed"] = secrets.randbits(32)  # else every request would draw the same sample
    decoding = Decoding(**{name: value for name, value in given.items() if value is not None})
    stop = [request.stop] if isinstance(request.stop, str) else request.stop or []
    if stop and top_logprobs is not None:
        raise UserError("logprobs are not served with stop", where="stop", fix="leave it out")
    samples, streamed = request.n or 1, bool(request.stream)
    return Query(kind, prompts, samples, decoding, tuple(stop), streamed, top_logprobs)


def _message(turn: _Turn) -> Message:
    content = turn.content
    if not isinstance(content, str):
        content = "".join(part.text for part in content)
    role: Role = "system" if turn.role == "developer" else turn.role
    return Message(role=role, content=content)


class Served(NamedTuple):
    """An answer, and the tokens that it took."""

    answer: Answer
    prompt_tokens: int
    answer_tokens: int
    model: str = ""
    """Which of several models gave it; empty where there is one."""
    tokens: tuple[ServedToken, ...] | None = None
    """Its tokens with their log-probabilities, where the query wants them."""

    def cut(self, stop: Sequence[str]) -> "Served":
        """Return the answer up to the first of some texts."""
        places = [self.answer.text.find(text) for text in stop]
        ends = [place for place in places if place >= 0]
        if not ends:
            return self
        answer = self.answer._replace(text=self.answer.text[: min(ends)], finish="stop")
        return self._replace(answer=answer)


class AnsweringModel(Protocol):
    """What answers queries: a model on this machine, a service, or both."""

    def answers(self, query: Query) -> list[Served]:
        """Return the answers of a query, each prompt's samples together."""
        ...


class NoTeacherError(UserError):
    """The teacher gives no answer now: it is out of reach, refuses, or a cap is reached."""


def reply(query: Query, model: str, number: int, served: Sequence[Served]) -> dict[str, Any]:
    """Return the body of a reply; `number` makes its id."""
    chat = query.kind == "chat"
    choices = []
    for index, one in enumerate(served):
        choice: dict[str, Any] = {"index": index, "finish_reason": one.answer.finish}
        choice["logprobs"] = _logprobs(query, one)
        content = {"message": _reply_turn(one)} if chat else {"text": one.answer.text}
        choices.append(choice | content)
    # n samples of a prompt read it once
    prompt_tokens = sum(one.prompt_tokens for one in served[:: query.samples])
    answer_tokens = sum(one.answer_tokens for one in served)
    return {
        **_head(
            query,
            _models(model, served),
            number,
            "chat.completion" if chat else "text_completion",
        ),
        "choices": choices,
        "usage": {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": answer_tokens,
            "total_tokens": prompt_tokens + answer_tokens,
        },
    }


def _logprobs(query: Query, one: Served) -> dict[str, Any] | None:
    if one.tokens is None:
        return None
    return (chat_logprobs if query.kind == "chat" else completion_logprobs)(one.tokens)


def _reply_turn(one: Served) -> dict[str, Any]:
    turn = {"role": "assistant", "content": one.answer.text}
    return turn | ({"reasoning_content": one.answer.reasoning} if one.answer.reasoning else {})


def stream(query: Query, model: str, number: int, served: Sequence[Served]) -> Iterator[str]:
    """Yield the events of a streamed reply: each answer whole, as it is generated in batches."""
    chat = query.kind == "chat"
    kind = "chat.completion.chunk" if chat else "text_completion"
    head = _head(query, _models(model, served), number, kind)
    for index, one in enumerate(served):
        content = {"delta": _reply_turn(one)} if chat else {"text": one.answer.text}
        choice = {"index": index, "finish_reason": None, "logprobs": None}
        first = choice | content | {"logprobs": _logprobs(query, one)}
        yield _event(head | {"choices": [first]})
        nothing: dict[str, Any] = {"delta": {}} if chat else {"text": ""}
        last = choice | nothing | {"finish_reason": one.answer.finish}
        yield _event(head | {"choices": [last]})
    yield "data: [DONE]\n\n"


def _models(model: str, served: Sequence[Served]) -> str:
    """Return the names of the models that answered, each once."""
    return ", ".join(dict.fromkeys(one.model or model for one in served)) or model


def _head(query: Query, model: str, number: int, kind: str) -> dict[str, Any]:
    start = "chatcmpl" if query.kind == "chat" else "cmpl"
    return {"id": f"{start}-{number}", "object": kind, "created": 0, "model": model}


def _event(value: Mapping[str, Any]) -> str:
    return f"data: {json.dumps(value)}\n\n"
