"""Tokenised examples for training, and the positions of their completions in a batch."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from cohobate.data.records import Response, Row
from cohobate.data.tokenized import Encoded


@dataclass(frozen=True, slots=True)
class Example:
    """One row of training data as token ids."""

    key: str
    """`row_key` of the row."""
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


def row_key(row: Row) -> str:
    """Return a key of a row: its prompt, the teacher and sample of its answer, its target."""
    if isinstance(row, Response):
        target = f"/{row.target}" if row.target else ""
        return f"{row.id}/{row.teacher}/{row.sample}{target}"
    return row.id


def examples_of(
    rows: Iterable[Row], encoded: Iterable[Encoded], max_tokens: int | None = None
) -> list[Example]:
    """Return rows and their token ids as examples, with the stage of a `TrainingRow`.

    Rows without an answer, and those of more than `max_tokens`, are left out: compare the number.
    """
    return [
        Example(
            row_key(row),
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
    """Return a sha256 of the examples in their order: keys and token ids."""
    digest = hashlib.sha256()
    for row in examples:
        fields = (row.key, row.prompt_length, row.stage, row.signal, len(row.ids))
        digest.update(repr(fields).encode() + row.ids.tobytes())
    return digest.hexdigest()


def completion_positions(rows: Sequence[Example], width: int) -> torch.Tensor:
    """Return the positions that predict completions in rows of (B, S), counted through B·S, (N,).

    That is the position before each completion token: logits there predict it.
    """
    spans = [
        # row n begins at n·S of the flattened batch
        np.arange(row.prompt_length - 1, len(row.ids) - 1) + n * width
        for n, row in enumerate(rows)
    ]
    return torch.from_numpy(np.concatenate(spans))


def common_prefix(rows: Sequence[Example]) -> torch.Tensor:
    """Return the tokens that all prompts begin with, (P,); the last token of each does not count.

    It predicts the first completion token: a pass must read it.
    """
    prompts = [row.ids[: row.prompt_length - 1] for row in rows]
    first = min(prompts, key=len, default=np.empty(0, dtype=np.int32))
    # the cumulative product ends at the first token in which any prompt differs
    same_P = np.all([ids[: len(first)] == first for ids in prompts], 0)
    return torch.from_numpy(first[: int(same_P.cumprod().sum())]).long()


class TargetCollator(Protocol):
    """The side of a target source that runs in the data loader
    (cohobate/teachers/target_sources.py)."""

    def collate(self, rows: Sequence[Example]) -> dict[str, Any]:
        """Return what the source needs of these rows: tensors, or nested mappings of them."""
        ...
