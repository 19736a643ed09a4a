"""A teacher in Ray actors as the target source of on-policy training.

The student's answers are sent to the actors as they end, and scored while others are generated.
Hidden states at the learnt tokens come back; the teacher's head, which is here, gives the whole
distribution: the losses are those of a teacher in the training process, up to rounding.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from cohobate.data.examples import Example
from cohobate.data.records import Row
from cohobate.data.teacher_prompts import as_teacher_reads, teacher_examples
from cohobate.losses.live_teacher import LiveTeacher
from cohobate.models.lm_head import Head
from cohobate.teachers.micro_batch import MicroBatch
from cohobate.teachers.ray_pool import TeacherPool

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from cohobate.fast.forward_pass import ForwardOutputs
    from cohobate.losses.layer_matching import LayerMatching
    from cohobate.teachers.ensembles import Progressive

_ROWS = 8  # that an actor runs together: by count alone, so that no numbers depend on timing


class PooledSource:
    """Soft targets from a teacher in Ray actors, for rows that are made while training runs.

    Args:
        pool: the actors; this object stops them.
        tokenizer: the teacher's.
        vocabulary: number of the student's ids.
        teacher_ids: the teacher's id of each of the student's tokens; None: the same.
    """

    matching: "LayerMatching | None" = None
    progressive: "Progressive | None" = None

    def __init__(
        self,
        pool: TeacherPool,
        tokenizer: "PreTrainedTokenizerBase",
        vocabulary: int,
        teacher_ids: Tensor | None,
    ) -> None:
        self.pool, self.tokenizer, self.vocabulary = pool, tokenizer, vocabulary
        self._teacher_ids = teacher_ids
        self._numbers = None if teacher_ids is None else teacher_ids.numpy()
        self._head: Head | None = None
        self._views: dict[str, Example] = {}
        self._waiting: dict[int, Example] = {}
        """Rows that no actor has yet, by their handles."""
        self._running: list[tuple[list[int], Any]] = []
        self._states: dict[int, Tensor] = {}
        self.refused = 0
        """Rows without signals: none."""

    @property
    def live_models(self) -> "list[PreTrainedModel]":
        """The frozen teachers in this process: none."""
        return []

    def __enter__(self) -> "PooledSource":
        return self

    def __exit__(self, *error: object) -> None:
        self.pool.__exit__(*error)

    def attach(self, rows: Sequence[Row], examples: Sequence[Example]) -> None:
        """Encode the prompts that only the teacher reads (`Row.teacher_prompt`).

        Raises:
            UserError: an answer has other tokens behind the teacher's prompt; names the row.
        """
        self._views = teacher_examples(self.tokenizer, rows, examples, self._numbers)

    def submit(
        self,
        rows: Sequence[Example],
        candidates: Sequence[Sequence[Sequence[int]]] = (),
    ) -> None:
        """Have rows scored, without waiting for it; rows that are learnt nowhere are left out.

        `candidates` are not used: the whole distribution comes back.
        """
        for row in rows:
            if row.length:
                read = self._read(row)
                self._waiting.setdefault(_handle(read), read)
        while len(self._waiting) >= _ROWS:
            self._send(_ROWS)

    def settled(self, rows: Sequence[Example]) -> list[Example]:
        """Return the rows of an update once all are scored.

        Raises:
            UserError: an actor died.
        """
        sent = {handle for handles, _ in self._running for handle in handles}
        handles = {_handle(self._read(row)): row for row in rows if row.length}
        self.submit([row for handle, row in handles.items() if handle not in sent])
        if self._waiting:
            self._send(len(self._waiting))
        self._states.clear()
        for numbers, reference in self._running:
            states = self.pool.result(reference)
            self._states |= zip(numbers, states, strict=True)
        self._running.clear()
        return list(rows)

    def collate(self, rows: Sequence[Example]) -> dict[str, Any]:
        """Return which rows these are."""
        return {"pooled_B": torch.tensor([_handle(self._read(row)) for row in rows])}

    def targets(self, batch: MicroBatch) -> "tuple[LiveTeacher, ForwardOutputs | None]":
        """Return the hidden states at the learnt tokens, and the teacher's head."""
        device = batch.ids_BS.device
        if self._head is None:
            self._head = self._head_on(device)
        handles = batch.teacher_inputs["pooled_B"].tolist()
        states = [self._states[handle] for handle in handles if handle in self._states]
        weight_VD = self._head.weight_VD
        # (N, D) also where all rows are masked
        empty_0D = weight_VD.new_empty(0, weight_VD.shape[1])
        hidden_ND = torch.cat([state.to(device) for state in states]) if states else empty_0D
        return LiveTeacher(hidden_ND, self._head), None

    def _read(self, row: Example) -> Example:
        return as_teacher_reads(self._views, row, self._numbers)

    def _send(self, count: int) -> None:
        handles = list(self._waiting)[:count]
        batch = [self._waiting.pop(handle) for handle in handles]
        self._running.append((handles, self.pool.call("hidden_states", batch)))

    def _head_on(self, device: torch.device) -> Head:
        """Return the teacher's head over the student's ids."""
        head: Head = self.pool.result(self.pool.call("head"))
        ids_V = self._teacher_ids
        if ids_V is None:
            ids_V = torch.arange(self.vocabulary)
        bias_V = None if head.bias_V is None else head.bias_V[ids_V].to(device)
        return replace(head, weight_VD=head.weight_VD[ids_V].to(device), bias_V=bias_V)


def _handle(read: Example) -> int:
    """Return a number that stands for a row in a batch: a hash of what the teacher reads."""
    data = np.array([*np.ravel(read.spans), *read.ids], "<i4").tobytes()
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little") >> 1
