"""What is asked of a teacher, and what comes back."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from tasks.decoding import Answer, Decoding
from tasks.records import Message


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
