"""Requests to a teacher and their outcomes, whichever backend computes them."""

import asyncio
import hashlib
import json
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from cohobate.data.messages import Prompt
from cohobate.generation.requests import Answer, Decoding


class TeacherRequest(NamedTuple):
    """A request for one answer, under its key in the ledger."""

    key: str
    """Key of the answer in the ledger: a hash of everything that decides it."""
    prompt: Prompt
    draw: str
    """Names the random numbers of a sampled answer."""
    replies: tuple[str, ...] = ()
    """Replies without an answer that earlier runs paid for; a prompt has two paid attempts."""
    ids: tuple[int, ...] | None = None
    """A row as token ids, of a request that scores it (`prompt` is the same as text)."""
    start: int = 0
    """The first of these tokens that is scored."""
    candidates: tuple[tuple[int, ...], ...] = ()
    """At each scored token the ids whose log-probabilities are requested, its own among them;
    empty: those of the teacher's likeliest."""


State = Literal["failed", "retried", "refused", "doubtful"]


class NoAnswer(NamedTuple):
    """A request that ended without an answer."""

    reason: str
    cost: float = 0.0
    """US dollars that were paid for it nevertheless."""
    reply: str | None = None
    """The reply, where the service may have charged for it: kept in the ledger for inspection."""
    whole: bool = False
    """Whether `reply` is complete."""
    state: State = "failed"
    """`failed`: the next run sends it again. `retried`: this run does. `refused`: no run
    does, since the service will not answer this prompt. `doubtful`: the service refused, but the
    account may be the cause and not the prompt."""


class LedgerTotals(NamedTuple):
    """What a teacher's ledger contained before a run."""

    spent: float = 0.0
    """US dollars."""
    answers: int = 0


EMPTY_LEDGER = LedgerTotals()


Outcomes = Mapping[str, Answer | NoAnswer]
"""Outcomes by the key of their request."""

AnswerFunction = Callable[[Sequence[TeacherRequest], Decoding], Iterator[Outcomes]]
"""Sends requests and yields outcomes, batch after batch."""


def iterate_stream(stream: AsyncGenerator[Outcomes]) -> Iterator[Outcomes]:
    """Yield the items of an asynchronous stream; it is suspended while the caller uses an item.

    So a backend sends no further request before the caller has written the answers to the ledger.
    """

    async def next_batch() -> Outcomes | None:
        return await anext(stream, None)

    with asyncio.Runner() as runner:
        while (batch := runner.run(next_batch())) is not None:
            yield batch


def answer_key(*key_parts: Any) -> str:
    """Return the key of an answer: a hash of everything that decides it, as JSON values."""
    text = json.dumps(key_parts, sort_keys=True, ensure_ascii=False)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
