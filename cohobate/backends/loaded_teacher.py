"""A teacher whose weights are in memory: it generates answers, one batch at a time."""

from collections.abc import Sequence
from pathlib import Path

from cohobate.fast.frozen import load_frozen
from cohobate.generation.decoding import decode_batch, stop_ids, to_answer
from cohobate.generation.requests import Answer, Batching, Decoding, Request
from cohobate.models import checkpoints
from cohobate.models.number_formats import NumberFormat


class LoadedTeacher:
    """A teacher in memory."""

    def __init__(self, checkpoint: Path, precision: NumberFormat, batching: Batching) -> None:
        device = checkpoints.accelerator()
        self.model, self.tokenizer = load_frozen(checkpoint, precision=precision, device=device)
        self.stop, self.batching = stop_ids(self.model, self.tokenizer), batching

    def answer(self, batch: Sequence[Request], decoding: Decoding) -> list[Answer]:
        """Generate the answers of one batch."""
        completions = decode_batch(self.model, batch, decoding, self.stop, self.batching)
        pairs = zip(completions, batch, strict=True)
        return [to_answer(self.tokenizer, completion, request) for completion, request in pairs]
