"""Classification: a classifier learns labels, and a teacher's distribution over them.

The student is one of `init_student: {type: classifier}`. On a teacher's answers this is
distillation by hard labels; on the labelled rows it is plain fine-tuning, the baseline. With stored
signals of the form labels, or a trained classifier, as targets it is distillation by soft labels.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from pydantic import Field, model_validator

from cohobate.data.records import Row
from cohobate.data.row_length import LengthLimit
from cohobate.data.tokenized import Encoded
from cohobate.errors import UserError
from cohobate.methods.phase import Phase, PhaseResult, checkpoint_path
from cohobate.scoring.labels import NO_LABEL, LabelSet

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from cohobate.data.examples import Example


class LabelledExamples(NamedTuple):
    """The rows that a classifier learns, and what was left out."""

    examples: "list[Example]"
    notes: dict[str, int]
    """Counts for summary.json."""


class LabelTargets:
    """The teacher's distributions of a phase's rows, collated for each micro-batch."""

    def __init__(self, keys: Sequence[str], logp_RC: "Tensor") -> None:
        """Take the rows' keys, and their log-probabilities over the labels."""
        self._place = {key: n for n, key in enumerate(keys)}
        self._logp_RC = logp_RC

    def collate(self, rows: "Sequence[Example]") -> "dict[str, Tensor]":
        """Return `labels_BC`: log-probabilities of the labels, a row of the batch each."""
        return {"labels_BC": self._logp_RC[[self._place[row.key] for row in rows]]}


