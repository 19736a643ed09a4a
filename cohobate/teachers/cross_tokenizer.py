"""A live teacher that has another tokenizer than the student: its own reading of the same rows.

Shapes: N valid tokens of the student, M of the teacher, S the teacher's sequence, J shared strings.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from cohobate.data.examples import Example, completion_positions, row_key
from cohobate.data.records import Row
from cohobate.data.tokenized import encode_all, pad_right
from cohobate.errors import UserError
from cohobate.fast.forward import ForwardOutputs
from cohobate.fast.padding_free import last_hidden
from cohobate.losses.targets import CrossTokenizerTargets
from cohobate.losses.uld import groups_of
from cohobate.models.lm_head import Head, check_head

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from cohobate.losses.layer_matching import LayerMatching
    from cohobate.teachers.ensembles import Progressive
    from cohobate.teachers.target_sources import MicroBatch


class Reading(NamedTuple):
    """A row as the teacher reads it, and the groups of both sides' completion tokens."""

    example: Example
    student_groups: list[int]
    teacher_groups: list[int]


@dataclass
class CrossTokenizerSource:
    """A frozen teacher of another tokenizer."""

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    student: "PreTrainedTokenizerBase"
    matching: "LayerMatching | None" = None
    progressive: "Progressive | None" = None

    def __post_init__(self) -> None:
        check_head(self.model.eval().requires_grad_(False))
        ours, theirs = self.student.get_vocab(), self.tokenizer.get_vocab()
        shared = sorted((n, theirs[text]) for text, n in ours.items() if text in theirs)
        pairs_J2 = torch.tensor(shared).reshape(-1, 2)
        self.shared = (pairs_J2[:, 0], pairs_J2[:, 1])
        self.readings: dict[str, Reading] = {}
        self._head: Head | None = None

    def attach(self, rows: Sequence[Row], examples: Sequence[Example]) -> None:
        """Read the rows as the teacher does.

        Raises:
            UserError: a tokenizer cannot say where its tokens are in the text.
        """
        wanted = {example.key for example in examples}
        kept = [row for row in rows if row_key(row) in wanted]
        read = zip(kept, encode_all(self.tokenizer, kept), strict=True)
        for row, ids in read:
            spans = [_spans(t, row.answer or "") for t in (self.student, self.tokenizer)]
            array = np.array(ids.ids, dtype=np.int32)
            example = Example(row_key(row), array, len(ids.prompt_ids))
            self.readings[example.key] = Reading(example, *groups_of(*spans))

    def collate(self, rows: Sequence[Example]) -> dict[str, Any]:
        """Return the rows as the teacher reads them, and the groups, numbered through the batch."""
        readings = [self.readings[row.key] for row in rows]
        sides: list[list[int]] = [[], []]
        first = 0
        for reading in readings:
            sides[0] += [first + n for n in reading.student_groups]
            sides[1] += [first + n for n in reading.teacher_groups]
            first += reading.student_groups[-1] + 1
        theirs = [reading.example for reading in readings]
        ids_BS = pad_right([row.ids[:-1].tolist() for row in theirs], 0)
        labels = np.concatenate([row.ids[row.prompt_length :] for row in theirs])
        return {
            "ids_BS": ids_BS,
            "positions_M": completion_positions(theirs, ids_BS.shape[1]),
            "ids_M": torch.from_numpy(labels.astype(np.int64)),
            "group_N": torch.tensor(sides[0]),
            "group_M": torch.tensor(sides[1]),
        }

    @torch.no_grad()
    def targets(self, batch: "MicroBatch") -> tuple[CrossTokenizerTargets, ForwardOutputs | None]:
        """Run the teacher over its own reading of the rows."""
        teacher_inputs, device = batch.teacher_inputs, batch.ids_BS.device
        if self.model.device != device:
            self.model.to(device)  # type: ignore[arg-type]
        if self._head is None:
            self._head = Head.of(self.model, len(self.tokenizer))
        with torch.autocast(device.type, enabled=False):
            hidden_MD = last_hidden(
                self.model, teacher_inputs["ids_BS"], teacher_inputs["positions_M"]
            )
        groups = (teacher_inputs["group_N"], teacher_inputs["group_M"])
        shared: tuple[Tensor, Tensor] = (self.shared[0].to(device), self.shared[1].to(device))
        return CrossTokenizerTargets(
            hidden_MD, self._head, teacher_inputs["ids_M"], *groups, shared
        ), None


def _spans(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[tuple[int, int]]:
    """Return where each token of an answer is in its text; the end of sequence lies beyond it."""
    if not tokenizer.is_fast:
        raise UserError("uld needs tokenizers that say where their tokens are (fast ones)")
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return [*map(tuple, found["offset_mapping"]), (len(text), len(text) + 1)]
