"""Requests to an OpenAI-compatible service, and which of its replies count as an answer.

Two backends share this: `openai` sends one request per prompt, `openai-batch` uploads whole files.
"""

import hashlib
import json
import os
from collections.abc import AsyncGenerator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, Self
from urllib.parse import parse_qsl, urlsplit

from pydantic import Field, JsonValue, PrivateAttr, SecretStr, model_validator

from cohobate import sealed_folder
from cohobate.backends.api_errors import (
    RefusedError,
    ReplyError,
    RetryableError,
    ServiceErrors,
    retry_after,
)
from cohobate.backends.error_body import ErrorBody
from cohobate.backends.prices import Budget, Price, most_tokens
from cohobate.backends.replies import TokenLimits, best_choice
from cohobate.backends.reply_checks import check_choice
from cohobate.backends.requests import (
    EMPTY_LEDGER,
    AnswerFunction,
    LedgerTotals,
    Outcomes,
    TeacherRequest,
    answer_key,
    iterate_stream,
)
from cohobate.backends.service_reply import read_reply
from cohobate.backends.token_names import signals_of
from cohobate.data.messages import body_fields
from cohobate.data.records import ADAPT, ENDPOINT
from cohobate.errors import UserError
from cohobate.generation.requests import Answer, Decoding
from cohobate.params import Section
from cohobate.teachers.teacher import ServedSignals

if TYPE_CHECKING:
    from openai import AsyncOpenAI

NO_HEADERS: Mapping[str, str] = MappingProxyType({})
_LIMITS = ("max_tokens", "max_completion_tokens")  # of a request
_AS_IDS = {"return_tokens_as_token_ids": True}  # of vLLM: `token_id:123` in place of a text


class ServiceAddress(NamedTuple):
    """Address of a teacher behind an endpoint, as `adapt` wrote it."""

    url: str
    key: str
    """Name of the environment variable that holds the API key."""
    model: str
    revision: str
    signals: ServedSignals | None = None
    """Which log-probabilities are requested; None where the teacher gives text alone."""

    def secret(self) -> SecretStr:
        """Return the API key.

        Raises:
            UserError: the variable is not set.
        """
        if self.key and not os.environ.get(self.key):
            raise UserError(
                f"the environment variable {self.key} is not set: it holds the API key",
                where=redact_url(self.url),
                fix=f"export {self.key}=...",
            )
        return SecretStr(os.environ[self.key] if self.key else "")

    def service(self) -> ServiceErrors:
        """Return what turns the service's errors into exceptions."""
        return ServiceErrors(redact_url(self.url), self.key, self.secret().get_secret_value())

    def client(self) -> "AsyncOpenAI":
        """Return a client that does not retry: the backend does."""
        from openai import AsyncOpenAI

        # with None the client would read OPENAI_API_KEY
        key = self.secret().get_secret_value() or "none"
        parts = urlsplit(self.url)
        return AsyncOpenAI(
            # the client appends paths to the address, which a query would be in the way of
            base_url=parts._replace(query="").geturl(),
            default_query=dict(parse_qsl(parts.query)),
            # Azure's deployments read the key here, and not as a bearer's
            default_headers={"api-key": key} if "/deployments/" in parts.path else None,
            api_key=key,
            max_retries=0,
            timeout=None,
        )


class ServiceRun(Protocol):
    """A run against a service, with its budget and its deadline."""

    def stream(
        self, requests: Sequence[TeacherRequest], decoding: Decoding
    ) -> AsyncGenerator[Outcomes]:
        """Yield outcomes as they come."""
        ...


def read_address(checkpoint: Path) -> ServiceAddress:
    """Read the address of a teacher.

    Raises:
        UserError: the teacher's weights are on this machine.
    """
    if not (checkpoint / ENDPOINT).exists():
        raise UserError(
            f"the teacher {checkpoint.name} is a model on this machine, not behind an endpoint",
            where="params.yaml, generate.backend",
            fix="cohobate run --set 'generate.backend={type: transformers}'",
        )
    sealed_folder.verify(checkpoint)
    fields = json.loads((checkpoint / ENDPOINT).read_bytes())
    if signals := fields.pop("signals", None):
        fields["signals"] = ServedSignals(**signals)
    return ServiceAddress(**fields)


