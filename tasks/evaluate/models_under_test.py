"""The models under test: a checkpoint in memory, or a teacher behind an endpoint."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cohobate.backends import unloaded_teacher
from cohobate.backends.settings import GenerateParams
from cohobate.data.records import Row
from cohobate.evaluation.answer_logprobs import AnswerLogprobs
from cohobate.evaluation.text_losses import TextLosses
from cohobate.fast.frozen import load_frozen
from cohobate.generation.decoding import generate_answers
from cohobate.generation.likelihood import Likelihood
from cohobate.generation.requests import Answer
from cohobate.models import checkpoints
from cohobate.progress import track
from cohobate.scoring.metrics import LikelihoodScore
from tasks.evaluate.settings import EvaluateParams

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class LoadedModel:
    """A model in memory, and the log-probabilities that it gives to answers."""

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    logprobs: AnswerLogprobs
    params: EvaluateParams
    prefix: str | None = None
    """Text that the model was trained to read before each prompt."""
    own_prompts: bool = False
    """Whether it reads the prompts that only a teacher reads, where rows have one."""

    @classmethod
    def of(cls, params: EvaluateParams, folder: Path, role: str = "") -> "LoadedModel":
        """Load a checkpoint in the number format of the evaluation; `role` as in an `Arm`."""
        model, tokenizer = load_frozen(
            folder, precision=params.precision, device=checkpoints.accelerator()
        )
        batch, threads = params.batching.rows, params.threads
        logprobs = AnswerLogprobs(model, tokenizer, batch=batch, threads=threads)
        own = role == "teacher" and params.teacher_reads == "teacher_prompt"
        return cls(model, tokenizer, logprobs, params, checkpoints.prompt_prefix(folder), own)

    def prefixed(self, rows: Sequence[Row]) -> list[Row]:
        """Return the rows as the model reads them: with its own prefix before each prompt."""
        read = [row.for_teacher() for row in rows] if self.own_prompts else rows
        return [row.prefixed(self.prefix) for row in read]

    def answers(self, rows: Sequence[Row], label: str) -> list[Answer]:
        """Generate an answer to each row; `label` names the work in the progress bar.

        Raw text has no prompt: its answer is empty.
        """
        places = [place for place, row in enumerate(rows) if not row.is_raw_text]
        answers = [Answer("", "stop", None)] * len(rows)
        generated = self._generate([rows[place] for place in places], label) if places else []
        for place, answer in zip(places, generated, strict=True):
            answers[place] = answer
        return answers

    def losses(self, rows: Sequence[Row], metric: LikelihoodScore) -> TextLosses:
        """Return the losses of the rows' reference answers."""
        params = self.params
        likelihood = Likelihood(self.model, self.tokenizer, params.batching, params.threads)
        return TextLosses.of(likelihood, self.prefixed(rows), metric)

    def _generate(self, rows: Sequence[Row], label: str) -> list[Answer]:
        prompts = [row.full_prompt for row in self.prefixed(rows)]
        decoding, batching = self.params.decoding, self.params.batching
        generated = generate_answers(
            self.model, self.tokenizer, prompts, decoding, batching, threads=self.params.threads
        )
        # answers come batch by batch, rows of like length first
        by_position = dict(track(generated, total=len(prompts), label=label))
        return [by_position[position] for position in range(len(prompts))]


@dataclass(frozen=True)
class EndpointTeacher:
    """A teacher behind an endpoint: without its weights only its answers can be evaluated."""

    params: EvaluateParams
    generate: GenerateParams

    def answers(self, rows: Sequence[Row], label: str) -> list[Answer]:
        """Return the service's answer to each row; answers in the ledger are not bought again."""
        own = self.params.teacher_reads == "teacher_prompt"
        read = [row.for_teacher() for row in rows] if own else rows
        return unloaded_teacher.buy_answers(
            self.params.teacher, self.generate, read, self.params.decoding, label
        )
