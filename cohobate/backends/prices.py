"""What answers cost, and the cap that no run goes over."""

from collections.abc import Iterable

from pydantic import Field

from cohobate.backends.requests import TeacherRequest
from cohobate.data.records import Message, prompt_text
from cohobate.errors import UserError
from cohobate.generation.requests import Decoding
from cohobate.params import Section

Prompt = str | tuple[Message, ...]
_MILLION = 1_000_000
_BYTES_A_TOKEN = 4  # of plain English, about; a token has at least one byte
_OVERHEAD = 16  # tokens that a chat template adds to each turn, at most


class Price(Section):
    """What a service asks for its tokens, in US dollars a million."""

    input: float = Field(0.0, ge=0)
    """Tokens of prompts."""
    output: float = Field(0.0, ge=0)
    """Tokens of answers."""
    batch: float = Field(0.5, ge=0, le=1)
    """Share of the price that is asked for batches."""

    def of(self, prompt_tokens: int, answer_tokens: int, share: float = 1.0) -> float:
        """Return what so many tokens cost."""
        full = (prompt_tokens * self.input + answer_tokens * self.output) / _MILLION
        return full * share

    def upper_bound(self, request: TeacherRequest, decoding: Decoding, share: float = 1.0) -> float:
        """Return what an answer can cost at most."""
        return self.of(most_tokens(request.prompt), decoding.max_tokens, share)

    def estimate(self, prompts: Iterable[Prompt], decoding: Decoding, share: float = 1.0) -> str:
        """Say what answers to these prompts will cost, before any is bought."""
        count = likely = 0
        most = 0.0
        for prompt in prompts:
            count += 1
            likely += likely_tokens(prompt)
            most += self.of(most_tokens(prompt), decoding.max_tokens, share)
        about = self.of(likely, count * decoding.max_tokens, share)
        return f"{count} answers to buy: about {about:.2f} USD, at most {most:.2f}"


def most_tokens(prompt: Prompt) -> int:
    """Return as many tokens as a prompt can have in any tokenizer, those of its turns included."""
    turns = 1 if isinstance(prompt, str) else len(prompt)
    return len(prompt_text(prompt).encode()) + _OVERHEAD * turns


def likely_tokens(prompt: Prompt) -> int:
    """Return about how many tokens a prompt has."""
    return -(-len(prompt_text(prompt).encode()) // _BYTES_A_TOKEN)


class Budget:
    """What was spent, what the requests in flight may cost, and the cap on both together."""

    def __init__(self, cap: float | None, spent: float) -> None:
        self.cap, self.spent, self.reserved = cap, spent, 0.0

    def allows(self, cost: float) -> bool:
        """Say whether a request that may cost so much stays below the cap, come what may."""
        return self.cap is None or self.spent + self.reserved + cost <= self.cap

    def exhausted(self, left: int) -> UserError:
        """Return the error that says so."""
        return UserError(
            f"the cost cap is reached: {self.spent:.4f} of {self.cap:.4f} USD are spent, the next "
            f"answer could go over it; {left} prompts are not answered yet, the others are kept",
            where="params.yaml, generate.backend.cap",
            fix="cohobate run --set generate.backend.cap=...   (the sum of all rounds)",
        )
