"""Requests to a language model and its answers, and the settings of decoding."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

from pydantic import Field

from cohobate.data.messages import Prompt, ToolCall, images_of
from cohobate.data.reasoning import split
from cohobate.data.tool_calls import with_calls
from cohobate.params import Section

if TYPE_CHECKING:
    from torch import Tensor


class Decoding(Section):
    """How the next token is chosen, and how many there may be."""

    max_tokens: int = Field(16, ge=1)
    """Most tokens of an answer, the closing one included."""
    temperature: float = Field(0.0, ge=0)
    """0 takes the likeliest token (greedy); 1 samples from the model's distribution as it is."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Samples among the likeliest tokens that together have this probability."""
    seed: int = 0
    """Of the samples; each prompt and sample has its own random numbers, whatever its batch."""


class Batching(Section):
    """How many rows are in memory at once."""

    rows: int = Field(64, ge=1)
    """Most rows at once."""
    tokens: int = Field(8192, ge=1)
    """Most tokens at once, prompts and answers together."""

    def slots(self, longest: int, decoding: Decoding) -> int:
        """Return how many rows there may be at once if the longest prompt has so many tokens."""
        return min(self.rows, self.tokens // (longest + decoding.max_tokens))


class Request(NamedTuple):
    """A prompt as token ids."""

    ids: list[int]
    draw: str = ""
    """Names the random numbers of a sampled answer, such as `<row id>/<sample>`."""
    tools: str | None = None
    """Tools that the prompt offers: a JSON array of schemas as text."""
    images: tuple[str, ...] = ()
    """Names of the pictures before the prompt."""

    @classmethod
    def of(cls, prompt: Prompt, ids: list[int], draw: str) -> "Request":
        """Return the request for an answer to a prompt with these token ids."""
        tools = None if isinstance(prompt, str) or not prompt else prompt[0].tools
        return cls(ids, draw, tools, images_of(prompt))


class Completion(NamedTuple):
    """The tokens that a model generated."""

    ids: list[int]
    """Token ids, with the closing one where the model ended the answer itself."""
    finish: Literal["stop", "length"]
    logprob: float | None
    """Mean log-probability of these ids (nats a token, at temperature 1); None without any."""
    signals: "list[Mapping[str, Tensor]]"
    """For each id, what `measure` of `decode_batch` returned of its distribution; empty where
    nothing is measured."""
    logprobs: Sequence[float] = ()
    """Log-probability of each id, where a model of transformers generated them."""


class Usage(NamedTuple):
    """Tokens and cost of an answer, as the service counts them."""

    prompt_tokens: int
    answer_tokens: int
    cost: float
    """US dollars."""


class Answer(NamedTuple):
    """A model's answer as text."""

    text: str
    finish: Literal["stop", "length", "unanswered"]
    """`unanswered`: a service gave no answer, and the text is empty."""
    logprob: float | None
    usage: Usage | None = None
    """What a service charged for it; None where it was computed on this machine."""
    tokens: tuple[tuple[str, float, Mapping[str, float]], ...] | None = None
    """For each token its text, its log-probability, and those of the likeliest tokens there, where
    a service gave them."""
    reasoning: str | None = None
    """The model's reasoning before the answer, from a field of its own or between think tags."""
    note: str | None = None
    """What was odd about a service's reply."""
    tool_calls: tuple[ToolCall, ...] | None = None
    """Calls of tools that the prompt offered; the text can be empty then."""

    @property
    def full_text(self) -> str:
        """The answer with its calls of tools as text: what verifiers, metrics and judges read."""
        return with_calls(self.text, self.tool_calls)

    @property
    def is_cut_in_reasoning(self) -> bool:
        """Whether the limit of its length was reached before the answer began."""
        empty = not self.text.strip() and not self.tool_calls
        return self.finish == "length" and empty and bool(self.reasoning)


def split_reasoning(answer: Answer, *, opened: bool = False) -> Answer:
    """Move the reasoning of an answer from its text to the field for it.

    `opened`: the text begins within the reasoning.
    """
    text, reasoning = split(answer.text, opened=opened)
    if text == answer.text:
        return answer
    whole = "\n\n".join(part for part in (answer.reasoning, reasoning) if part)
    return answer._replace(text=text, reasoning=whole or None)
