"""Who sits the test: a model in memory, or a teacher that is somewhere else."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cohobate.backends import unloaded_teacher as service
from cohobate.backends.settings import GenerateParams
from cohobate.data.records import Row
from cohobate.evaluation.answer_logprobs import Reader
from cohobate.fast.frozen import load_frozen
from cohobate.generation.decoding import generate_answers
from cohobate.generation.requests import Answer
from cohobate.models import checkpoints
from cohobate.progress import track
from tasks.evaluate.settings import EvaluateParams

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Loaded:
    """A model in memory, how it reads text, and what it has read."""

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    reader: Reader
    params: EvaluateParams
    prefix: str | None = None
    """What it learnt to read before a prompt."""

    @classmethod
    def of(cls, params: EvaluateParams, folder: Path) -> "Loaded":
        """Load a checkpoint in the precision of the test."""
        model, tokenizer = load_frozen(
            folder, precision=params.precision, device=checkpoints.accelerator()
        )
        size, threads = params.batching.rows, params.threads
        reader = Reader(model, tokenizer, batch=size, threads=threads)
        return cls(model, tokenizer, reader, params, checkpoints.prompt_prefix(folder))

    def asked(self, rows: Sequence[Row]) -> list[Row]:
        """Return the rows as the model is asked them."""
        return [row.prefixed(self.prefix) for row in rows]

    def answers(self, rows: Sequence[Row], what: str) -> list[Answer]:
        """Return the model's answer to each row."""
        prompts = [row.full_prompt for row in self.asked(rows)]
        how, batching, threads = self.params.decoding, self.params.batching, self.params.threads
        decoded = generate_answers(
            self.model, self.tokenizer, prompts, how, batching, threads=threads
        )
        found = dict(track(decoded, total=len(prompts), what=what))
        return [found[place] for place in range(len(prompts))]


@dataclass(frozen=True)
class Absent:
    """A teacher whose weights are not here: it answers, for money, and that is all."""

    params: EvaluateParams
    generate: GenerateParams

    def answers(self, rows: Sequence[Row], what: str) -> list[Answer]:
        """Return the service's answer to each row, out of the ledger where it was bought before."""
        return service.asked(self.params.teacher, self.generate, rows, self.params.decoding, what)
