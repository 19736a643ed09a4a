"""Classification: a classifier learns the rows' answers as labels.

The student is one of `init_student: {type: classifier}`. On a teacher's answers this is
distillation by hard labels; on the labelled rows it is plain fine-tuning, the baseline.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from pydantic import model_validator

from cohobate.data.records import Row
from cohobate.data.row_length import LengthLimit
from cohobate.data.tokenized import Encoded
from cohobate.errors import UserError
from cohobate.methods.phase import Phase, PhaseResult
from cohobate.scoring.labels import LabelSet

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from cohobate.data.examples import Example


class LabelledExamples(NamedTuple):
    """The rows that a classifier learns, and what was left out."""

    examples: "list[Example]"
    notes: dict[str, int]
    """Counts for summary.json."""


class Classify(Phase):
    """Cross-entropy on the labels that the rows' answers name."""

    method: Literal["classify"]

    @model_validator(mode="after")
    def _targets_are_the_rows(self) -> "Classify":
        if self.targets != self.rows:
            raise ValueError(f"classify learns the rows' own answers: targets must be {self.rows}")
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
        """Train on the label that each row's answer names.

        Raises:
            UserError: the model is no classifier, or no row's answer is one of its labels.
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
        data = self.labelled_examples(tokenizer, rows, labels, label)
        history = fit(
            model, data.examples, [], self, seed=seed, label=label, loss_fn=ClassifierLoss(model)
        )
        return PhaseResult(history, len(data.examples), data.notes)

    def labelled_examples(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        rows: Sequence[Row],
        labels: LabelSet,
        label: str,
    ) -> LabelledExamples:
        """Return the rows as a text's ids with the place of the label as the one learnt token.

        Rows without an answer, auxiliary targets, and answers that are no label are left out.

        Raises:
            UserError: no row is left.
        """
        from cohobate.progress import say

        learnt, left_out = [], Counter[str]()
        for row in rows:
            index = None if row.answer is None else labels.index(row.full_answer)
            if row.is_raw_text or getattr(row, "target", None):
                left_out["raw text or an auxiliary target"] += 1
            elif index is None:
                left_out["the answer is none of the labels"] += 1
            else:
                learnt.append((row, index))
        for reason, count in sorted(left_out.items()):
            say(f"{label}: {count} of {len(rows)} rows left out: {reason}")
        if not learnt:
            raise UserError(
                f"no row has an answer that is one of the {len(labels.names)} labels",
                where=self.rows,
                fix=f"the labels are those of the labelled rows: {', '.join(labels.names[:5])}, …",
            )
        examples = self._examples(tokenizer, learnt)
        counts = Counter(int(example.labels[0]) for example in examples)
        absent = [name for n, name in enumerate(labels.names) if not counts[n]]
        if absent:
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
