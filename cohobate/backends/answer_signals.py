"""Signals of a teacher's own answers: packed while it generates, and written as a signal store.

The store has the rows of responses.jsonl whose rendered ids, prompt and answer with its closing
token, are exactly what the teacher generated. Others are left to `capture`: answers that a limit
cut off, rows made of several steps or of a part of an answer, earlier turns that are learnt too.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from cohobate.backends.signal_log import PackedAnswers, SignalLog, ids_digest
from cohobate.data.examples import Example, examples_of
from cohobate.data.records import Response
from cohobate.data.teacher_prompts import as_teacher_reads, teacher_examples
from cohobate.data.tokenized import encode_renderable
from cohobate.errors import UserError
from cohobate.generation.requests import Completion, Request
from cohobate.models import checkpoints
from cohobate.models.lm_head import Head
from cohobate.models.number_formats import NumberFormat
from cohobate.models.vocabularies import template_hash, vocabulary_hash
from cohobate.teachers.signal_store.form import Packed
from cohobate.teachers.signal_store.shards import line_chunks
from cohobate.teachers.signal_store.store import Origin, row_hash
from cohobate.teachers.signal_store.top_k_form import StoredTopK
from cohobate.teachers.signal_store.writing import write_store

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_ROWS = 1024  # in memory at once


class AnswerSignals:
    """Measures the distributions of what a teacher generates, and packs them."""

    def __init__(self, origin: Origin) -> None:
        assert isinstance(origin.form, StoredTopK)
        self.origin, self.form = origin, origin.form
        self._json = origin.model_dump_json()

    @classmethod
    def of(
        cls,
        teacher: Path,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        form: StoredTopK,
        number_format: NumberFormat,
    ) -> "AnswerSignals":
        """Return what measures a model that was loaded from the folder `teacher`."""
        head = Head.of(model, len(tokenizer))
        return cls(Origin.of(teacher, tokenizer, head, form, number_format))

    @classmethod
    def of_config(
        cls,
        teacher: Path,
        tokenizer: "PreTrainedTokenizerBase",
        form: StoredTopK,
        number_format: NumberFormat,
    ) -> "AnswerSignals":
        """Return what packs the signals of a model that another library runs, by its config."""
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(teacher, local_files_only=True).get_text_config()
        vocabulary = min(len(tokenizer), config.vocab_size)
        origin = Origin(
            teacher=checkpoints.fingerprint(teacher),
            tokenizer=vocabulary_hash(tokenizer),
            template=template_hash(tokenizer),
            vocabulary=vocabulary,
            width=config.hidden_size,
            form=form.for_vocabulary(vocabulary),
            number_format=number_format,
        )
        return cls(origin)

    def measure(self, logits_BV: "Tensor") -> Mapping[str, "Tensor"]:
        """Return the signals of tokens from the model's logits, which stay as they are."""
        # without the ids of mere padding; a copy, as measuring overwrites it
        return self.form.measure_logits(logits_BV[:, : self.origin.vocabulary].clone())

    def pack(self, requests: Sequence[Request], completions: Sequence[Completion]) -> PackedAnswers:
        """Return the signals of a batch's completions as bytes.

        Completions that a limit cut off are left out: a row closes its answer, they do not.
        """
        rows = [
            (request, completion)
            for request, completion in zip(requests, completions, strict=True)
            if completion.finish == "stop" and completion.signals
        ]
        size = self.origin.record.itemsize
        if not rows:
            return PackedAnswers.of(self._json, [], [], size)
        tokens = [token for _, completion in rows for token in completion.signals]
        signals = {name: torch.stack([t[name] for t in tokens]).cpu() for name in tokens[0]}
        flags = [x.isfinite().reshape(len(x), -1).all(1) for x in signals.values()]
        sound_N = torch.stack(flags).all(0)
        # ids of padding, which another library may give: no row has them
        sound_N &= (signals["ids_NK"] < self.origin.vocabulary).all(1)
        signals["ids_NK"] = signals["ids_NK"].clamp_max(self.origin.vocabulary - 1)
        records = self.form.pack(signals, self.origin.vocabulary).tokens
        ends = np.cumsum([len(completion.ids) for _, completion in rows])[:-1]
        parts = zip(rows, np.split(records, ends), np.split(sound_N.numpy(), ends), strict=True)
        # a pass over rows that are not finite says which they are
        kept = [(row, part.tobytes()) for row, part, sound in parts if sound.all()]
        digests = [ids_digest([*r.ids, *c.ids], len(r.ids)) for (r, c), _ in kept]
        return PackedAnswers.of(self._json, digests, [part for _, part in kept], size)


def write_answer_store(
    log: SignalLog, responses: Path, folder: Path, teacher: Path, shard_rows: int
) -> dict[str, float]:
    """Write the store of the responses whose signals are in the log; nothing where there are none.

    Args:
        log: of the teacher's answers, open.
        responses: a file of `Response` rows.
        folder: where the store is published.
        teacher: folder of the teacher's checkpoint.
        shard_rows: rows of one shard.

    Returns:
        The rows and tokens that were written.
    """
    origin = log.origin
    if origin is None:
        return {"rows": 0, "tokens": 0}
    tokenizer = checkpoints.load_tokenizer(teacher)
    batches = _kept_rows(log, responses, tokenizer)
    if (first := next(batches, None)) is None:
        return {"rows": 0, "tokens": 0}
    figures = write_store(folder, origin, tokenizer, chain([first], batches), shard_rows)
    return {name: figures[name] for name in ("rows", "tokens")}


def _kept_rows(
    log: SignalLog, responses: Path, tokenizer: "PreTrainedTokenizerBase"
) -> Iterator[tuple[list[Example], Packed]]:
    """Yield the rows whose signals are in the log, some at a time."""
    written: set[int] = set()
    for lines in line_chunks(responses, _ROWS):
        rows = [Response.model_validate_json(line) for line in lines]
        examples = examples_of(rows, encode_renderable(tokenizer, rows))
        # one span: the answer is all that is learnt
        whole = [e for e in examples if len(e.spans) == 1 and e.spans[0][1] == len(e.ids)]
        # signals are of the prompt that the teacher read
        read, whole = _read(tokenizer, rows, whole)
        digests = [ids_digest(e.ids.tolist(), e.spans[0][0]) for e in read]
        at = log.find(digests)
        candidates = [(e, place) for e, place in zip(whole, at.tolist(), strict=True) if place >= 0]
        packed = log.read([place for _, place in candidates])
        kept: list[tuple[Example, Packed]] = []
        for (example, _), signals in zip(candidates, packed, strict=True):
            key = row_hash(example.key)
            # a template can make several rows of one key: the filter leaves one of them
            if signals is not None and key not in written:
                written.add(key)
                kept.append((example, signals))
        if kept:
            records = np.concatenate([signals.tokens for _, signals in kept])
            yield [example for example, _ in kept], Packed(records, np.empty(0, np.uint8))


def _read(
    tokenizer: "PreTrainedTokenizerBase", rows: Sequence[Response], examples: Sequence[Example]
) -> tuple[list[Example], list[Example]]:
    """Return examples as the teacher reads them, and as they are; none of those that it cannot."""
    try:
        views, kept = teacher_examples(tokenizer, rows, examples), list(examples)
    except UserError:
        views, kept = {}, []
        for example in examples:
            # one by one: a filter may drop a row that cannot be aligned
            with suppress(UserError):
                views |= teacher_examples(tokenizer, rows, [example])
                kept.append(example)
    return [as_teacher_reads(views, example) for example in kept], kept
