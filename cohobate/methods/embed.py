"""Embedding: an embedder learns a teacher's vectors, its similarities, or pairs of texts alone.

The student is one of `init_student: {type: embedder}` or `static_embedder`. Rows are pairs, a query
and its document (`prompt` and `answer`), or raw text. With terms that compare with a teacher this
is distillation; with `contrastive` alone it is plain training on pairs, the baseline.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from pydantic import Field, model_validator

from cohobate.data.records import CAPTURE, Row
from cohobate.errors import UserError
from cohobate.methods.phase import Phase, PhaseResult
from cohobate.training.embedding_terms import AnyEmbeddingTerm

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from cohobate.data.examples import Example
    from cohobate.teachers.vector_store import StoredVectors

_STORES = f"{CAPTURE.as_posix()}/"


class Embed(Phase):
    """Terms on the vectors of the rows' texts."""

    method: Literal["embed"]
    terms: tuple[AnyEmbeddingTerm, ...] = Field(min_length=1)
    """The loss is their weighted sum, a mean over the texts: `mse` and `cosine` compare with the
    teacher's vectors, `similarity` with its similarities within the batch, `contrastive` tells a
    query's document from the batch's others."""

    @model_validator(mode="after")
    def _targets_fit_the_terms(self) -> "Embed":
        needed = [term.type for term in self.terms if term.needs_teacher]
        if needed and not self.targets.startswith(_STORES):
            raise ValueError(f"{needed[0]} needs a teacher: targets must be {_STORES}<teacher>")
        if not needed and self.targets != self.rows:
            raise ValueError(f"no term needs a teacher: targets must be the rows, {self.rows}")
        return self

    @model_validator(mode="after")
    def _whole_batches(self) -> "Embed":
        if self.rows_at_once < self.batch_size or self.workers > 1:
            raise ValueError(
                "embed compares all texts of an update with each other: workers: 1, and no "
                "micro_batch_size below batch_size"
            )
        if self.adapter.type != "full" or self.quantisation.type != "none":
            raise ValueError("embed trains the whole embedder: no adapter, and no quantisation")
        if self.target_weights:
            raise ValueError("the rows of embed have no auxiliary targets: no target_weights")
        return self

    def train(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        rows: Sequence[Row],
        *,
        seed: int,
        label: str,
    ) -> PhaseResult:
        """Train on the vectors of the rows' texts.

        Raises:
            UserError: the model is no embedder, all its weights are frozen, no row is left, or the
                store lacks the vector of a text.
        """
        from cohobate.training.embedding_loss import EmbeddingLoss
        from cohobate.training.trainer import fit

        self._check_model(model, label)
        data = self.text_examples(model, tokenizer, rows, label)
        source = self._source(data)
        width = source.store.width if source else None
        loss_fn = EmbeddingLoss(model, self.terms, width, seed)
        history = fit(
            model,
            data.examples,
            [],
            self,
            seed=seed,
            label=label,
            target_source=source,
            loss_fn=loss_fn,
        )
        return PhaseResult(history, len(data.examples), data.notes)

    def _check_model(self, model: "PreTrainedModel", label: str) -> None:
        from cohobate.models.checkpoints import SENTENCE_EMBEDDING

        where = f"{label}: models/{self.start}"
        if not hasattr(model.config, SENTENCE_EMBEDDING):
            raise UserError(
                "embed trains an embedder, and this model gives no vectors of texts",
                where=where,
                fix="init_student: {type: embedder}, or another method",
            )
        if not model.config.num_hidden_layers and self.freeze.embeddings:
            raise UserError(
                "a static embedder has nothing but its embeddings, and they are frozen",
                where=where,
                fix="freeze: {embeddings: false} in the phase",
            )

    def _source(self, data: "TextExamples") -> "StoredVectors | None":
        """Return the teacher's vectors of the texts; None where no term needs them."""
        from cohobate.teachers.vector_store import StoredVectors, VectorStore

        if not any(term.needs_teacher for term in self.terms):
            return None
        store = VectorStore(Path(self.targets))
        pairs = zip(data.examples, data.texts, strict=True)
        places = {example.key: store.find(texts) for example, texts in pairs}
        missing = sum(-1 in found for found in places.values())
        if missing:
            raise UserError(
                f"{missing} of {len(places)} rows have a text without a vector of the teacher",
                where=self.targets,
                fix="rows: data/curriculum/train.jsonl, whose texts `capture` stores",
            )
        return StoredVectors(store, places)

    def text_examples(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        rows: Sequence[Row],
        label: str,
    ) -> "TextExamples":
        """Return the rows as the ids of their texts, whose last tokens predict what is learnt.

        Rows without a document are left out, and rows with a text of no token. Of texts that are
        too long, `too_long` says what is kept.

        Raises:
            UserError: no row is left.
        """
        from cohobate.models.embedders import text_ids
        from cohobate.progress import say
        from cohobate.teachers.vector_store import texts_of

        left_out, kept = Counter[str](), list[tuple[Row, list[str]]]()
        for row in rows:
            if row.answer is None or getattr(row, "target", None):
                left_out["no document, or an auxiliary target"] += 1
            else:
                kept.append((row, texts_of(row)))
        ids = iter(text_ids(model, tokenizer, [text for _, texts in kept for text in texts]))
        examples, learnt = [], []
        for row, texts in kept:
            parts = [next(ids) for _ in texts]
            longest = max(map(len, parts))
            if not all(parts):
                left_out["a text without a token"] += 1
                continue
            if longest > self.max_tokens:
                if self.too_long == "drop":
                    left_out[f"a text of more than {self.max_tokens} tokens"] += 1
                    continue
                parts = [self._cut(part) for part in parts]
            examples.append(_example(row, parts))
            learnt.append(texts)
        for reason, count in sorted(left_out.items()):
            say(f"{label}: {count} of {len(rows)} rows left out: {reason}")
        if not examples:
            raise UserError("no row has texts to learn from", where=self.rows)
        self._check_weights(examples)
        examples = [replace(one, weight=self._weight(one)) for one in examples]
        notes = {f"rows left out: {reason}": count for reason, count in sorted(left_out.items())}
        return TextExamples(examples, learnt, notes)

    def _cut(self, ids: list[int]) -> list[int]:
        if self.too_long == "truncate_left":
            return ids[-self.max_tokens :]
        return ids[: self.max_tokens]


class TextExamples(NamedTuple):
    """The rows that an embedder learns, and what was left out."""

    examples: "list[Example]"
    texts: list[list[str]]
    """Of each example."""
    notes: dict[str, int]
    """Counts for summary.json."""


def _example(row: Row, parts: Sequence[Sequence[int]]) -> "Example":
    """Return a row's texts one behind the other; the token behind each stands for its vector."""
    from cohobate.data.examples import Example, row_key

    ends = np.cumsum([len(part) for part in parts]).tolist()
    ids = [token for part in parts for token in part]
    return Example(
        row_key(row),
        np.array([*ids, 0], dtype=np.int32),
        tuple((end, end + 1) for end in ends),
        getattr(row, "stage", 0),
        group=row.group,
        task=row.task or "",
        weight=1.0 if row.weight is None else row.weight,
    )
