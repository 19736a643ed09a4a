"""Tokenised examples for training, and the positions of their completions in a batch."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from cohobate.data.messages import prompt_key
from cohobate.data.records import Response, Row
from cohobate.data.tokenized import Encoded

_NONE = np.empty(0, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class Example:
    """One row of training data as token ids."""

    key: str
    """`row_key` of the row."""
    ids: np.ndarray
    """Prompt and completion, int32."""
    spans: tuple[tuple[int, int], ...]
    """Where the learnt tokens are, in ascending order, as [start, end); the last is the answer."""
    stage: int = 0
    """Stage of the curriculum, from 0."""
    signal: int = -1
    """Its row in the signal store; −1: none."""
    group: str = ""
    """Class or topic of the row."""
    task: str = ""
    """Name of the source that the row comes from; empty where a round has one."""
    by_student: bool = False
    """Whether the student wrote the completion."""
    target: str = ""
    """Name of an auxiliary target; empty for a prompt's own answer."""
    weight: float = 1.0
    """Of the loss of the row."""
    teacher_prompt: int = 0
    """Hash of the prompt that the teacher reads in place of this one; 0: it reads this one."""
    images: tuple[str, ...] = ()
    """Names of the pictures before the text; their tokens are not among `ids`."""

    @classmethod
    def with_answer(cls, key: str, ids: np.ndarray, start: int, **fields: Any) -> "Example":
        """Return an example of which the tokens from `start` on are learnt."""
        return cls(key, ids, ((start, len(ids)),), **fields)

    @property
    def length(self) -> int:
        """Number of learnt tokens: those that carry a loss."""
        return sum(end - start for start, end in self.spans)

    @property
    def prompt_length(self) -> int:
        """Number of tokens before the answer."""
        return self.spans[-1][0] if self.spans else len(self.ids)

    @property
    def learnt_positions(self) -> np.ndarray:
        """Positions of the learnt tokens in `ids`, (length,)."""
        return np.concatenate([np.arange(start, end) for start, end in self.spans] or [_NONE])

    @property
    def labels(self) -> np.ndarray:
        """The learnt tokens, int64 (length,)."""
        labels: np.ndarray = self.ids[self.learnt_positions].astype(np.int64)
        return labels


def row_key(row: Row) -> str:
    """Return a key of a row: its prompt, the teacher and sample of its answer, its target."""
    if isinstance(row, Response):
        target = f"/{row.target}" if row.target else ""
        return f"{row.id}/{row.teacher}/{row.sample}{target}"
    return row.id


def teacher_prompt_hash(row: Row) -> int:
    """Return a hash of the prompt that only the teacher reads; 0 where the row has none."""
    if row.teacher_prompt is None:
        return 0
    text = json.dumps(prompt_key(row.teacher_prompt), sort_keys=True, ensure_ascii=False)
    # of 63 bits, and never 0, which stands for none
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1 | 1


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
            ids.spans,
            getattr(row, "stage", 0),
            group=row.group,
            by_student=row.origin == "student",
            target=getattr(row, "target", None) or "",
            task=row.task or "",
            weight=1.0 if row.weight is None else row.weight,
            teacher_prompt=teacher_prompt_hash(row),
            images=row.images or (),
        )
        for row, ids in zip(rows, encoded, strict=True)
        if ids.spans and (max_tokens is None or len(ids.ids) <= max_tokens)
    ]


def fingerprint(examples: Sequence[Example]) -> str:
    """Return a sha256 of the examples in their order: keys and token ids."""
    digest = hashlib.sha256()
    for row in examples:
        # one span is written as its start: the form of checkpoints from before there were several
        learnt = row.prompt_length if len(row.spans) == 1 else row.spans
        fields = (row.key, learnt, row.stage, row.signal, len(row.ids))
        digest.update(repr(fields).encode() + row.ids.tobytes())
        if row.teacher_prompt:
            digest.update(f"{row.teacher_prompt}".encode())
        if row.images:
            digest.update(repr(row.images).encode())
    return digest.hexdigest()


def completion_positions(rows: Sequence[Example], width: int) -> torch.Tensor:
    """Return the positions that predict learnt tokens in rows of (B, S), counted through B·S, (N,).

    That is the position before each of them: logits there predict it.
    """
    # row n begins at n·S of the flattened batch
    positions = [row.learnt_positions - 1 + n * width for n, row in enumerate(rows)]
    return torch.from_numpy(np.concatenate(positions))


def common_prefix(rows: Sequence[Example]) -> torch.Tensor:
    """Return the tokens that all prompts begin with, (P,); the last token of each does not count.

    It predicts the first learnt token: a pass must read it.
    """
    prompts = [row.ids[: row.spans[0][0] - 1] for row in rows]
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
