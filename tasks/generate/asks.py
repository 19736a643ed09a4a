"""What is asked of a teacher, and what comes back."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from tasks.models.decoding import Answer, Decoding
from tasks.rows.records import Message


class Ask(NamedTuple):
    """One answer that is wanted."""

    key: str
    """Key of the answer in the ledger."""
    prompt: str | tuple[Message, ...]
    draw: str
    """Names the random numbers of a sampled answer."""


class Unanswered(NamedTuple):
    """An ask that came to nothing. It is never kept: the next run asks again."""

    reason: str
    cost: float = 0.0
    """US dollars that were paid for replies all the same."""


Batch = Mapping[str, Answer | Unanswered]
"""Outcomes by the key of their ask."""

Answering = Callable[[Sequence[Ask], Decoding], Iterator[Batch]]
"""Answers prompts, batch after batch, each answer under the key of its ask."""


def driven(stream: AsyncGenerator[Batch]) -> Iterator[Batch]:
    """Yield the batches of an asynchronous stream; it stands still while a batch is dealt with."""

    async def following() -> Batch | None:
        return await anext(stream, None)

    with asyncio.Runner() as runner:
        while (batch := runner.run(following())) is not None:
            yield batch
