"""Retrieval: the documents that an embedder finds nearest to queries."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cohobate.data.messages import Prompt, prompt_text
from cohobate.models.embedders import encode

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TEMPERATURE = 0.05
"""By which cosines are divided where a probability of a document is wanted."""
_QUERIES = 256
"""Queries whose cosines with all documents are in memory at once."""


class Corpus:
    """Documents and their vectors by an embedder."""

    def __init__(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        documents: Sequence[str],
        threads: int = 1,
    ) -> None:
        self.model, self.tokenizer, self.threads = model, tokenizer, threads
        self.documents = documents
        self.vectors_CD = encode(model, tokenizer, documents, threads)

    def cosines(self, queries: Sequence[Prompt]) -> Iterator[tuple[int, Tensor]]:
        """Yield the position of a query and its cosine with each of C documents, (C,)."""
        for start in range(0, len(queries), _QUERIES):
            texts = [prompt_text(query) for query in queries[start : start + _QUERIES]]
            vectors_ND = encode(self.model, self.tokenizer, texts, self.threads)
            for number, cosines_C in enumerate(vectors_ND @ self.vectors_CD.T):
                yield start + number, cosines_C

    def nearest(self, queries: Sequence[Prompt], depth: int) -> Iterator[tuple[int, list[str]]]:
        """Yield the position of a query and its nearest documents, the nearest first."""
        for position, cosines_C in self.cosines(queries):
            # stable: of equal cosines the first document comes first, on every machine
            order_C = cosines_C.sort(descending=True, stable=True).indices[:depth]
            yield position, [self.documents[n] for n in order_C.tolist()]


def rank_correlations(one_RC: Tensor, other_RC: Tensor) -> list[float]:
    """Return Spearman's correlation of each row of two matrices, (R,)."""
    ranks = [matrix.argsort(-1).argsort(-1).double() for matrix in (one_RC, other_RC)]
    centred = [matrix_RC - matrix_RC.mean(-1, keepdim=True) for matrix_RC in ranks]
    above_R = (centred[0] * centred[1]).sum(-1)
    below_R = (centred[0].norm(dim=-1) * centred[1].norm(dim=-1)).clamp_min(1e-12)
    return [round(value, 6) for value in (above_R / below_R).tolist()]


def losses_of(corpus: Corpus, queries: Sequence[Prompt], own: Sequence[int]) -> list[float]:
    """Return −log of the probability of each query's own document, in nats.

    The softmax is over the cosines with all documents, divided by `TEMPERATURE`.

    Args:
        corpus: the documents.
        queries: the queries.
        own: position of each query's document in the corpus; −1 where it has none: then infinite.
    """
    losses = [torch.inf] * len(own)
    for position, cosines_C in corpus.cosines(queries):
        if own[position] >= 0:
            logp_C = (cosines_C / TEMPERATURE).log_softmax(-1)
            losses[position] = -float(logp_C[own[position]])
    return losses
