"""Terms of an embedder's loss: a teacher's vectors, its similarities within a batch, and pairs."""

# ruff: noqa: N815 (fields that are tensors carry shape suffixes too)

from math import inf
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

from pydantic import Field

from cohobate.params import Section

if TYPE_CHECKING:
    from torch import Tensor


class Texts(NamedTuple):
    """The texts of a micro-batch, and their vectors. N counts the texts of all rows."""

    raw_ND: "Tensor"
    """The student's pooled vectors, before they are brought to length one."""
    projected_ND: "Tensor"
    """The same in the teacher's width: what is compared with `teacher_ND`."""
    teacher_ND: "Tensor | None"
    """The teacher's vectors, of length one."""
    row_N: "Tensor"
    """Row of each text. Two neighbours of one row are a query and its document."""
    ids_NM: "Tensor"
    """Their tokens; 0 behind a text's end."""


class EmbeddingTerm(Section):
    """Base class of the terms of an embedder's loss."""

    type: str
    weight: float = Field(1.0, ge=0)
    """Weight of the term in the sum."""

    @property
    def needs_teacher(self) -> bool:
        """Whether the term compares with a teacher's vectors."""
        return True

    def per_text(self, texts: Texts) -> "Tensor":
        """Return the loss of each text, (N,)."""
        raise NotImplementedError


class SquaredError(EmbeddingTerm):
    """Squared distance to the teacher's vector (Reimers & Gurevych 2020, equation 1).

    The student's vector is compared as it is pooled, so that its length is learnt too.
    """

    type: Literal["mse"]

    def per_text(self, texts: Texts) -> "Tensor":
        """Return ‖student − teacher‖² of each text."""
        assert texts.teacher_ND is not None
        return (texts.projected_ND - texts.teacher_ND).square().sum(-1)


class CosineDistance(EmbeddingTerm):
    """1 − the cosine of the student's and the teacher's vector."""

    type: Literal["cosine"]

    def per_text(self, texts: Texts) -> "Tensor":
        """Return the distance of each text."""
        from torch.nn import functional as F

        assert texts.teacher_ND is not None
        return 1 - F.cosine_similarity(texts.projected_ND, texts.teacher_ND, dim=-1)


class SimilarityMatrix(EmbeddingTerm):
    """KL(teacher ‖ student) of each text's similarities to the batch's other texts.

    As in SEED (Fang et al. 2021, section 3.2), with the batch in place of a queue. The student's
    own vectors are compared with each other: their width need not be the teacher's.
    """

    type: Literal["similarity"]
    temperature: float = Field(0.05, gt=0)
    """The cosines are divided by it before the softmax."""

    def per_text(self, texts: Texts) -> "Tensor":
        """Return the divergence of each text."""
        from torch.nn import functional as F

        assert texts.teacher_ND is not None
        teacher_NN = self._logprobs(texts.teacher_ND, texts)
        student_NN = self._logprobs(F.normalize(texts.raw_ND, dim=-1), texts)
        gaps_NN = teacher_NN.exp() * (teacher_NN - student_NN)
        # 0 · (−∞ − −∞) at a text's similarity to itself, and to the same text of another row
        return gaps_NN.masked_fill(_same(texts.ids_NM), 0.0).sum(-1)

    def _logprobs(self, vectors_ND: "Tensor", texts: Texts) -> "Tensor":
        cosines_NN = vectors_ND @ vectors_ND.T / self.temperature
        return cosines_NN.masked_fill(_same(texts.ids_NM), -inf).log_softmax(-1)


class Contrastive(EmbeddingTerm):
    """Cross-entropy of a pair's own document among the batch's documents, and the other way round.

    In-batch negatives (Henderson et al. 2017, section 4.4; symmetric as in Radford et al. 2021,
    section 2.3). It needs no teacher. The same document of another row is no negative.
    """

    type: Literal["contrastive"]
    temperature: float = Field(0.05, gt=0)
    """The cosines are divided by it before the softmax."""

    @property
    def needs_teacher(self) -> bool:
        """Return False."""
        return False

    def per_text(self, texts: Texts) -> "Tensor":
        """Return the loss of each text: of a query among documents, of a document among queries.

        Raw text, which is no pair, has none.
        """
        import torch
        from torch.nn import functional as F

        is_query_N = F.pad(texts.row_N[:-1] == texts.row_N[1:], (0, 1))
        queries, documents = is_query_N.nonzero()[:, 0], is_query_N.nonzero()[:, 0] + 1
        losses_N = texts.raw_ND.new_zeros(len(texts.row_N))
        if not len(queries):
            return losses_N
        vectors_ND = F.normalize(texts.raw_ND, dim=-1)
        for own, others in ((queries, documents), (documents, queries)):
            cosines_BB = vectors_ND[own] @ vectors_ND[others].T / self.temperature
            own_BB = torch.eye(len(own), dtype=torch.bool, device=own.device)
            twins_BB = _same(texts.ids_NM[others]) & ~own_BB
            logp_BB = cosines_BB.masked_fill(twins_BB, -inf).log_softmax(-1)
            losses_N = losses_N.index_add(0, own, -logp_BB.diagonal())
        return losses_N


def _same(ids_NM: "Tensor") -> "Tensor":
    """Say which texts are the same, (N, N): those of other rows too."""
    import torch

    number_N: Tensor = torch.unique(ids_NM, dim=0, return_inverse=True)[1]
    same_NN: Tensor = number_N[:, None] == number_N[None]
    return same_NN


AnyEmbeddingTerm = Annotated[
    SquaredError | CosineDistance | SimilarityMatrix | Contrastive, Field(discriminator="type")
]
