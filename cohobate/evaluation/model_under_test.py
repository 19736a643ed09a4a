"""Models under test: what every stage needs of a student, whichever kind it is.

A causal LM generates its answer, a classifier's answer is its likeliest label; both give a text and
its probability. An embedder's answer is a ranking of documents. Stages load a student by
`open_model`; what differs between the kinds is here.

Where vLLM generates the answers it holds the model alone: the weights are loaded here only once
something else is asked of the model, after `close`.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self

from cohobate.backends.answer_backend import LOADED, AnswerBackend
from cohobate.backends.vllm import Vllm
from cohobate.data.messages import Prompt
from cohobate.data.records import Row
from cohobate.data.tokenized import encode_all, prompt_ids
from cohobate.fast.frozen import load_frozen
from cohobate.generation.requests import Answer, Batching, Decoding, Request
from cohobate.models import checkpoints
from cohobate.models.number_formats import Precision

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from cohobate.backends.vllm_engine import VllmEngine
    from cohobate.generation.retrieval import Corpus

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


class CausalModel(ModelUnderTest):
    """A causal language model: it generates its answer."""

    @classmethod
    def fits(cls, folder: Path) -> bool:
        """Return True: it is what no other kind claims."""
        return True

    def prompt_ids(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """Return the ids: text as it stands, conversations through the chat template."""
        return prompt_ids(self.tokenizer, prompts)

    def answers(
        self,
        prompts: Sequence[Prompt],
        decoding: Decoding,
        batching: Batching = _BATCHING,
        *,
        threads: int = 1,
    ) -> Iterator[tuple[int, Answer]]:
        """Generate the answers."""
        if isinstance(self.backend, Vllm):
            return self._answers_of_vllm(prompts, decoding)
        from cohobate.generation.decoding import generate_answers

        return generate_answers(
            self.model, self.tokenizer, prompts, decoding, batching, threads=threads
        )

    def close(self) -> None:
        """Stop vLLM, if it runs: what it has of the GPU's memory is then the model's."""
        if engine := vars(self).pop("_engine", None):
            engine.close()

    @cached_property
    def _engine(self) -> "VllmEngine":
        assert isinstance(self.backend, Vllm)
        return self.backend.model_copy(update={"precision": self.precision}).start(self.folder)

    def _answers_of_vllm(
        self, prompts: Sequence[Prompt], decoding: Decoding
    ) -> Iterator[tuple[int, Answer]]:
        """Yield the answers in the order of the prompts, `backend.rows` at a time."""
        from cohobate.generation.decoding import to_answer

        assert isinstance(self.backend, Vllm)
        for start in range(0, len(prompts), self.backend.rows):
            chunk = prompts[start : start + self.backend.rows]
            pairs = enumerate(zip(chunk, self.prompt_ids(chunk), strict=True), start)
            requests = [Request.of(prompt, ids, str(n)) for n, (prompt, ids) in pairs]
            completions = self._engine.complete(requests, decoding)
            for n, pair in enumerate(zip(completions, requests, strict=True), start):
                yield n, to_answer(self.tokenizer, *pair)

    def answer_losses(
        self, rows: Sequence[Row], batching: Batching = _BATCHING, *, threads: int = 1
    ) -> Iterator[float]:
        """Yield the mean loss of each answer's tokens, closing token included."""
        from cohobate.generation.likelihood import Likelihood

        return Likelihood(self.model, self.tokenizer, batching, threads).answer_losses(rows)

    def answer_units(self, rows: Sequence[Row]) -> list[int]:
        """Return the number of tokens of each answer, closing token included."""
        return [len(text.completion_ids) for text in encode_all(self.tokenizer, rows)]


