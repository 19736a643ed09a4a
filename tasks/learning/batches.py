"""Rows as examples, and which of them each update of a training run sees.

The order is shuffled anew for each epoch; within a window of some updates, rows of like length
come together, so that little is padding. Stages of a curriculum follow each other, and share the
updates in proportion to their rows.

Shapes: B batch, S sequence, P tokens of a beginning, N valid tokens, K stored ids.
"""

import hashlib
import math
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import Dataset

from tasks.learning.hyperparameters import Hyperparameters
from tasks.rows.records import Response, Row
from tasks.rows.text import Encoded, pad_right

WINDOW = 16
"""Updates whose rows are sorted by length together."""


@dataclass(frozen=True, slots=True)
class Example:
    """One row as a model reads it."""

    key: str
    """`key_of` the row."""
    ids: np.ndarray
    """Prompt and completion, int32."""
    prompt_length: int
    stage: int = 0
    """Stage of the curriculum, from 0."""
    signal: int = -1
    """Its row in the signal store; −1: none."""
    group: str = ""
    """Class, topic or task of the row."""
    by_student: bool = False
    """Whether the student wrote the completion."""
    target: str = ""
    """Name of an auxiliary target; empty for a prompt's own answer."""
    weight: float = 1.0
    """Of the loss on this target."""

    @property
    def length(self) -> int:
        """Number of completion tokens: those that carry a loss."""
        return len(self.ids) - self.prompt_length


def key_of(row: Row) -> str:
    """Return which row this is: which prompt, whose answer of which sample, which target."""
    if isinstance(row, Response):
        target = f"/{row.target}" if row.target else ""
        return f"{row.id}/{row.teacher}/{row.sample}{target}"
    return row.id


def examples_of(
    rows: Iterable[Row], encoded: Iterable[Encoded], max_tokens: int | None = None
) -> list[Example]:
    """Return rows and their token ids as examples; a `Lesson` brings its stage.

    Rows without an answer, and those of more than `max_tokens`, are left out: compare the number.
    """
    return [
        Example(
            key_of(row),
            np.array(ids.ids, dtype=np.int32),
            len(ids.prompt_ids),
            getattr(row, "stage", 0),
            group=row.group,
            by_student=row.origin == "student",
            target=getattr(row, "target", None) or "",
        )
        for row, ids in zip(rows, encoded, strict=True)
        if ids.completion_ids and (max_tokens is None or len(ids.ids) <= max_tokens)
    ]


def fingerprint(examples: Sequence[Example]) -> str:
    """Return a hash of what there is to learn: the rows, in their order, as ids."""
    found = hashlib.sha256()
    for row in examples:
        about = (row.key, row.prompt_length, row.stage, row.signal, len(row.ids))
        found.update(repr(about).encode() + row.ids.tobytes())
    return found.hexdigest()


def plan(
    examples: Sequence[Example], hyperparameters: Hyperparameters, seed: int
) -> list[list[int]]:
    """Return, for each update, the positions of its rows in `examples`."""
    stages = sorted({example.stage for example in examples})
    updates, size = hyperparameters.updates_over(len(examples)), hyperparameters.batch_size
    batches: list[list[int]] = []
    seen = 0
    for stage in stages:
        rows = [i for i, example in enumerate(examples) if example.stage == stage]
        seen += len(rows)
        count = round(updates * seen / len(examples)) - len(batches)
        batches += _stage_batches(examples, rows, count, size, random.Random(f"{seed}/{stage}"))
    return batches


def _stage_batches(
    examples: Sequence[Example], rows: list[int], count: int, size: int, dice: random.Random
) -> Iterator[list[int]]:
    endless = _epochs(rows, dice)
    widest = min(WINDOW, max(1, len(rows) // size))  # else a row could be twice in one update
    for start in range(0, count, widest):
        width = min(widest, count - start)
        window = [next(endless) for _ in range(width * size)]
        window.sort(key=lambda i: len(examples[i].ids))
        batches = [window[n * size : (n + 1) * size] for n in range(width)]
        dice.shuffle(batches)
        yield from batches


def _epochs(rows: list[int], dice: random.Random) -> Iterator[int]:
    order = list(rows)
    while True:
        dice.shuffle(order)
        yield from order


def positions_of(rows: Sequence[Example], width: int) -> torch.Tensor:
    """Return where the completions are predicted in rows stacked to (B, S), counted through B·S."""
    spans = [
        np.arange(row.prompt_length - 1, len(row.ids) - 1) + n * width for n, row in enumerate(rows)
    ]
    return torch.from_numpy(np.concatenate(spans))


def common_beginning(rows: Sequence[Example]) -> torch.Tensor:
    """Return the tokens that all prompts begin with, each one's last token apart, (P,)."""
    asked = [row.ids[: row.prompt_length - 1] for row in rows]
    first = min(asked, key=len, default=np.empty(0, dtype=np.int32))
    alike_P = np.all([ids[: len(first)] == first for ids in asked], 0)
    return torch.from_numpy(first[: int(alike_P.cumprod().sum())]).long()


class Brings(Protocol):
    """What gives soft targets, as far as rows are concerned (tasks/teaching/origins.py)."""

    def bring(self, rows: Sequence[Example]) -> dict[str, Any]:
        """Return what a micro-batch of these rows needs: tensors, or nested maps of them."""
        ...


class Batches(Dataset[dict[str, Any]]):
    """The micro-batches of a plan, in order, as the tensors that `Learner` takes."""

    def __init__(
        self,
        examples: Sequence[Example],
        batches: Sequence[Sequence[int]],
        rows_at_once: int,
        teaching: Brings | None,
    ) -> None:
        self.examples, self.teaching = examples, teaching
        self._instead: dict[int, list[Example]] = {}
        starts = [
            (update, start)
            for update, batch in enumerate(batches)
            for start in range(0, len(batch), rows_at_once)
        ]
        self.micro = [list(batches[n][start : start + rows_at_once]) for n, start in starts]
        self.progress = [n / max(1, len(batches) - 1) for n, _ in starts]

    def __len__(self) -> int:
        return len(self.micro)

    def __getitem__(self, number: int) -> dict[str, Any]:
        """Return one micro-batch: `ids_BS`, `positions_N` (into B·S), `targets_N`; and, for soft
        targets, how far training is (`progress`, 0 to 1) and what their source brings.
        """
        if number >= len(self.micro):
            raise IndexError(number)
        rows = self.rows(number)
        ids_BS = pad_right([row.ids[:-1].tolist() for row in rows], 0)  # nothing follows the last
        batch: dict[str, Any] = {
            "ids_BS": ids_BS,
            "positions_N": positions_of(rows, ids_BS.shape[1]),
            "targets_N": torch.from_numpy(
                np.concatenate([row.ids[row.prompt_length :] for row in rows]).astype(np.int64)
            ),
        }
        if self.teaching is not None:
            owned = [row.by_student for row in rows for _ in range(row.length)]
            batch["by_student_N"] = torch.tensor(owned)
            batch |= {"progress": self.progress[number], "brought": self.teaching.bring(rows)}
        return batch

    def rows(self, number: int) -> list[Example]:
        """Return the examples of a micro-batch."""
        return self._instead.get(number) or [self.examples[i] for i in self.micro[number]]

    def put(self, numbers: Sequence[int], rows: Sequence[Example]) -> None:
        """Let the micro-batches of one update hold these rows instead of the planned ones."""
        size = math.ceil(len(rows) / len(numbers))
        parts = (list(rows[n * size : (n + 1) * size]) for n in range(len(numbers)))
        self._instead = dict(zip(numbers, parts, strict=True))
