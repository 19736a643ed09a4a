"""A teacher whose weights are in memory: it generates answers, one batch at a time."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from cohobate.backends.answer_signals import AnswerSignals
from cohobate.backends.signal_log import PackedAnswers
from cohobate.fast.frozen import load_frozen
from cohobate.generation.decoding import decode_batch, stop_ids, to_answer
from cohobate.generation.requests import Answer, Batching, Decoding, Request
from cohobate.models import checkpoints
from cohobate.models.number_formats import NumberFormat
from cohobate.progress import advance_early
from cohobate.teachers.signal_store.top_k_form import StoredTopK


class AnsweredBatch(NamedTuple):
    """The answers of a batch, and their signals where they are kept."""

    answers: list[Answer]
    signals: PackedAnswers | None


class LoadedTeacher:
    """A teacher in memory; `form` is that in which signals of its answers are kept, if they are."""

    def __init__(
        self,
        checkpoint: Path,
        precision: NumberFormat,
        batching: Batching,
        form: StoredTopK | None = None,
    ) -> None:
        device = checkpoints.accelerator()
        self.model, self.tokenizer = load_frozen(checkpoint, precision=precision, device=device)
        self.stop, self.batching = stop_ids(self.model, self.tokenizer), batching
        self.signals = (
            AnswerSignals.of(checkpoint, self.model, self.tokenizer, form, precision)
            if form
            else None
        )

    def answer(self, batch: Sequence[Request], decoding: Decoding) -> AnsweredBatch:
        """Generate the answers of one batch."""
        measure = self.signals.measure if self.signals else None
        completions = decode_batch(
            self.model,
            batch,
            decoding,
            self.stop,
            self.batching,
            measure=measure,
            on_finished=lambda *_: advance_early(),
        )
        pairs = zip(completions, batch, strict=True)
        answers = [to_answer(self.tokenizer, completion, request) for completion, request in pairs]
        signals = self.signals.pack(batch, completions) if self.signals else None
        return AnsweredBatch(answers, signals)
