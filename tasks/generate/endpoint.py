"""What is said to an OpenAI-compatible service, and which of its replies count as an answer.

Two backends speak so: `openai` asks prompt by prompt, `openai-batch` hands in whole files.
"""

import hashlib
import json
import os
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from pydantic import BaseModel, Field, JsonValue, SecretStr, ValidationError, model_validator

from tasks.errors import UserError
from tasks.generate.asks import Answering, Ask, Batch, driven
from tasks.generate.failures import Again, Refused, Service
from tasks.generate.prices import Budget, Price
from tasks.models import checkpoints
from tasks.models.decoding import Answer, Bought, Decoding
from tasks.params import Section
from tasks.rows.records import ENDPOINT

if TYPE_CHECKING:
    from openai import AsyncOpenAI


class Place(NamedTuple):
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
                where=self.url,
                mend=f"export {self.key}=...",
            )
        return SecretStr(os.environ[self.key] if self.key else "")

    def service(self) -> Service:
        """Return how errors speak of the service."""
        return Service(self.url, self.key, self.secret().get_secret_value())

    def client(self) -> "AsyncOpenAI":
        """Return a client that tries once: when to try again is decided here, not there."""
        from openai import AsyncOpenAI

        key = self.secret().get_secret_value() or "none"  # None would look in the environment
        return AsyncOpenAI(base_url=self.url, api_key=key, max_retries=0, timeout=None)


class Run(Protocol):
    """A run against a service: its budget, its deadline, and what it knows by then."""

    def stream(self, asks: Sequence[Ask], how: Decoding) -> AsyncGenerator[Batch]:
        """Yield outcomes as they come."""
        ...


def place_of(checkpoint: Path) -> Place:
    """Read where a teacher is.

    Raises:
        UserError: it is a model on this machine.
    """
    if not (checkpoint / ENDPOINT).exists():
        raise UserError(
            f"the teacher {checkpoint.name} is a model on this machine, behind no endpoint",
            where="params.yaml, generate.backend",
            mend="cohobate run --set 'generate.backend={type: transformers}'",
        )
    checkpoints.verify(checkpoint)
    return Place(**json.loads((checkpoint / ENDPOINT).read_bytes()))


def check_weights(checkpoint: Path) -> None:
    """Refuse a teacher whose weights are not here.

    Raises:
        UserError: it is behind an endpoint.
    """
    if (checkpoint / ENDPOINT).exists():
        raise UserError(
            f"the weights of the teacher {checkpoint.name} are not here, it is behind an endpoint",
            where="params.yaml, generate.backend",
            mend="cohobate run --set 'generate.backend={type: openai}'",
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
    """Further fields of a request, such as `{reasoning_effort: low}`."""
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
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true")
        return self

    def open(self, checkpoint: Path, spent: float = 0.0) -> Answering:
        """Return the function that answers.

        Raises:
            UserError: the teacher is a model on this machine, or its API key is not set.
        """
        run = self.run(place_of(checkpoint), Budget(self.cap, spent))
        return lambda asks, how: driven(run.stream(asks, how))

    def run(self, place: Place, budget: Budget) -> "Run":
        """Return a run against the service."""
        raise NotImplementedError

    def decided_by(self) -> list[Any]:
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

    def body(self, model: str, ask: Ask, how: Decoding) -> dict[str, Any]:
        """Return a request."""
        body: dict[str, Any] = {"model": model, "temperature": how.temperature}
        body[self.max_tokens_key] = how.max_tokens
        if how.temperature > 0:
            body |= {"top_p": how.top_p, "seed": seed_of(ask, how)}
        if self.api == "chat":
            turns = [{"role": "user", "content": ask.prompt}]
            if not isinstance(ask.prompt, str):
                turns = [turn.model_dump() for turn in ask.prompt]
            body |= {"messages": turns}
            if self.logprobs:
                body |= {"logprobs": True, "top_logprobs": self.top_logprobs}
        else:
            if not isinstance(ask.prompt, str):
                raise Refused("a conversation cannot be continued as text: api must be chat")
            body |= {"prompt": ask.prompt}
            if self.logprobs:
                body |= {"logprobs": self.top_logprobs}
        return body | self.extra

    def accepted(self, content: bytes, ask: Ask, how: Decoding, share: float = 1.0) -> Answer:
        """Return the answer that a reply holds.

        Raises:
            Again: it holds none; another try may.
            Refused: the service filtered it.
        """
        try:
            reply = _Reply.model_validate_json(content)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            raise Again(f"the reply is no answer: {first['msg']} {first['loc'] or ''}") from None
        choice = reply.choices[0]
        bought = reply.bought(self.price or Price(), ask, how, share)
        if choice.finish_reason == "content_filter" or (choice.message and choice.message.refusal):
            raise Refused("the service filtered the answer", bought.cost)
        if not choice.said.strip():
            raise Again("an empty answer", cost=bought.cost)
        finish: Literal["stop", "length"] = "length" if choice.finish_reason == "length" else "stop"
        tokens = choice.tokens()
        mean = sum(logprob for _, logprob, _ in tokens) / len(tokens) if tokens else None
        kept = tuple(tokens) if self.top_logprobs else None
        return Answer(choice.said, finish, mean, bought, kept)


def seed_of(ask: Ask, how: Decoding) -> int:
    """Return the seed of a sampled answer: its own, whatever is asked beside it."""
    digest = hashlib.blake2b(f"{how.seed}/{ask.draw}".encode(), digest_size=4).digest()
    return int.from_bytes(digest) // 2


class _Message(BaseModel):
    content: str | None = None
    refusal: str | None = None


class _Choice(BaseModel):
    finish_reason: Literal["stop", "length", "content_filter"]
    message: _Message | None = None
    text: str | None = None
    logprobs: dict[str, Any] | None = None

    @property
    def said(self) -> str:
        return (self.message.content if self.message else self.text) or ""

    def tokens(self) -> list[tuple[str, float, dict[str, float]]]:
        """Return each token, its log-probability, and those of others in its place."""
        told = self.logprobs or {}
        if self.message:
            return [
                (t["token"], t["logprob"], _alternatives(t.get("top_logprobs")))
                for t in told.get("content") or []
            ]
        places = told.get("top_logprobs") or [{}] * len(told.get("tokens") or [])
        pairs = zip(told.get("tokens") or [], told.get("token_logprobs") or [], places, strict=True)
        return [(token, logprob, dict(others or {})) for token, logprob, others in pairs]


class _Usage(BaseModel):
    prompt_tokens: int = Field(ge=0)
    completion_tokens: int = Field(0, ge=0)


class _Reply(BaseModel):
    choices: list[_Choice] = Field(min_length=1)
    usage: _Usage | None = None

    def bought(self, price: Price, ask: Ask, how: Decoding, share: float) -> Bought:
        """Return what the reply took; a service that does not say is taken to have taken most."""
        if self.usage is None:
            return Bought(0, 0, price.bound(ask, how, share))
        used = (self.usage.prompt_tokens, self.usage.completion_tokens)
        return Bought(*used, price.of(*used, share))


def _alternatives(told: list[dict[str, Any]] | None) -> dict[str, float]:
    return {one["token"]: one["logprob"] for one in told or []}