def check_weights(checkpoint: Path) -> None:
    """Check that a teacher's weights are on this machine.

    Raises:
        UserError: it is behind an endpoint.
    """
    if (checkpoint / ENDPOINT).exists():
        raise UserError(
            f"the teacher {checkpoint.name} is behind an endpoint: its weights are not here",
            where="params.yaml, generate.backend",
            fix="cohobate run --set 'generate.backend={type: openai}'",
        )


class Endpoint(Section):
    """Params that both backends share."""

    api: Literal["chat", "completions"] = "chat"
    """`chat`: a prompt that is text becomes the user's turn; `completions`: it is continued."""
    max_tokens_key: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """What the service calls the limit of an answer's length."""
    logprobs: bool = False
    """Request the log-probability of each token; not every service supports it."""
    top_logprobs: int = Field(0, ge=0, le=20)
    """Request also the likeliest tokens at each position, up to 20; the ledger keeps them."""
    extra: dict[str, JsonValue] = Field(default_factory=dict)
    """Further fields of a request, such as `{reasoning_effort: low}`, or `{chat_template_kwargs:
    {enable_thinking: false}}` for the chat template of vLLM, SGLang and llama.cpp. null leaves a
    field out, such as `{seed: null}` for a service that refuses it."""
    price: Price | None = None
    """What the service charges."""
    cap: float | None = Field(None, ge=0)
    """Highest cost of this teacher in US dollars, over all rounds that share the ledger."""
    request_seconds: float = Field(180.0, gt=0)
    """Seconds within which a complete answer, or the receipt of a file, must arrive."""
    run_seconds: float | None = Field(None, gt=0)
    """Seconds after which a run ends. Its answers are kept; the service goes on with uploaded
    files, and the next run collects them."""
    _model: str = PrivateAttr("")
    """The model whose signals are kept; empty where none are."""

    @model_validator(mode="after")
    def _a_cap_needs_a_price(self) -> "Endpoint":
        if self.cap is not None and self.price is None:
            raise ValueError("a cap needs the price: {input: ..., output: ...}")
        no_limit = self.extra.get(self.max_tokens_key, 0) is None
        # without a limit of the length there is no upper bound on the cost
        if self.cap is not None and no_limit and not self._limits():
            raise ValueError("a cap needs a limit of the answers' length: extra leaves it out")
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true")
        return self

    def open(self, checkpoint: Path, history: LedgerTotals = EMPTY_LEDGER) -> AnswerFunction:
        """Return the function that answers.

        Raises:
            UserError: the teacher is a model on this machine, or its API key is not set.
        """
        return self.open_address(read_address(checkpoint), history)

    def open_address(self, address: ServiceAddress, history: LedgerTotals) -> AnswerFunction:
        """Return the function that answers by the service at an address.

        Raises:
            UserError: its API key is not set.
        """
        run = self.run(address, Budget(self.cap, history.spent), history.answers > 0)
        return lambda requests, decoding: iterate_stream(run.stream(requests, decoding))

    def with_signals(self, address: ServiceAddress, decoding: Decoding) -> Self:
        """Return the backend that requests a teacher's log-probabilities with its answers."""
        if address.signals is None or not address.signals.come_with(decoding):
            return self
        requested: dict[str, Any] = {"logprobs": True, "top_logprobs": address.signals.top_logprobs}
        if address.signals.scoring == "vllm":
            requested["extra"] = _AS_IDS | self.extra
        backend = self.model_copy(update=requested)
        backend._model = address.model
        return backend

    def run(
        self, address: ServiceAddress, budget: Budget, answered_before: bool = False
    ) -> "ServiceRun":
        """Return a run against the service; `answered_before`: it has answered in earlier runs."""
        raise NotImplementedError

    def key_parts(self) -> list[Any]:
        """Return the params of this backend that an answer depends on: they are part of its key."""
        return ["endpoint", self.api, self.logprobs, self.top_logprobs, self.extra]

    @property
    def share(self) -> float:
        """Share of the full price that answers cost."""
        return 1.0

    @property
    def path(self) -> str:
        """Return the path of requests, below the endpoint's address."""
        return "/chat/completions" if self.api == "chat" else "/completions"

    def path_of(self, request: TeacherRequest) -> str:
        """Return where a request is sent."""
        return self.path

    def body(self, model: str, request: TeacherRequest, decoding: Decoding) -> dict[str, Any]:
        """Return the JSON body of a request."""
        body: dict[str, Any] = {"model": model, "temperature": decoding.temperature}
        body[self.max_tokens_key] = decoding.max_tokens
        if decoding.temperature > 0:
            body |= {"top_p": decoding.top_p, "seed": request_seed(request.draw, decoding)}
        if self.api == "chat":
            # a text is one turn of the user
            body |= body_fields(request.prompt)
            if self.logprobs:
                body |= {"logprobs": True, "top_logprobs": self.top_logprobs}
        else:
            if not isinstance(request.prompt, str):
                raise RefusedError("a conversation cannot be continued as text: api must be chat")
            body |= {"prompt": request.prompt}
            if self.logprobs:
                body |= {"logprobs": self.top_logprobs}
        return {name: value for name, value in (body | self.extra).items() if value is not None}

    def billed(self, decoding: Decoding) -> Decoding:
        """Return the decoding with the most tokens that a request's answers can have together."""
        # each of n answers is charged, though one is kept
        count = max(_whole(self.extra.get("n")), _whole(self.extra.get("best_of")), 1)
        return decoding.model_copy(update={"max_tokens": count * self.limit(decoding)})

    def limit(self, decoding: Decoding) -> int:
        """Return the most tokens of one answer."""
        return max(self._limits(), default=decoding.max_tokens)

    def _limits(self) -> list[int]:
        limits = (_whole(self.extra.get(name)) for name in _LIMITS)
        return [limit for limit in limits if limit]

    def parse_answer(
        self,
        content: bytes,
        request: TeacherRequest,
        decoding: Decoding,
        share: float = 1.0,
        headers: Mapping[str, str] = NO_HEADERS,
    ) -> Answer:
        """Return the answer that a reply holds.

        Raises:
            RetryableError: it holds none; another attempt may give one.
            RefusedError: it holds none, and another attempt would give none either.
            ReplyError: it is an error.
        """
        most = TokenLimits(most_tokens(request.prompt), self.limit(decoding))
        fields, sent, usage, error = read_reply(content, most, self.price, share, headers)
        choice, cost = best_choice(fields), usage.cost
        if error or (choice is None and fields.get("choices") is None):
            # an error without usage or text computed nothing: it is free
            charged = fields.get("usage") or (choice and choice.content.text)
            error = error or ErrorBody("it contains no choices")
            after = retry_after(headers) if error.after is None else error.after
            raise ReplyError(error._replace(after=after), cost if charged else 0.0, sent)
        if choice is None:
            raise RetryableError("the reply contains no choice", cost=cost, reply=sent, whole=True)
        calls = check_choice(choice, request.prompt, self.limit(decoding), cost, sent)
        tokens, odd = choice.tokens, ""
        if self._model:
            tokens, odd = signals_of(tokens, self._model, fields, self.top_logprobs)
        return Answer(
            choice.content.text,
            "length" if choice.finish == "length" else "stop",
            sum(logprob for _, logprob, _ in tokens) / len(tokens) if tokens else None,
            usage,
            tuple(tokens) if self.top_logprobs and tokens else None,
            choice.content.reasoning or None,
            "; ".join(filter(None, [choice.note, odd])) or None,
            tuple(calls) or None,
        )


def redact_url(url: str) -> str:
    """Return an address without a password or query, which may contain secrets."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="").geturl()


def _whole(value: JsonValue) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def request_seed(draw: str, decoding: Decoding) -> int:
    """Return the seed of a sampled answer; it depends on no other request.

    Args:
        draw: of its request: what names its random numbers.
        decoding: with a seed of its own.
    """
    digest = hashlib.blake2b(f"{decoding.seed}/{draw}".encode(), digest_size=4).digest()
    # below 2³¹: a signed 32-bit integer holds it
    return int.from_bytes(digest) // 2


def identity(teacher: str) -> str:
    """Return the hash that identifies a teacher: of its weights, or of its address."""
    if (ADAPT / teacher / ENDPOINT).exists():
        return identity_of(read_address(ADAPT / teacher))
    return sealed_folder.verify(ADAPT / teacher)


def identity_of(address: ServiceAddress) -> str:
    """Return the hash that identifies a model of a service."""
    return answer_key("endpoint", address.url, address.model, address.revision)
