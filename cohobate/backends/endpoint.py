"""What is said to an OpenAI-compatible service, and which of its replies count as an answer.

Two backends speak so: `openai` asks prompt by prompt, `openai-batch` hands in whole files.
"""

import hashlib
import json
import os
from collections.abc import AsyncGenerator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol
from urllib.parse import urlsplit

from pydantic import Field, JsonValue, SecretStr, model_validator

from cohobate import sealed_folder
from cohobate.backends.api_errors import (
    RefusedError,
    ReplyError,
    RetryableError,
    ServiceErrors,
    retry_after,
)
from cohobate.backends.error_body import ErrorBody, error_body, error_in
from cohobate.backends.prices import Budget, Price, most_tokens
from cohobate.backends.replies import Choice, TokenLimits, best_choice, parse_reply, token_usage
from cohobate.backends.requests import (
    EMPTY_LEDGER,
    AnswerFunction,
    LedgerTotals,
    Outcomes,
    TeacherRequest,
    answer_key,
    iterate_stream,
)
from cohobate.data.reasoning import split
from cohobate.data.records import ADAPT, ENDPOINT
from cohobate.errors import UserError
from cohobate.generation.requests import Answer, Decoding
from cohobate.params import Section

if TYPE_CHECKING:
    from openai import AsyncOpenAI

NO_HEADERS: Mapping[str, str] = MappingProxyType({})
_LIMITS = ("max_tokens", "max_completion_tokens")  # of a request
_WORDS = 300  # of a model's refusal that are shown, in characters
_KEPT = 20_000  # of a reply without an answer that are kept, in characters


class ServiceAddress(NamedTuple):
    """Where a teacher is whose weights are not here: what `adapt` wrote of it."""

    url: str
    key: str
    """Name of the environment variable that holds the API key."""
    model: str
    revision: str

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
        """Return how errors speak of the service."""
        return ServiceErrors(redact_url(self.url), self.key, self.secret().get_secret_value())

    def client(self) -> "AsyncOpenAI":
        """Return a client that tries once: when to try again is decided here, not there."""
        from openai import AsyncOpenAI

        key = self.secret().get_secret_value() or "none"  # None would look in the environment
        return AsyncOpenAI(base_url=self.url, api_key=key, max_retries=0, timeout=None)


class ServiceRun(Protocol):
    """A run against a service: its budget, its deadline, and what it knows by then."""

    def stream(
        self, requests: Sequence[TeacherRequest], decoding: Decoding
    ) -> AsyncGenerator[Outcomes]:
        """Yield outcomes as they come."""
        ...


def read_address(checkpoint: Path) -> ServiceAddress:
    """Read where a teacher is.

    Raises:
        UserError: it is a model on this machine.
    """
    if not (checkpoint / ENDPOINT).exists():
        raise UserError(
            f"the teacher {checkpoint.name} is a model on this machine, behind no endpoint",
            where="params.yaml, generate.backend",
            fix="cohobate run --set 'generate.backend={type: transformers}'",
        )
    sealed_folder.verify(checkpoint)
    return ServiceAddress(**json.loads((checkpoint / ENDPOINT).read_bytes()))


def check_weights(checkpoint: Path) -> None:
    """Refuse a teacher whose weights are not here.

    Raises:
        UserError: it is behind an endpoint.
    """
    if (checkpoint / ENDPOINT).exists():
        raise UserError(
            f"the weights of the teacher {checkpoint.name} are not here, it is behind an endpoint",
            where="params.yaml, generate.backend",
            fix="cohobate run --set 'generate.backend={type: openai}'",
        )