class ClassifierModel(ModelUnderTest):
    """A classifier: its answer is its likeliest label, in one pass over the prompt's text."""

    scores_tokens: ClassVar[bool] = False
    unit: ClassVar[str] = "label"

    @classmethod
    def fits(cls, folder: Path) -> bool:
        """Say whether the model is one for the classification of texts."""
        return checkpoints.is_classifier(folder)

    def prompt_ids(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """Return the ids of the prompts' texts."""
        from cohobate.generation.classification import classifier_ids

        return classifier_ids(self.tokenizer, prompts)

    def answers(
        self,
        prompts: Sequence[Prompt],
        decoding: Decoding,
        batching: Batching = _BATCHING,
        *,
        threads: int = 1,
    ) -> Iterator[tuple[int, Answer]]:
        """Yield the likeliest label of each prompt, with its log-probability; never sampled."""
        from cohobate.generation.classification import label_logprobs
        from cohobate.scoring.labels import LabelSet

        names = LabelSet.of_config(self.model.config).names
        scored = label_logprobs(self.model, self.tokenizer, prompts, batching, threads=threads)
        for position, logp_C in scored:
            best = int(logp_C.argmax())
            yield position, Answer(names[best], "stop", float(logp_C[best]))

    def answer_losses(
        self, rows: Sequence[Row], batching: Batching = _BATCHING, *, threads: int = 1
    ) -> Iterator[float]:
        """Yield the loss of each row's label; infinite where its answer is none."""
        from cohobate.generation.classification import label_logprobs
        from cohobate.scoring.labels import LabelSet

        labels = LabelSet.of_config(self.model.config)
        prompts = [row.full_prompt for row in rows]
        scored = label_logprobs(self.model, self.tokenizer, prompts, batching, threads=threads)
        losses = [inf] * len(rows)
        for position, logp_C in scored:
            index = labels.index(rows[position].full_answer)
            if index is not None:
                losses[position] = -float(logp_C[index])
        yield from losses

    def answer_units(self, rows: Sequence[Row]) -> list[int]:
        """Return 1 for each row: an answer is one label."""
        return [1] * len(rows)


class EmbedderModel(ModelUnderTest):
    """An embedder: its answer to a query is the ranking of the documents nearest to it."""

    scores_tokens: ClassVar[bool] = False
    unit: ClassVar[str] = "document"
    documents: tuple[str, ...] = ()

    def __init__(self, folder: Path, precision: Precision) -> None:
        super().__init__(folder, precision)
        self._corpora: dict[tuple[str, ...], Corpus] = {}

    @classmethod
    def fits(cls, folder: Path) -> bool:
        """Say whether the model is one of vectors of texts."""
        return checkpoints.is_embedder(folder)

    def with_documents(self, documents: Iterable[str]) -> Self:
        """Return the model with other documents; each once."""
        from cohobate.scoring.rankings import distinct_documents

        other = copy.copy(self)
        other.documents = distinct_documents(documents)
        return other

    def prompt_ids(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """Return the ids of the prompts' texts; a text without any has one of padding."""
        from cohobate.data.messages import prompt_text
        from cohobate.models.embedders import text_ids

        rows = text_ids(self.model, self.tokenizer, [prompt_text(prompt) for prompt in prompts])
        return [row or [0] for row in rows]

    def answers(
        self,
        prompts: Sequence[Prompt],
        decoding: Decoding,
        batching: Batching = _BATCHING,
        *,
        threads: int = 1,
    ) -> Iterator[tuple[int, Answer]]:
        """Yield the ranking of the documents for each query, one document a line."""
        from cohobate.scoring.rankings import DEPTH

        for position, nearest in self._corpus(self.documents, threads).nearest(prompts, DEPTH):
            yield position, Answer("\n".join(nearest), "stop", None)

    def answer_losses(
        self, rows: Sequence[Row], batching: Batching = _BATCHING, *, threads: int = 1
    ) -> Iterator[float]:
        """Yield the loss of each row's document among the documents; among the rows' own where
        none are given."""
        from cohobate.generation.retrieval import losses_of
        from cohobate.scoring.rankings import distinct_documents, document_line

        documents = self.documents or distinct_documents(row.full_answer for row in rows)
        places = {document: place for place, document in enumerate(documents)}
        own = [places.get(document_line(row.full_answer), -1) for row in rows]
        queries = [row.full_prompt for row in rows]
        yield from losses_of(self._corpus(documents, threads), queries, own)

    def answer_units(self, rows: Sequence[Row]) -> list[int]:
        """Return 1 for each row: an answer is one document."""
        return [1] * len(rows)

    def cosines(self, prompts: Sequence[Prompt], threads: int = 1) -> "Tensor":
        """Return the cosine of each of R queries with each of C documents, (R, C)."""
        import torch

        corpus = self._corpus(self.documents, threads)
        return torch.stack([cosines_C for _, cosines_C in corpus.cosines(prompts)])

    def _corpus(self, documents: tuple[str, ...], threads: int) -> "Corpus":
        """Return the documents with their vectors, which are computed once."""
        from cohobate.generation.retrieval import Corpus

        if documents not in self._corpora:
            self._corpora.clear()
            self._corpora[documents] = Corpus(self.model, self.tokenizer, documents, threads)
        return self._corpora[documents]


KINDS = (EmbedderModel, ClassifierModel, CausalModel)
"""A folder is of the first kind that it fits."""


def kind_of(folder: Path) -> type[ModelUnderTest]:
    """Return the kind of the model in a folder."""
    return next(kind for kind in KINDS if kind.fits(folder))


def open_model(
    folder: Path, precision: Precision, backend: AnswerBackend = LOADED
) -> ModelUnderTest:
    """Load the checkpoint of a student, or of a teacher, on the device on which it answers fastest.

    Args:
        folder: the checkpoint.
        precision: number format of its weights.
        backend: what generates its answers. Where that is vLLM, nothing is loaded yet. A
            classifier's answers and an embedder's are their own either way.

    Raises:
        UserError: the folder is damaged, or does not hold every weight of the model.
    """
    kind = kind_of(folder)
    tested = kind(folder, precision, **({"backend": backend} if kind is CausalModel else {}))
    if not isinstance(tested.backend, Vllm):
        _ = tested.model  # a damaged folder is refused now
    return tested
