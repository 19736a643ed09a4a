"""A masked language model under test: its answer is what it predicts behind a prompt."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

from cohobate.data.messages import Prompt
from cohobate.data.records import Row
from cohobate.evaluation.tested_checkpoint import ModelUnderTest
from cohobate.generation.requests import Answer, Batching, Decoding
from cohobate.models import checkpoints

_BATCHING = Batching()


class MaskedModel(ModelUnderTest):
    """A masked language model: its answer is the token that it predicts behind the prompt.

    As a cloze (Schick & Schütze 2021, "Exploiting Cloze Questions", section 3): the prompt, a
    blank, and one mask. It has learnt no answers: its score is what it knows of the task from text.
    """

    scores_tokens: ClassVar[bool] = False

    @classmethod
    def fits(cls, folder: Path) -> bool:
        """Say whether the model is one that predicts masked tokens."""
        return checkpoints.is_masked(folder)

    def prompt_ids(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """Return the ids of the prompts' texts, each with a mask behind it."""
        from cohobate.generation.masked import cloze_ids

        return cloze_ids(self.tokenizer, prompts)

    def answers(
        self,
        prompts: Sequence[Prompt],
        decoding: Decoding,
        batching: Batching = _BATCHING,
        *,
        threads: int = 1,
    ) -> Iterator[tuple[int, Answer]]:
        """Yield the likeliest token behind each prompt, with its log-probability."""
        from cohobate.generation.masked import cloze_answers

        filled = cloze_answers(self.model, self.tokenizer, prompts, batching, threads=threads)
        for position, text, logprob in filled:
            yield position, Answer(text, "stop", logprob)

    def answer_losses(
        self, rows: Sequence[Row], batching: Batching = _BATCHING, *, threads: int = 1
    ) -> Iterator[float]:
        """Yield the mean loss of each answer's tokens, each masked while the others are seen.

        That is the logarithm of the pseudo-perplexity (Salazar et al. 2020, section 2).
        """
        from cohobate.generation.masked import pseudo_losses

        yield from pseudo_losses(self.model, self.tokenizer, rows, batching, threads=threads)

    def answer_units(self, rows: Sequence[Row]) -> list[int]:
        """Return the number of tokens of each answer."""
        from cohobate.generation.masked import answer_ids

        return [len(ids) for ids in answer_ids(self.tokenizer, rows)]