class Classify(Phase):
    """Cross-entropy on the labels that the rows' answers name, and a teacher's distribution.

    `targets` are the rows' own file (hard labels), `data/capture/<teacher>` with signals of the
    form labels, or the checkpoint of a classifier: `models/train/<phase>`, `models/assist/<phase>`.
    """

    method: Literal["classify"]
    # both are left out of params where they are the default: earlier runs resume
    soft: float | None = Field(None, gt=0, le=1, exclude_if=lambda share: share is None)
    """Share of the teacher's distribution in the loss, (1 − soft) · CE + soft · T² · KL: 1 when not
    given, where `targets` has distributions. Below 1, rows whose answer is no label have the second
    term alone."""
    temperature: float = Field(1.0, gt=0, exclude_if=lambda temperature: temperature == 1)
    """T of both softmaxes of the second term."""

    @property
    def share(self) -> float:
        """Share of the teacher's distribution in the loss; 0 with hard labels."""
        return 0.0 if self.targets == self.rows else self.soft or 1.0

    @model_validator(mode="after")
    def _targets_are_labels(self) -> "Classify":
        stored = self.targets.startswith("data/capture/")
        if self.targets != self.rows and not (stored or self.targets.startswith("models/")):
            raise ValueError(
                f"classify learns the rows' own answers (targets: {self.rows}), or distributions "
                "over the labels: targets: data/capture/<teacher>, or models/train/<phase>"
            )
        if self.targets == self.rows and (self.soft or self.temperature != 1):
            raise ValueError(
                "soft and temperature are of a teacher's distributions: "
                "targets: data/capture/<teacher> with capture.signals: {type: labels}"
            )
        return self

    @model_validator(mode="after")
    def _whole_classifier(self) -> "Classify":
        if self.keep_layers is not None or self.adapter.type != "full":
            raise ValueError("classify trains a whole classifier: no keep_layers, and no adapter")
        if self.quantisation.type != "none" or self.freeze.head:
            raise ValueError("classify trains the head too, and without quantisation")
        if self.sharding == "on":
            raise ValueError("a classifier is small: each worker has it whole, sharding: off")
        return self

    @property
    def shards(self) -> bool:
        """Return False: each worker has the whole classifier."""
        return False

    def train(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        rows: Sequence[Row],
        *,
        seed: int,
        label: str,
    ) -> PhaseResult:
        """Train on the label that each row's answer names, and on the teacher's distributions.

        Raises:
            UserError: the model is no classifier, no row's answer is one of its labels, or the
                targets have other labels or rows.
        """
        from cohobate.training.classifier_loss import ClassifierLoss
        from cohobate.training.trainer import fit

        if model.can_generate():
            raise UserError(
                "classify trains a classifier, and this model generates",
                where=f"{label}: models/{self.start}",
                fix="init_student: {type: classifier, ...}, or method: sft",
            )
        labels = LabelSet.of_config(model.config)
        rows, missing = self._with_targets(rows)
        data = self.labelled_examples(tokenizer, rows, labels, label)
        if missing:
            data.notes["rows left out: they have no signals"] = missing
        history = fit(
            model,
            data.examples,
            [],
            self,
            seed=seed,
            label=label,
            loss_fn=ClassifierLoss(model, self.share, self.temperature),
            collator=self._collator(rows, data.examples, labels, seed) if self.share else None,
        )
        return PhaseResult(history, len(data.examples), data.notes)

    def _with_targets(self, rows: Sequence[Row]) -> tuple[list[Row], int]:
        """Return the rows that the store does not lack, and how many it does.

        Raises:
            UserError: rows were not captured.
        """
        from cohobate.teachers.signal_store.label_store import LabelStore

        if not self.targets.startswith("data/"):
            return [*rows], 0
        if self.targets == self.rows:
            return [*rows], 0
        places = LabelStore(Path(self.targets)).places(rows)
        kept = [row for row, place in zip(rows, places, strict=True) if place >= 0]
        return kept, len(rows) - len(kept)

    def _collator(
        self, rows: Sequence[Row], examples: "Sequence[Example]", labels: LabelSet, seed: int
    ) -> LabelTargets:
        """Return the teacher's distributions of the rows that are learnt.

        Raises:
            UserError: they are over other labels than the student's.
        """
        from cohobate.data.examples import row_key
        from cohobate.teachers.signal_store.label_store import LabelStore

        keys = {example.key for example in examples}
        learnt = list({row_key(row): row for row in rows if row_key(row) in keys}.values())
        if self.targets.startswith("data/"):
            store = LabelStore(Path(self.targets))
            store.check_labels(labels)
            logp_RC = store.logprobs(store.find(learnt).tolist(), labels)
        else:
            logp_RC = self._live(learnt, labels, seed)
        return LabelTargets([row_key(row) for row in learnt], logp_RC)

    def _live(self, rows: Sequence[Row], labels: LabelSet, seed: int) -> "Tensor":
        """Return the log-probabilities that a trained classifier gives, (R, C).

        They are computed once: it reads a row as often as training does otherwise.
        """
        import torch

        from cohobate.fast.frozen import load_frozen
        from cohobate.generation.classification import label_logprobs
        from cohobate.models import checkpoints

        folder = checkpoint_path(Path(self.targets), seed)
        device = checkpoints.accelerator()
        teacher, tokenizer = load_frozen(folder, precision=self.precision, device=device)
        if teacher.can_generate():
            raise UserError(
                "the teacher is no classifier: it generates",
                where=f"targets: {self.targets}",
                fix="targets: data/capture/<teacher> with capture.signals: {type: labels}",
            )
        other = LabelSet.of_config(teacher.config)
        if set(other.names) != set(labels.names):
            name = min(set(other.names) ^ set(labels.names))
            raise UserError(
                f"teacher and student have different labels: only one of them has {name!r}",
                where=f"targets: {self.targets}",
                fix="train both from the labels of the same rows (init_student.rows)",
            )
        columns = [other.names.index(name) for name in labels.names]
        logp_RC = torch.empty(len(rows), len(columns))
        prefix = checkpoints.prompt_prefix(folder)
        prompts = [row.for_teacher().prefixed(prefix).full_prompt for row in rows]
        for n, logp_C in label_logprobs(teacher, tokenizer, prompts, threads=self.threads):
            logp_RC[n] = logp_C[columns]
        return logp_RC

    def labelled_examples(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        rows: Sequence[Row],
        labels: LabelSet,
        label: str,
    ) -> LabelledExamples:
        """Return the rows as a text's ids with the place of the label as the one learnt token.

        Rows without an answer, auxiliary targets, and answers that are no label are left out; with
        a teacher's distributions only auxiliary targets and raw text are.

        Raises:
            UserError: no row is left.
        """
        from cohobate.progress import say

        learnt, left_out = [], Counter[str]()
        for row in rows:
            index = None if row.answer is None else labels.index(row.full_answer)
            if row.is_raw_text or getattr(row, "target", None):
                left_out["raw text or an auxiliary target"] += 1
            elif index is None and not self.share:
                left_out["the answer is none of the labels"] += 1
            else:
                learnt.append((row, NO_LABEL if index is None else index))
        for reason, count in sorted(left_out.items()):
            say(f"{label}: {count} of {len(rows)} rows left out: {reason}")
        if not any(self.share == 1 or index != NO_LABEL for _, index in learnt):
            raise UserError(
                f"no row has an answer that is one of the {len(labels.names)} labels",
                where=self.rows,
                fix=f"the labels are those of the labelled rows: {', '.join(labels.names[:5])}, …",
            )
        examples = self._examples(tokenizer, learnt)
        counts = Counter(int(example.labels[0]) for example in examples)
        absent = [name for n, name in enumerate(labels.names) if not counts[n]]
        if absent and not self.share:
            say(f"{label}: no row has the label {', '.join(absent)}: it will hardly be predicted")
        notes = {f"rows left out: {reason}": count for reason, count in sorted(left_out.items())}
        return LabelledExamples(examples, notes | {"labels without a row": len(absent)})

    def _examples(
        self, tokenizer: "PreTrainedTokenizerBase", learnt: Sequence[tuple[Row, int]]
    ) -> "list[Example]":
        from cohobate.generation.classification import classifier_ids

        prompts, most = [row.full_prompt for row, _ in learnt], self.max_tokens
        # the label counts as a token, like the answer of a model that generates
        if self.too_long == "drop":
            texts = classifier_ids(tokenizer, prompts)
        else:
            side: Literal["first", "last"] = "last" if self.too_long == "truncate_left" else "first"
            texts = classifier_ids(tokenizer, prompts, most - 1, side)
        limit = LengthLimit(most, "drop")
        encoded = limit.apply(
            Encoded.of(ids, [index]) for ids, (_, index) in zip(texts, learnt, strict=True)
        )
        examples = [
            _example(row, text)
            for (row, _), text in zip(learnt, encoded, strict=True)
            if text.spans
        ]
        limit.report(self.rows)
        limit.refuse_none(len(examples), f"max_tokens of the phase that learns {self.rows}")
        self._check_weights(examples)
        return [replace(one, weight=self._weight(one)) for one in examples]


def _example(row: Row, text: Encoded) -> "Example":
    from cohobate.data.examples import Example, row_key

    return Example(
        row_key(row),
        np.array(text.ids, dtype=np.int32),
        text.spans,
        getattr(row, "stage", 0),
        group=row.group,
        task=row.task or "",
        weight=1.0 if row.weight is None else row.weight,
    )
