"""Target sources of a teacher whose tokenizer is another one than the student's, live or stored.

M is the number of the teacher's tokens, as N is of the student's; J is the number of strings that
both vocabularies have.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from cohobate.data.examples import Example, completion_positions, examples_of
from cohobate.data.records import Row
from cohobate.data.tokenized import encode_all, pad_right
from cohobate.errors import UserError
from cohobate.fast.forward_pass import ForwardOutputs, forward
from cohobate.losses.cross_tokenizer_targets import (
    CrossTokenizerTargets,
    StoredCrossTokenizerTargets,
)
from cohobate.losses.live_teacher import LiveTeacher
from cohobate.losses.soft_targets import SoftTargets
from cohobate.losses.top_k import TopK
from cohobate.models import checkpoints, sharding
from cohobate.models.lm_head import Head, check_head
from cohobate.teachers.micro_batch import MicroBatch
from cohobate.teachers.token_alignment import TokenAlignment

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from cohobate.losses.layer_matching import LayerMatching
    from cohobate.teachers.ensembles import Progressive
    from cohobate.teachers.signal_store.store import SignalStore


@dataclass
class CrossTokenizerSource:
    """A frozen teacher of another tokenizer, which reads the same rows in its own tokens.

    Answers that the student generates are tokenised again for the teacher, and aligned by the
    places of the generated tokens in their text.
    """

    model: "PreTrainedModel"
    """The teacher."""
    tokenizer: "PreTrainedTokenizerBase"
    """The teacher's tokenizer."""
    student_tokenizer: "PreTrainedTokenizerBase"
    matching: "LayerMatching | None" = None
    progressive: "Progressive | None" = None

    def __post_init__(self) -> None:
        check_head(self.model.eval().requires_grad_(False))
        self.alignment = TokenAlignment(self.tokenizer, self.student_tokenizer)
        self._head: Head | None = None

    @property
    def live_models(self) -> "list[PreTrainedModel]":
        """The teacher."""
        return [self.model]

    def attach(
        self, rows: Sequence[Row], examples: Sequence[Example], *, rollouts: bool = False
    ) -> None:
        """Encode the rows in the teacher's tokens, and align them with the student's.

        Args:
            rows: the rows' texts.
            examples: the rows that the student reads; other rows are left out.
            rollouts: whether the student will generate answers to their prompts.

        Raises:
            UserError: a tokenizer does not give the offsets of its tokens, or the chat templates
                write different texts.
        """
        read = [row.for_teacher() for row in rows]
        self.alignment.add(rows, examples, read)
        if rollouts:
            self.alignment.add_prompts(read, examples)

    def collate(self, rows: Sequence[Example]) -> dict[str, Any]:
        """Return the rows in the teacher's tokens, and the groups, numbered through the batch."""
        aligned = [self.alignment.of(row) for row in rows]
        examples = [row.example for row in aligned]
        # the last token predicts none
        ids_BS = pad_right([row.ids[:-1].tolist() for row in examples], 0)
        return {
            "ids_BS": ids_BS,
            "positions_M": completion_positions(examples, ids_BS.shape[1]),
            **self.alignment.groups(aligned),
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
        student_J, teacher_J = self.alignment.shared_ids
        targets = CrossTokenizerTargets(
            hidden_MD,
            self._head,
            inputs["ids_M"],
            inputs["group_N"],
            inputs["group_M"],
            (student_J.to(device), teacher_J.to(device)),
        )
        return targets, None


class StoredCrossTokenizerSource:
    """A signal store of a teacher of another tokenizer, captured over the same texts.

    The store has the teacher's tokenizer (`capture.keep_tokenizer`), by which its tokens are
    aligned with the student's.
    """

    matching: "LayerMatching | None" = None
    progressive: "Progressive | None" = None

    def __init__(self, store: "SignalStore", student_tokenizer: "PreTrainedTokenizerBase") -> None:
        """Open a source.

        Raises:
            UserError: the store does not have the teacher's tokenizer.
        """
        self.store = store
        self.tokenizer = _tokenizer_of(store.folder)
        self.alignment = TokenAlignment(self.tokenizer, student_tokenizer)
        self._index_rows: dict[str, int] = {}

    @property
    def live_models(self) -> "list[PreTrainedModel]":
        """The teacher is not in memory."""
        return []

    def attach(self, rows: Sequence[Row], examples: Sequence[Example]) -> None:
        """Align the rows, and find them in the store.

        Raises:
            UserError: the store has other rows or token ids, or the texts cannot be aligned.
        """
        # as they were captured: where a teacher read a prompt of its own, signals are still
        # stored as those of the row's prompt, and the answer's tokens are the same
        self.alignment.add(rows, examples, rows)
        keys = self.alignment.rows
        captured = [
            one for one in examples_of(rows, encode_all(self.tokenizer, rows)) if one.key in keys
        ]
        attached = self.store.attach(captured, self.tokenizer)
        self._index_rows = {one.key: one.signal for one in attached}

    def collate(self, rows: Sequence[Example]) -> dict[str, Any]:
        """Return the rows' signals, and the groups, numbered through the batch."""
        aligned = [self.alignment.of(row) for row in rows]
        signals = self.store.read([self._index_rows[row.key] for row in rows])
        return {"stored": signals, **self.alignment.groups(aligned)}

    def targets(self, batch: MicroBatch) -> tuple[SoftTargets, ForwardOutputs | None]:
        """Return the stored distributions at the teacher's tokens."""
        inputs, device = batch.teacher_inputs, batch.ids_BS.device
        student_J, teacher_J = (ids.to(device) for ids in self.alignment.shared_ids)
        texts = (inputs["ids_M"], inputs["group_N"], inputs["group_M"], (student_J, teacher_J))
        stored = self.store.targets(inputs["stored"])
        if isinstance(stored, LiveTeacher):  # hidden states, and the teacher's head
            return CrossTokenizerTargets(stored.hidden_ND, stored.head, *texts), None
        assert isinstance(stored, TopK), "ids that are drawn are refused by `check_terms`"
        return StoredCrossTokenizerTargets(stored, self.store.origin.vocabulary, *texts), None


def _tokenizer_of(folder: Path) -> "PreTrainedTokenizerBase":
    if not (folder / "tokenizer_config.json").exists():
        raise UserError(
            "the store does not have the teacher's tokenizer, which a student of another one needs",
            where=str(folder),
            fix="cohobate run --set capture.keep_tokenizer=true",
        )
    return checkpoints.load_tokenizer(folder)
