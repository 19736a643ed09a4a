"""Target source of a live teacher whose tokenizer is another one than the student's.

M is the number of the teacher's tokens, as N is of the student's; J is the number of strings that
both vocabularies have.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from cohobate.data.examples import Example, completion_positions, row_key
from cohobate.data.records import Row
from cohobate.data.tokenized import (
    LearntText,
    encode_all,
    learnt_texts,
    pad_right,
    token_offsets,
)
from cohobate.errors import UserError
from cohobate.fast.forward_pass import ForwardOutputs, forward
from cohobate.losses.cross_tokenizer_targets import CrossTokenizerTargets
from cohobate.losses.uld import align
from cohobate.models import sharding
from cohobate.models.lm_head import Head, check_head
from cohobate.teachers.micro_batch import MicroBatch

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from cohobate.losses.layer_matching import LayerMatching
    from cohobate.teachers.ensembles import Progressive


class AlignedRow(NamedTuple):
    """A row in the teacher's tokens, and the groups of both sides' completion tokens."""

    example: Example
    student_groups: list[int]
    teacher_groups: list[int]


@dataclass
class CrossTokenizerSource:
    """A frozen teacher of another tokenizer, which reads the same rows in its own tokens."""

    model: "PreTrainedModel"
    """The teacher."""
    tokenizer: "PreTrainedTokenizerBase"
    """The teacher's tokenizer."""
    student_tokenizer: "PreTrainedTokenizerBase"
    matching: "LayerMatching | None" = None
    progressive: "Progressive | None" = None

    def __post_init__(self) -> None:
        check_head(self.model.eval().requires_grad_(False))
        teacher_ids = self.tokenizer.get_vocab()
        # sorted: J has the same order in every run
        pairs = sorted(
            (n, teacher_ids[text])
            for text, n in self.student_tokenizer.get_vocab().items()
            if text in teacher_ids
        )
        pairs_J2 = torch.tensor(pairs).reshape(-1, 2)
        self.shared_ids = (pairs_J2[:, 0], pairs_J2[:, 1])
        self.aligned_rows: dict[str, AlignedRow] = {}
        self._head: Head | None = None

    @property
    def live_models(self) -> "list[PreTrainedModel]":
        """The teacher."""
        return [self.model]

    def attach(self, rows: Sequence[Row], examples: Sequence[Example]) -> None:
        """Encode the rows in the teacher's tokens, and align them with the student's.

        Args:
            rows: the rows' texts.
            examples: the rows that the student reads; other rows are left out.

        Raises:
            UserError: a tokenizer does not give the offsets of its tokens, or the chat templates
                write different texts.
        """
        keys = {example.key for example in examples}
        rows = [row for row in rows if row_key(row) in keys]
        read = [row.for_teacher() for row in rows]
        encoded = encode_all(self.tokenizer, read)
        texts = [learnt_texts(self.student_tokenizer, rows), learnt_texts(self.tokenizer, read)]
        for row, ids, student, teacher in zip(rows, encoded, *texts, strict=True):
            groups = _align(row, (self.student_tokenizer, student), (self.tokenizer, teacher))
            example = Example(row_key(row), np.array(ids.ids, dtype=np.int32), ids.spans)
            self.aligned_rows[example.key] = AlignedRow(example, *groups)

    def collate(self, rows: Sequence[Example]) -> dict[str, Any]:
        """Return the rows in the teacher's tokens, and the groups, numbered through the batch."""
        aligned = [self.aligned_rows[row.key] for row in rows]
        student_groups: list[int] = []
        teacher_groups: list[int] = []
        first = 0
        for row in aligned:
            student_groups += [first + n for n in row.student_groups]
            teacher_groups += [first + n for n in row.teacher_groups]
            # both sides of a row have as many groups
            first += row.student_groups[-1] + 1
        examples = [row.example for row in aligned]
        # the last token predicts none
        ids_BS = pad_right([row.ids[:-1].tolist() for row in examples], 0)
        labels = np.concatenate([row.labels for row in examples])
        return {
            "ids_BS": ids_BS,
            "positions_M": completion_positions(examples, ids_BS.shape[1]),
            "ids_M": torch.from_numpy(labels.astype(np.int64)),
            "group_N": torch.tensor(student_groups),
            "group_M": torch.tensor(teacher_groups),
        }

    @torch.no_grad()
    def targets(self, batch: MicroBatch) -> tuple[CrossTokenizerTargets, ForwardOutputs | None]:
        """Run the teacher over the rows in its own tokens."""
        inputs, device = batch.teacher_inputs, batch.ids_BS.device
        if self.model.device != device:
            self.model.to(device)  # type: ignore[arg-type]
        # a frozen teacher runs in the format that it was loaded in, whatever the student does
        with torch.autocast(device.type, enabled=False):
            hidden_MD = forward(self.model, inputs["ids_BS"], inputs["positions_M"]).last_hidden_ND
        # made behind the pass, in which a sharded teacher gathers its weights
        if self._head is None or sharding.is_sharded(self.model):
            self._head = Head.of(self.model, len(self.tokenizer))
        student_J, teacher_J = self.shared_ids
        targets = CrossTokenizerTargets(
            hidden_MD,
            self._head,
            inputs["ids_M"],
            inputs["group_N"],
            inputs["group_M"],
            (student_J.to(device), teacher_J.to(device)),
        )
        return targets, None


def _align(
    row: Row,
    student: "tuple[PreTrainedTokenizerBase, list[LearntText]]",
    teacher: "tuple[PreTrainedTokenizerBase, list[LearntText]]",
) -> tuple[list[int], list[int]]:
    """Return the group of each learnt token of a row, for the student and for the teacher.

    Raises:
        UserError: the two chat templates write different texts.
    """
    texts = [[one.text.strip() for one in learnt] for _, learnt in (student, teacher)]
    if texts[0] != texts[1]:
        raise UserError(
            "the chat templates of student and teacher write different texts, so that their tokens "
            f"cannot be aligned: {texts[0]!r}, and {texts[1]!r}"[:400],
            where=f"row {row.id}, terms: uld",
            fix="leave out what they write in different ways: reasoning, calls of tools",
        )
    return align(_spans(*student), _spans(*teacher))


def _spans(
    tokenizer: "PreTrainedTokenizerBase", learnt: Sequence[LearntText]
) -> list[tuple[int, int]]:
    """Return where each learnt token lies in the stripped texts, one text behind the other."""
    spans: list[tuple[int, int]] = []
    first = 0
    for text, closed in learnt:
        blank = len(text) - len(text.lstrip())
        spans += [
            (first + max(start - blank, 0), first + max(end - blank, 0))
            for start, end in token_offsets(tokenizer, text)
        ]
        first += len(text.strip())
        # what closes a text has a span of its own behind it, on either side
        spans += [(first, first + 1)] if closed else []
        first += 1
    return spans
