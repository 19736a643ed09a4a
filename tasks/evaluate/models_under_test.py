"""The models under test: a checkpoint in memory, or a teacher behind an endpoint."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from cohobate.backends import unloaded_teacher
from cohobate.backends.settings import GenerateParams
from cohobate.data.records import Row
from cohobate.errors import UserError
from cohobate.evaluation.answer_logprobs import AnswerLogprobs
from cohobate.evaluation.embedder_model import EmbedderModel
from cohobate.evaluation.model_under_test import open_model
from cohobate.evaluation.tested_checkpoint import ModelUnderTest
from cohobate.evaluation.text_losses import TextLosses
from cohobate.generation.likelihood import Likelihood
from cohobate.generation.requests import Answer
from cohobate.progress import track
from cohobate.scoring.metrics import LikelihoodScore
from tasks.evaluate.settings import EvaluateParams

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_COMPARED = 1000
"""Test rows whose similarities are compared with the teacher's."""


@dataclass(frozen=True)
class LoadedModel:
    """A model in memory, and the settings by which it is evaluated."""

    tested: ModelUnderTest
    params: EvaluateParams
    own_prompts: bool = False
    """Whether it reads the prompts that only a teacher reads, where rows have one."""
    corpus: Sequence[Row] = ()
    """The test rows, whose answers are the documents that an embedder ranks."""

    @classmethod
    def of(
        cls, params: EvaluateParams, folder: Path, role: str = "", corpus: Sequence[Row] = ()
    ) -> "LoadedModel":
        """Load a checkpoint in the number format of the evaluation; `role` as in an `Arm`."""
        own = role == "teacher" and params.teacher_reads == "teacher_prompt"
        return cls(open_model(folder, params.precision, params.backend), params, own, corpus)

    @property
    def model(self) -> "PreTrainedModel":
        """The model itself."""
        return self.tested.model

    @property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """Its tokenizer."""
        return self.tested.tokenizer

    @cached_property
    def logprobs(self) -> AnswerLogprobs:
        """The log-probabilities that it gives to the tokens of answers."""
        batch, threads = self.params.batching.rows, self.params.threads
        return AnswerLogprobs(self.model, self.tokenizer, batch=batch, threads=threads)

    @property
    def scores_tokens(self) -> bool:
        """Whether it gives probabilities of the tokens of a text: a causal model alone."""
        return self.tested.scores_tokens

    def prefixed(self, rows: Sequence[Row]) -> list[Row]:
        """Return the rows as the model reads them: with its own prefix before each prompt."""
        read = [row.for_teacher() for row in rows] if self.own_prompts else rows
        return self.tested.prefixed(read)

    def prompt_ids(self, rows: Sequence[Row]) -> list[list[int]]:
        """Return the token ids of the rows' prompts; of raw text, those of the text."""
        rows = self.prefixed(rows)
        prompts = [row.source_text if row.is_raw_text else row.full_prompt for row in rows]
        return self.tested.prompt_ids(prompts)

    def answers(self, rows: Sequence[Row], label: str) -> list[Answer]:
        """Return an answer to each row; `label` names the work in the progress bar.

        Raw text has no prompt: its answer is empty.
        """
        places = [place for place, row in enumerate(rows) if not row.is_raw_text]
        answers = [Answer("", "stop", None)] * len(rows)
        own = self._answers([rows[place] for place in places], label) if places else []
        for place, answer in zip(places, own, strict=True):
            answers[place] = answer
        return answers

    def close(self) -> None:
        """Stop what generates the answers beside the model, if anything does."""
        self.tested.close()

    def losses(self, rows: Sequence[Row], metric: LikelihoodScore) -> TextLosses:
        """Return the losses of the rows' reference answers.

        Raises:
            UserError: the model gives no likelihood of a text.
        """
        if not self.scores_tokens:
            raise UserError(
                f"an encoder gives no {metric.type} of a text",
                where="params.yaml, evaluate.metrics",
                fix="cohobate run --set 'evaluate.metrics=[{type: verifier}]'",
            )
        params = self.params
        likelihood = Likelihood(self.model, self.tokenizer, params.batching, params.threads)
        return TextLosses.of(likelihood, self.prefixed(rows), metric)

    def cosines(self, rows: Sequence[Row]) -> "Tensor | None":
        """Return an embedder's cosines of R queries and the documents, (R, C); else None.

        At most the first thousand of either.
        """
        if not isinstance(self.tested, EmbedderModel):
            return None
        some = rows[:_COMPARED]
        tested = self.tested.with_documents(row.full_answer for row in some)
        prompts = [row.full_prompt for row in self.prefixed(some)]
        return tested.cosines(prompts, self.params.threads)

    def _answers(self, rows: Sequence[Row], label: str) -> list[Answer]:
        prompts = [row.full_prompt for row in self.prefixed(rows)]
        decoding, batching = self.params.decoding, self.params.batching
        # rows out of distribution bring documents of their own
        tested = self.tested.with_documents(row.full_answer for row in [*self.corpus, *rows])
        answered = tested.answers(prompts, decoding, batching, threads=self.params.threads)
        # answers come batch by batch, rows of like length first
        by_position = dict(track(answered, total=len(prompts), label=label, in_batches=True))
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
