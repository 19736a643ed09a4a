"""Classification: a classifier learns labels, and a teacher's distribution over them.

The student is one of `init_student: {type: classifier}`. On a teacher's answers this is
distillation by hard labels; on the labelled rows it is plain fine-tuning, the baseline. With stored
signals of the form labels, or a trained classifier, as targets it is distillation by soft labels.
Where the classifier is in memory, hidden states and attention can be compared too: the task stage
of TinyBERT (Jiao et al. 2020, section 3).

A phase that starts from a masked model gives it a head over the labels in its configuration.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import numpy as np
from pydantic import Field, model_validator

from cohobate.data.records import Row
from cohobate.data.row_length import LengthLimit
from cohobate.data.tokenized import Encoded
from cohobate.errors import UserError
from cohobate.methods.encoder_teacher import AnyEncoderFeature, EncoderTeacher, attends_eagerly
from cohobate.methods.label_targets import ClassifierTeacher, LabelTargets
from cohobate.methods.phase import Phase, PhaseResult, checkpoint_path
from cohobate.methods.word_replacement import WordReplacement
from cohobate.models import checkpoints
from cohobate.models.number_formats import NumberFormat, Precision, resolve
from cohobate.scoring.labels import NO_LABEL, LabelSet

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from cohobate.data.examples import Example
    from cohobate.training.classifier_loss import ClassifierLoss


class LabelledExamples(NamedTuple):
    """The rows that a classifier learns, and what was left out."""

    examples: "list[Example]"
    notes: dict[str, int]
    """Counts for summary.json."""


class Classify(Phase):
    """Cross-entropy on the labels that the rows' answers name, and a teacher's distribution.

    `targets` are the rows' own file (hard labels), `data/capture/<teacher>` with signals of the
    form labels, or the checkpoint of a classifier: `models/train/<phase>`, `models/assist/<phase>`,
    `models/adapt/<teacher>` of kind classifier.
    """

    method: Literal["classify"]
    # what is left out of params where it is the default: earlier runs resume
    soft: float | None = Field(None, gt=0, le=1, exclude_if=lambda share: share is None)
    """Share of the teacher's distribution in the loss, (1 − soft) · CE + soft · T² · KL: 1 when not
    given, where `targets` has distributions. Below 1, rows whose answer is no label have the second
    term alone."""
    temperature: float = Field(1.0, gt=0, exclude_if=lambda temperature: temperature == 1)
    """T of both softmaxes of the second term."""
    features: tuple[Annotated[AnyEncoderFeature, Field(discriminator="type")], ...] = Field(
        (), exclude_if=lambda features: not features
    )
    """Terms that compare the hidden states or attention of student and teacher, where `targets` is
    a classifier of the student's tokenizer; a mean over the tokens of a row."""
    augment: WordReplacement | None = Field(None, exclude_if=lambda augment: augment is None)
    """Copies of the rows with words replaced by those of the nearest embeddings: the teacher's
    where it is in memory, else the student's own."""
    teacher_precision: Precision = Field("auto", exclude_if=lambda precision: precision == "auto")
    """Number format of a teacher whose features are compared."""

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
    def _features_have_a_teacher(self) -> "Classify":
        if self.features and not self.targets.startswith("models/"):
            raise ValueError(
                f"{self.features[0].type} needs a classifier in memory: "
                "targets: models/adapt/<teacher>, models/assist/<phase> or models/train/<phase>"
            )
        attends_eagerly(self.attention, self.features)
        if self.augment and self.targets.startswith("data/capture/"):
            raise ValueError(
                "the store has no distributions of augmented rows: targets: the rows, or a "
                "classifier in memory"
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

    def number_formats(self) -> dict[str, NumberFormat]:
        """Return in which number format student and teacher run on this machine."""
        if not self.features:
            return super().number_formats()
        teacher = resolve(self.teacher_precision, checkpoints.accelerator())
        return super().number_formats() | {"teacher": teacher}

    def load_initial_model(self, seed: int) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
        """Load the initial model; a masked one gets a head over the labels that it names.

        Raises:
            UserError: the checkpoint is damaged, or names no labels.
        """
        folder = self.start_folder(seed)
        if not checkpoints.is_masked(folder):
            return super().load_initial_model(seed)
        from cohobate.students.classifiers import classifier_of

        return classifier_of(folder, seed)

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
        examples = self._augmented(model, tokenizer, rows, data.examples, seed)
        history = fit(
            model,
            examples,
            [],
            self,
            seed=seed,
            label=label,
            loss_fn=self._loss(model, tokenizer, seed),
            collator=self._collator(rows, examples, labels, seed) if self.share else None,
        )
        if self.augment:
            data.notes["rows with words replaced"] = len(examples) - len(data.examples)
        return PhaseResult(history, len(data.examples), data.notes)

    def _loss(
        self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", seed: int
    ) -> "ClassifierLoss":
        from cohobate.training.classifier_loss import ClassifierLoss

        if not self.features:
            return ClassifierLoss(model, self.share, self.temperature)
        teacher = EncoderTeacher.load(self, seed, tokenizer)
        matching = teacher.matching(model, self.features, seed)
        return ClassifierLoss(model, self.share, self.temperature, teacher.model, matching)

    def _augmented(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        rows: Sequence[Row],
        examples: "list[Example]",
        seed: int,
    ) -> "list[Example]":
        """Return the examples with their copies, where the phase makes any."""
        if self.augment is None:
            return examples
        if any(row.teacher_prompt is not None for row in rows):
            raise UserError(
                "words are replaced in the student's prompts, and rows have others for the teacher",
                where=f"{self.rows}, and augment of the phase",
                fix="leave out augment, or collect.teacher_prompt",
            )
        owner = model
        if self.targets.startswith("models/"):
            owner = EncoderTeacher.load(self, seed, tokenizer).model
        table_VD = owner.get_input_embeddings().weight
        return self.augment.augmented(examples, table_VD, tokenizer, seed)

    def _with_targets(self, rows: Sequence[Row]) -> tuple[list[Row], int]:
        """Return the rows that the store does not lack, and how many it does.

        Raises:
            UserError: rows were not captured.
        """
        from cohobate.teachers.signal_store.label_store import LabelStore

        if not self.targets.startswith("data/") or self.targets == self.rows:
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

        if self.augment:
            teacher = self._teacher(labels, seed)
            return LabelTargets([one.key for one in examples], teacher.of_examples(examples))
        keys = {example.key for example in examples}
        learnt = list({row_key(row): row for row in rows if row_key(row) in keys}.values())
        if self.targets.startswith("data/"):
            store = LabelStore(Path(self.targets))
            store.check_labels(labels)
            logp_RC = store.logprobs(store.find(learnt).tolist(), labels)
        else:
            logp_RC = self._teacher(labels, seed).of_rows(learnt)
        return LabelTargets([row_key(row) for row in learnt], logp_RC)

    def _teacher(self, labels: LabelSet, seed: int) -> ClassifierTeacher:
        """Return the classifier in `targets`; that of an earlier phase is of the same seed."""
        folder = checkpoint_path(Path(self.targets), seed)
        return ClassifierTeacher(folder, labels, self.precision, self.threads)

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