class Endpoint(Section):
    """What both backends have in common."""

    api: Literal["chat", "completions"] = "chat"
    """`chat`: a prompt that is text becomes the user's turn; `completions`: it is continued."""
    max_tokens_key: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """What the service calls the limit of an answer's length."""
    logprobs: bool = False
    """Ask for the log-probability of each token; not every service gives it."""
    top_logprobs: int = Field(0, ge=0, le=20)
    """Ask also for so many of the likeliest tokens in each place; they are kept in the ledger."""
    extra: dict[str, JsonValue] = Field(default_factory=dict)
    """Further fields of a request, such as `{reasoning_effort: low}`; null leaves a field out, such
    as `{seed: null}` for a service that refuses it."""
    price: Price | None = None
    """What the service charges."""
    cap: float | None = Field(None, ge=0)
    """US dollars that this teacher may cost, in all rounds that share the ledger."""
    request_seconds: float = Field(180.0, gt=0)
    """Seconds by which a request must be answered as a whole, or a file taken."""
    run_seconds: float | None = Field(None, gt=0)
    """Seconds by which a run must end. What it has by then is kept, and what it handed in goes on:
    the next run collects it."""

    @model_validator(mode="after")
    def _a_cap_needs_a_price(self) -> "Endpoint":
        if self.cap is not None and self.price is None:
            raise ValueError("a cap needs the price: {input: ..., output: ...}")
        no_limit = self.extra.get(self.max_tokens_key, 0) is None
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
        run = self.run(
            read_address(checkpoint), Budget(self.cap, history.spent), history.answers > 0
        )
        return lambda requests, decoding: iterate_stream(run.stream(requests, decoding))

    def run(self, address: ServiceAddress, budget: Budget, before: bool = False) -> "ServiceRun":
        """Return a run against the service, which may have answered in earlier runs."""
        raise NotImplementedError

    def key_parts(self) -> list[Any]:
        """Return what of this backend decides an answer, and so belongs to its key."""
        return ["endpoint", self.api, self.logprobs, self.top_logprobs, self.extra]

    @property
    def share(self) -> float:
        """Share of the full price that its answers cost."""
        return 1.0

    @property
    def path(self) -> str:
        """Return where a request goes, below the endpoint's address."""
        return "/chat/completions" if self.api == "chat" else "/completions"

    def body(self, model: str, request: TeacherRequest, decoding: Decoding) -> dict[str, Any]:
        """Return a request."""
        body: dict[str, Any] = {"model": model, "temperature": decoding.temperature}
        body[self.max_tokens_key] = decoding.max_tokens
        if decoding.temperature > 0:
            body |= {"top_p": decoding.top_p, "seed": request_seed(request, decoding)}
        if self.api == "chat":
            turns = [{"role": "user", "content": request.prompt}]
            if not isinstance(request.prompt, str):
                turns = [turn.model_dump() for turn in request.prompt]
            body |= {"messages": turns}
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
            Again: it holds none; another try may.
            Refused: it holds none, and another would not either.
            ErrorReply: it is an error.
        """
        sent = content.decode("utf-8", "replace")[:_KEPT]
        try:
            reply = parse_reply(content)
        except ValueError:
            raise _unreadable(content, sent) from None
        most = TokenLimits(most_tokens(request.prompt), self.limit(decoding))
        fields: Mapping[str, Any] = reply if isinstance(reply, dict) else {}
        taken = token_usage(fields, headers, most)
        cost = (self.price or Price()).of(taken.prompt_tokens, taken.answer_tokens, share)
        choice, error = best_choice(fields), error_in(reply)
        if error or (choice is None and fields.get("choices") is None):
            charged = fields.get("usage") or (choice and choice.content.text)
            error = error or ErrorBody("it holds no choices")
            after = retry_after(headers) if error.after is None else error.after
            raise ReplyError(error._replace(after=after), cost if charged else 0.0, sent)
        if choice is None:
            raise RetryableError("the reply holds no choice", cost=cost, reply=sent, whole=True)
        self._check(choice, decoding, cost, sent)
        tokens = choice.tokens
        return Answer(
            choice.content.text,
            "length" if choice.finish == "length" else "stop",
            sum(logprob for _, logprob, _ in tokens) / len(tokens) if tokens else None,
            taken._replace(cost=cost),
            tuple(tokens) if self.top_logprobs and tokens else None,
            choice.content.reasoning or None,
            choice.note or None,
        )

    def _check(self, choice: Choice, decoding: Decoding, cost: float, sent: str) -> None:
        """Refuse a choice that holds no answer.

        Raises:
            Again: another try may.
            Refused: another would not either.
        """
        if choice.finish == "filter":
            raise RefusedError("the service filtered the answer", cost, sent)
        if choice.content.refusal:
            raise RefusedError(f"the model refused: {choice.content.refusal[:_WORDS]}", cost, sent)
        answer, thought = split(choice.content.text)
        if answer.strip():
            return
        if choice.finish == "tool":
            raise RefusedError("the reply calls a tool instead of answering", cost, sent)
        if choice.finish == "length":
            reason = f"the limit of {self.limit(decoding)} tokens went into reasoning"
            reason += ": raise generate.decoding.max_tokens"
            if decoding.temperature == 0:  # the same would come again
                raise RefusedError(reason, cost, sent)
            raise RetryableError(reason, cost=cost, reply=sent, whole=True)
        behind = " behind its reasoning" if thought or choice.content.reasoning else ""
        raise RetryableError(f"the reply holds no text{behind}", cost=cost, reply=sent, whole=True)


def redact_url(url: str) -> str:
    """Return an address without the secrets that it may hold: a user's password, a query."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="").geturl()


def _unreadable(content: bytes, sent: str) -> Exception:
    """Return what a reply with status 200 means that is no JSON."""
    if not content.strip():
        return RetryableError("an empty reply", overloaded=True)
    if (body := error_body(content)).web_page:
        return ReplyError(body, 0.0, sent)
    return RetryableError("the reply is not JSON, or only a part of it", cost=None, reply=sent)


def _whole(value: JsonValue) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def request_seed(request: TeacherRequest, decoding: Decoding) -> int:
    """Return the seed of a sampled answer: its own, whatever is asked beside it."""
    digest = hashlib.blake2b(f"{decoding.seed}/{request.draw}".encode(), digest_size=4).digest()
    return int.from_bytes(digest) // 2


def identity(teacher: str) -> str:
    """Return what says which model a teacher is: the hash of its weights, or of its address."""
    if (ADAPT / teacher / ENDPOINT).exists():
        address = read_address(ADAPT / teacher)
        return answer_key("endpoint", address.url, address.model, address.revision)
    return sealed_folder.verify(ADAPT / teacher)
