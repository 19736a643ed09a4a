"""An embedder under test: its answer is a ranking of documents."""

import copy
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self

from cohobate.data.messages import Prompt
from cohobate.data.records import Row
from cohobate.evaluation.tested_checkpoint import ModelUnderTest
from cohobate.generation.requests import Answer, Batching, Decoding
from cohobate.models import checkpoints
from cohobate.models.number_formats import Precision

if TYPE_CHECKING:
    from torch import Tensor

    from cohobate.generation.retrieval import Corpus

_BATCHING = Batching()


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
