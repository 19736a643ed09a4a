"""Prices of answers, estimates before they are bought, and the cap that no run exceeds."""

from collections.abc import Iterable
from typing import NamedTuple

from pydantic import Field

from cohobate.backends.requests import TeacherRequest
from cohobate.data.messages import Prompt, prompt_text
from cohobate.errors import UserError
from cohobate.generation.requests import Decoding
from cohobate.params import Section

_MILLION = 1_000_000
_BYTES_A_TOKEN = 4  # about, of plain English; a token has at least one byte
_OVERHEAD = 16  # tokens that a chat template adds to each turn, at most


class ScoredText(NamedTuple):
    """A row that a service scores, by the size of its answer in tokens."""

    prompt: Prompt
    likely_answer: int
    most_answer: int

    @classmethod
    def given(cls, prompt: Prompt, answer: str) -> "ScoredText":
        """Return a row whose answer is known."""
        return cls(prompt, likely_tokens(answer), most_tokens(answer))


class Price(Section):
    """Price of a service's tokens, in US dollars per million."""

    input: float = Field(0.0, ge=0)
    """Tokens of prompts."""
    output: float = Field(0.0, ge=0)
    """Tokens of answers."""
    batch: float = Field(0.5, ge=0, le=1)
    """Share of the price that the batch API charges."""

    def of(self, prompt_tokens: int, answer_tokens: int, share: float = 1.0) -> float:
        """Return the cost of tokens, in US dollars."""
        full = (prompt_tokens * self.input + answer_tokens * self.output) / _MILLION
        return full * share

    def upper_bound(self, request: TeacherRequest, decoding: Decoding, share: float = 1.0) -> float:
        """Return the most that an answer can cost."""
        return self.of(most_tokens_sent(request), decoding.max_tokens, share)

    def estimate(self, prompts: Iterable[Prompt], decoding: Decoding, share: float = 1.0) -> str:
        """Return a line with the expected and the highest cost of answers to these prompts."""
        count = likely = 0
        most = 0.0
        for prompt in prompts:
            count += 1
            likely += likely_tokens(prompt)
            most += self.of(most_tokens(prompt), decoding.max_tokens, share)
        about = self.of(likely, count * decoding.max_tokens, share)
        return f"{count} answers to buy: about {about:.2f} USD, at most {most:.2f}"

    def estimate_scoring(self, rows: Iterable[ScoredText]) -> str:
        """Return a line with the expected and the highest cost of scoring these rows.

        A request has prompt and answer as its prompt, and generates one token.
        """
        count = 0
        about = most = 0.0
        for row in rows:
            count += 1
            about += self.of(likely_tokens(row.prompt) + row.likely_answer, 1)
            most += self.of(most_tokens(row.prompt) + row.most_answer, 1)
        return f"{count} rows to score: about {about:.2f} USD, at most {most:.2f}"


def most_tokens_sent(request: TeacherRequest) -> int:
    """Return the most tokens that a request's prompt can have."""
    return most_tokens(request.prompt) if request.ids is None else len(request.ids)


def most_tokens(prompt: Prompt) -> int:
    """Return the most tokens that a prompt can have in any tokenizer, chat template included."""
    turns = 1 if isinstance(prompt, str) else len(prompt)
    # a token stands for at least one byte, so the bytes are an upper bound
    return _bytes_of(prompt) + _OVERHEAD * turns


def likely_tokens(prompt: Prompt) -> int:
    """Return the number of tokens that a prompt probably has."""
    return -(-_bytes_of(prompt) // _BYTES_A_TOKEN)


def _bytes_of(prompt: Prompt) -> int:
    """Return the bytes of a prompt, with the tools that it offers and the calls in it."""
    count = len(prompt_text(prompt).encode())
    if isinstance(prompt, str):
        return count
    calls = (call for turn in prompt for call in turn.tool_calls or ())
    more = [turn.tools or "" for turn in prompt] + [f"{c.name}{c.arguments}" for c in calls]
    return count + sum(len(text.encode()) for text in more)


class Budget:
    """The money spent, the most that requests in flight may cost, and the cap on their sum."""

    def __init__(self, cap: float | None, spent: float) -> None:
        self.cap, self.spent, self.reserved = cap, spent, 0.0

    def allows(self, cost: float) -> bool:
        """Return whether a request of at most `cost` stays below the cap in the worst case."""
        return self.cap is None or self.spent + self.reserved + cost <= self.cap

    def exhausted(self, left: int) -> UserError:
        """Return the error of a run that the cap ends."""
        return UserError(
            f"the cost cap is reached: {self.spent:.4f} of {self.cap:.4f} USD are spent, and the "
            f"next answer could exceed it; {left} prompts have no answer yet",
            where="params.yaml, generate.backend.cap",
            fix="cohobate run --set generate.backend.cap=...   (the sum of all rounds)",
        )
