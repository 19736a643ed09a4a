"""A model under test: the base class of its kinds."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self

from cohobate.backends.answer_backend import LOADED, AnswerBackend
from cohobate.backends.vllm import Vllm
from cohobate.data.messages import Prompt
from cohobate.data.records import Row
from cohobate.fast.frozen import load_frozen
from cohobate.generation.requests import Answer, Batching, Decoding
from cohobate.models import checkpoints
from cohobate.models.number_formats import Precision

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_BATCHING = Batching()


class ModelUnderTest(ABC):
    """A checkpoint, and its tokenizer.

    Args:
        folder: the checkpoint.
        precision: number format of its weights.
        backend: what generates its answers.
    """

    scores_tokens: ClassVar[bool] = True
    """Whether it gives probabilities of the tokens of a text."""
    unit: ClassVar[str] = "token"  # what the loss of a row is a mean over

    @classmethod
    @abstractmethod
    def fits(cls, folder: Path) -> bool:
        """Say whether a folder holds a model of this kind, by its configuration."""

    def __init__(self, folder: Path, precision: Precision, backend: AnswerBackend = LOADED) -> None:
        self.folder, self.precision, self.backend = folder, precision, backend
        self.prefix = checkpoints.prompt_prefix(folder)
        """Text that the model was trained to read before each prompt."""

    @cached_property
    def _loaded(self) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
        return load_frozen(self.folder, precision=self.precision, device=checkpoints.accelerator())

    @property
    def model(self) -> "PreTrainedModel":
        """The model, on the device on which it answers fastest."""
        return self._loaded[0]

    @cached_property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """Its tokenizer; the weights are not loaded for it where vLLM has them."""
        if isinstance(self.backend, Vllm):
            return checkpoints.load_tokenizer(self.folder)
        return self._loaded[1]

    def close(self) -> None:  # noqa: B027
        """Stop what generates its answers beside the model, if anything does; the model stays."""

    def with_documents(self, documents: Iterable[str]) -> Self:
        """Return the model with the documents that it ranks; others than embedders need none."""
        return self

    def prefixed(self, rows: Sequence[Row]) -> list[Row]:
        """Return the rows with the model's own prefix before each prompt."""
        return [row.prefixed(self.prefix) for row in rows]

    @abstractmethod
    def prompt_ids(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """Return the token ids of prompts as the model reads them."""

    @abstractmethod
    def answers(
        self,
        prompts: Sequence[Prompt],
        decoding: Decoding,
        batching: Batching = _BATCHING,
        *,
        threads: int = 1,
    ) -> Iterator[tuple[int, Answer]]:
        """Yield the position of each prompt and the answer to it, batch by batch."""

    @abstractmethod
    def answer_losses(
        self, rows: Sequence[Row], batching: Batching = _BATCHING, *, threads: int = 1
    ) -> Iterator[float]:
        """Yield the mean loss of each row's answer, in nats for each of its units.

        Infinite where the model cannot give the answer.
        """

    @abstractmethod
    def answer_units(self, rows: Sequence[Row]) -> list[int]:
        """Return over how many units each row's loss is a mean: tokens, or one label."""
