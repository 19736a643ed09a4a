"""Masked language modelling: a masked model learns text, and a teacher's predictions and insides.

The student is one of `init_student: {type: masked}`. With the term `hard` alone this is BERT's
pretraining (Devlin et al. 2019, section 3.1). With a teacher it is the distillation of DistilBERT
(Sanh et al. 2019, section 2: `forward_kl`, `hard` and `hidden_cosine`) or the general stage of
TinyBERT (Jiao et al. 2020, section 3: `attention` and `hidden_mse`, embeddings as layer 0).
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import numpy as np
from pydantic import Field, model_validator

from cohobate.data.messages import prompt_text
from cohobate.data.records import Row
from cohobate.losses.base_divergence import Divergence
from cohobate.losses.divergences import ForwardKL, Hard, JensenShannon, ReverseKL
from cohobate.losses.feature_losses import Feature
from cohobate.methods.encoder_teacher import AnyEncoderFeature, EncoderTeacher, attends_eagerly
from cohobate.methods.phase import Phase, PhaseResult
from cohobate.models import checkpoints
from cohobate.models.number_formats import NumberFormat, Precision, resolve
from cohobate.training.masking import Masker, rng_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from cohobate.data.examples import Example

MlmTerm = Hard | ForwardKL | ReverseKL | JensenShannon | AnyEncoderFeature


class MaskedExamples(NamedTuple):
    """The texts that a masked model learns, and what was left out."""

    examples: "list[Example]"
    labels: dict[str, np.ndarray]
    """The masked tokens of each example as they were, by its key."""
    notes: dict[str, int]
    """Counts for summary.json."""


class Mlm(Phase):
    """Terms at masked tokens of the rows' texts: of prompts the prompt, of raw text the text.

    `targets` are the rows' own file, without a teacher, or its checkpoint:
    `models/adapt/<teacher>`, `models/assist/<phase>`, `models/train/<phase>`.
    """

    method: Literal["mlm"]
    terms: tuple[Annotated[MlmTerm, Field(discriminator="type")], ...] = Field(
        (Hard(),), min_length=1
    )
    """The loss is their weighted sum, a mean over masked tokens: `hard` is the cross-entropy of the
    tokens themselves; a divergence compares with the teacher's prediction of them; a feature
    compares hidden states or attention at all tokens of a row."""
    masked_share: float = Field(0.15, gt=0, lt=1)
    """Share of a text's tokens that are to be predicted."""
    masks: int = Field(1, ge=1)
    """Times that each text comes in an epoch, with other masks each time."""
    held_out: int = Field(200, ge=0)
    """Most rows, a tenth of all at most, that are not learnt: the loss and the share of masked
    tokens that is predicted on them are in summary.json."""
    teacher_precision: Precision = "auto"
    """Number format in which the teacher runs."""

    @property
    def features(self) -> tuple[Feature, ...]:
        """The terms that compare hidden states or attention."""
        return tuple(term for term in self.terms if isinstance(term, Feature))

    @property
    def responses(self) -> tuple[Hard | Divergence, ...]:
        """The terms at masked tokens."""
        return tuple(term for term in self.terms if isinstance(term, Hard | Divergence))

    @property
    def compares(self) -> bool:
        """Whether a term compares with a teacher's prediction of masked tokens."""
        return any(isinstance(term, Divergence) for term in self.terms)

    @model_validator(mode="after")
    def _targets_fit_the_terms(self) -> "Mlm":
        needed = [term.type for term in self.terms if not isinstance(term, Hard)]
        if needed and not self.targets.startswith("models/"):
            raise ValueError(
                f"{needed[0]} needs a teacher in memory: targets: models/adapt/<teacher> or "
                "models/assist/<phase>"
            )
        if not needed and self.targets != self.rows:
            raise ValueError(f"no term needs a teacher: targets must be the rows, {self.rows}")
        return self

    @model_validator(mode="after")
    def _whole_model(self) -> "Mlm":
        attends_eagerly(self.attention, self.features)
        if self.adapter.type != "full" or self.quantisation.type != "none":
            raise ValueError("mlm trains the whole model: no adapter, and no quantisation")
        if self.sharding == "on":
            raise ValueError("an encoder is small: each worker has it whole, sharding: off")
        if self.target_weights:
            raise ValueError("the rows of mlm have no auxiliary targets: no target_weights")
        return self

    @property
    def shards(self) -> bool:
        """Return False: each worker has the whole model."""
        return False

    def number_formats(self) -> dict[str, NumberFormat]:
        """Return in which number format student and teacher run on this machine."""
        if self.targets == self.rows:
            return super().number_formats()
        teacher = resolve(self.teacher_precision, checkpoints.accelerator())
        return super().number_formats() | {"teacher": teacher}

    def load_initial_model(self, seed: int) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
        """Load the initial model; an encoder without a head over tokens gets one."""
        from cohobate.models.encoder_heads import with_token_head
        from cohobate.models.layer_choice import layer_positions
        from cohobate.students.layer_cutting import keep_layers, layer_stack

        model, tokenizer, _ = with_token_head(self.start_folder(seed), seed)
        if self.keep_layers is not None:
            depth = len(layer_stack(model))
            keep_layers(
                model, layer_positions(self.keep_layers, depth, "train.<phase>.keep_layers")
            )
        return model, tokenizer

    def train(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        rows: Sequence[Row],
        *,
        seed: int,
        label: str,
    ) -> PhaseResult:
        """Train on the masked tokens of the rows' texts.

        Raises:
            UserError: the tokenizer has no mask token, no row has a text, or the teacher is no
                encoder of the same tokenizer.
        """
        from cohobate.training.masked_accuracy import masked_accuracy
        from cohobate.training.masked_loss import MaskedLoss
        from cohobate.training.masking import MaskedTargets
        from cohobate.training.trainer import fit

        masker = Masker.of(tokenizer, self.masked_share, seed)
        learnt, held_out = self._divided(rows)
        data = self.masked_examples(tokenizer, learnt, masker, label)
        teacher = None
        if self.targets != self.rows:
            teacher = EncoderTeacher.load(self, seed, tokenizer, needs_tokens=self.compares)
        loss_fn = MaskedLoss(
            model,
            self.responses,
            teacher.model if teacher else None,
            teacher.matching(model, self.features, seed) if teacher else None,
        )
        history = fit(
            model,
            data.examples,
            [],
            self,
            seed=seed,
            label=label,
            loss_fn=loss_fn,
            collator=MaskedTargets(data.labels),
        )
        texts = self._ids(tokenizer, held_out)
        notes = data.notes | masked_accuracy(model, masker, texts)
        if loss_fn.matching:
            notes |= loss_fn.matching.report()
        return PhaseResult(history, len({row.id for row in learnt}), notes)

    def _divided(self, rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
        """Return the rows that are learnt, and those that are held out: by their ids alone."""
        count = min(self.held_out, len(rows) // 10)
        ids = {row.id: None for row in rows}
        apart = set(sorted(ids, key=lambda key: rng_of("held out", key).random())[:count])
        learnt = [row for row in rows if row.id not in apart]
        return learnt, [row for row in rows if row.id in apart]

    def masked_examples(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        rows: Sequence[Row],
        masker: Masker,
        label: str,
    ) -> MaskedExamples:
        """Return the rows' texts with their masks, each `masks` times.

        Raises:
            UserError: no row has a text that is short enough.
        """
        from cohobate.data.row_length import LengthLimit
        from cohobate.data.tokenized import Encoded
        from cohobate.progress import say

        limit, left_out = LengthLimit(self.max_tokens, "drop"), Counter[str]()
        # the token behind a text stands for the last label
        texts = limit.apply(Encoded.of(ids, [0]) for ids in self._ids(tokenizer, rows))
        examples, labels = [], {}
        for row, text in zip(rows, texts, strict=True):
            if not text.spans:
                continue
            for copy in range(self.masks):
                example, masked = _example(row, text.ids[:-1], masker, copy)
                if not len(masked):
                    left_out["no token to mask"] += 1
                    break
                examples.append(example)
                labels[example.key] = masked
        for reason, count in sorted(left_out.items()):
            say(f"{label}: {count} of {len(rows)} rows left out: {reason}")
        limit.report(self.rows)
        limit.refuse_none(len(examples), f"max_tokens of the phase that learns {self.rows}")
        self._check_weights(examples)
        examples = [replace(one, weight=self._weight(one)) for one in examples]
        notes = {f"rows left out: {reason}": count for reason, count in sorted(left_out.items())}
        return MaskedExamples(examples, labels, notes)

    def _ids(self, tokenizer: "PreTrainedTokenizerBase", rows: Sequence[Row]) -> list[list[int]]:
        """Return the ids of the rows' texts; cut where the phase says so."""
        from cohobate.generation.classification import classifier_ids

        texts = [row.answer or "" if row.is_raw_text else prompt_text(row.prompt) for row in rows]
        if not texts or self.too_long == "drop":
            return classifier_ids(tokenizer, texts) if texts else []
        side: Literal["first", "last"] = "last" if self.too_long == "truncate_left" else "first"
        return classifier_ids(tokenizer, texts, self.max_tokens - 1, side)


def _example(
    row: Row, ids: Sequence[int], masker: Masker, copy: int
) -> "tuple[Example, np.ndarray]":
    """Return a text with its masks as an example, and the masked tokens as they were."""
    from cohobate.data.examples import Example, row_key

    key = row_key(row)
    text = masker.mask(key, ids, copy)
    example = Example(
        f"{key}/masks-{copy}" if copy else key,
        # the hidden state at a masked token predicts it: as if the label were the token behind it
        np.array([*text.ids, 0], dtype=np.int32),
        tuple((int(n) + 1, int(n) + 2) for n in text.positions),
        getattr(row, "stage", 0),
        group=row.group,
        task=row.task or "",
        weight=1.0 if row.weight is None else row.weight,
    )
    return example, text.labels
