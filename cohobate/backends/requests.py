"""What is asked of a teacher, and what comes back."""

import asyncio
import hashlib
import json
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from cohobate.data.records import Message
from cohobate.generation.requests import Answer, Decoding


class TeacherRequest(NamedTuple):
    """One answer that is wanted."""

    key: str
    """Key of the answer in the ledger."""
    prompt: str | tuple[Message, ...]
    draw: str
    """Names the random numbers of a sampled answer."""
    replies: tuple[str, ...] = ()
    """Replies without an answer that earlier runs paid for."""


State = Literal["failed", "retried", "refused", "doubtful"]


class NoAnswer(NamedTuple):
    """A request that came to no answer."""

    reason: str
    cost: float = 0.0
    """US dollars that were paid for it all the same."""
    reply: str | None = None
    """What the service sent, where it may have charged for it: kept to be looked at."""
    whole: bool = False
    """Whether that is a whole reply, and no part of one."""
    state: State = "failed"
    """`failed`: the next run asks again. `retried`: this run does. `refused`: no run does; the
    service will not answer this prompt. `doubtful`: it refused, but perhaps not for the prompt."""


class LedgerTotals(NamedTuple):
    """What a teacher's ledger held before a run."""

    spent: float = 0.0
    """US dollars."""
    answers: int = 0


EMPTY_LEDGER = LedgerTotals()


Outcomes = Mapping[str, Answer | NoAnswer]
"""Outcomes by the key of their ask."""

AnswerFunction = Callable[[Sequence[TeacherRequest], Decoding], Iterator[Outcomes]]
"""Answers prompts, batch after batch, each answer under the key of its ask."""


def iterate_stream(stream: AsyncGenerator[Outcomes]) -> Iterator[Outcomes]:
    """Yield the batches of an asynchronous stream; it stands still while a batch is dealt with."""

    async def following() -> Outcomes | None:
        return await anext(stream, None)

    with asyncio.Runner() as runner:
        while (batch := runner.run(following())) is not None:
            yield batch


def answer_key(*key_parts: Any) -> str:
    """Return the key of an answer: a hash of everything that decides it, as JSON values."""
    text = json.dumps(key_parts, sort_keys=True, ensure_ascii=False)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
