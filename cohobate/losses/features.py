"""What the inside of a student is compared with: the feature terms of a loss.

Each stands in a phase's `terms` beside the divergences, and needs one live teacher of the same
tokenizer. Every feature is one class that compares a student's layer with what its layer map gives
of the teacher, token by token, so that its loss is a mean over valid tokens like any other. Adding
a feature: write its class, and name it in `FeatureTerm`.

Layers are counted in blocks: 1 is what the first block leaves, 0 (of hidden states) the embeddings.

Shapes: B batch, S sequence, N valid tokens, D width, H heads, E width of a head, R rows with valid
tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, NamedTuple

from pydantic import Field

from cohobate.errors import UserError
from cohobate.params import Section

if TYPE_CHECKING:
    from torch import Tensor

LayerMap = Literal["uniform", "last", "top", "learned"] | tuple[tuple[int, int], ...]


class TokenPositions(NamedTuple):
    """Where the valid tokens of a micro-batch are."""

    positions_N: Tensor  # noqa: N815
    """Into B·S."""
    width: int
    """S."""

    def tokens(self, x_BSD: Tensor) -> Tensor:
        """Return the valid tokens of what has one vector a token, (N, …) in float32."""
        return x_BSD.flatten(0, 1)[self.positions_N].float()

    def queries(self, x_BHSS: Tensor) -> Tensor:
        """Return the valid tokens of what has one map a head, (N, H, S) in float32."""
        return self.tokens(x_BHSS.transpose(1, 2))

    def rows(self, x_BSD: Tensor) -> Tensor:
        """Return the mean over the valid tokens of each row that has any, (R, D)."""
        from torch import unique

        row_N = self.positions_N // self.width
        _, row_N, count_R = unique(row_N, return_inverse=True, return_counts=True)
        tokens_ND = self.tokens(x_BSD)
        total_RD = tokens_ND.new_zeros(len(count_R), tokens_ND.shape[-1])
        total_RD = total_RD.index_add(0, row_N, tokens_ND)
        mean_RD: Tensor = total_RD / count_R[:, None]
        return mean_RD


class Feature(Section):
    """A distance between a layer of the student and what is mapped to it of the teacher."""

    type: str
    weight: float = Field(1.0, gt=0)
    """What this term counts in the sum of the terms."""
    layers: LayerMap = "uniform"
    """uniform: every block, spread evenly over the teacher's, the last with the last; last: that
    pair alone; top: every block, with as many of the teacher's highest; learned: every block, with
    a mean over all of the teacher's layers whose softmax weights are trained; or pairs of layers
    [student, teacher]."""
    balance: bool = False
    """Scale by the detached ratio of the response terms' loss to this one's: equal magnitudes,
    before `weight`."""

    part: ClassVar[Literal["hidden", "attention", "values"]]
    """What is looked at."""
    projects: ClassVar[bool] = False
    """Whether the student's side goes through a trained linear map where the widths differ."""

    def compare(self, student: Tensor, teacher: Tensor, place: TokenPositions) -> Tensor:
        """Return the distance at each valid token, (N,), without weight."""
        raise NotImplementedError


class HiddenMse(Feature):
    """Mean squared error of hidden states (FitNets, Romero et al. 2015; TinyBERT, Jiao et al.
    2020, section 3)."""

    type: Literal["hidden_mse"]
    part: ClassVar[Literal["hidden", "attention", "values"]] = "hidden"
    projects: ClassVar[bool] = True

    def compare(self, student: Tensor, teacher: Tensor, place: TokenPositions) -> Tensor:
        """Return the mean over the width, (N,)."""
        return (place.tokens(student) - place.tokens(teacher)).square().mean(-1)


class HiddenCosine(Feature):
    """1 − cosine of hidden states (DistilBERT, Sanh et al. 2019, section 3)."""

    type: Literal["hidden_cosine"]
    part: ClassVar[Literal["hidden", "attention", "values"]] = "hidden"
    projects: ClassVar[bool] = True

    def compare(self, student: Tensor, teacher: Tensor, place: TokenPositions) -> Tensor:
        """Return one minus the cosine, (N,)."""
        from torch.nn.functional import cosine_similarity

        return 1 - cosine_similarity(place.tokens(student), place.tokens(teacher), dim=-1)


class Attention(Feature):
    """Attention maps: KL(teacher‖student), or the mean squared error over the visible keys.

    Needs `attention: eager`. TinyBERT (Jiao et al. 2020, section 3) and MiniLM (Wang et al. 2020,
    section 3.1).
    """

    type: Literal["attention"]
    distance: Literal["kl", "mse"] = "kl"
    heads: Literal["average", "match"] = "average"
    """Average the maps over the heads; or match head with head, after averaging neighbours on the
    side that has more."""
    part: ClassVar[Literal["hidden", "attention", "values"]] = "attention"

    def compare(self, student: Tensor, teacher: Tensor, place: TokenPositions) -> Tensor:
        """Return the mean over the heads, (N,)."""
        count = 1 if self.heads == "average" else min(student.shape[1], teacher.shape[1])
        q_NHS, p_NHS = (heads_to(place.queries(x), count) for x in (student, teacher))
        if self.distance == "mse":
            seen_N1 = place.positions_N[:, None] % place.width + 1
            return ((q_NHS - p_NHS).square().sum(-1) / seen_N1).mean(-1)
        return (p_NHS * (log_of(p_NHS) - log_of(q_NHS))).sum(-1).mean(-1)


class ValueRelation(Feature):
    """KL of value relations softmax(V Vᵀ/√E) over the visible tokens (MiniLM, Wang et al. 2020,
    section 3.2; the heads regrouped as in MiniLMv2, Wang et al. 2021, section 3.1)."""

    type: Literal["value_relation"]
    layers: LayerMap = "last"
    relation_heads: int | None = Field(None, ge=1)
    """Into so many heads both sides' values are split; the fewer heads of both when not given."""
    part: ClassVar[Literal["hidden", "attention", "values"]] = "values"

    def compare(self, student: Tensor, teacher: Tensor, place: TokenPositions) -> Tensor:
        """Return the mean over the relation heads, (N,)."""
        count = self.relation_heads or min(student.shape[2], teacher.shape[2])
        logq_NHS, logp_NHS = (
            place.queries(relations(x.reshape(*x.shape[:2], count, -1))) for x in (student, teacher)
        )
        p_NHS = logp_NHS.exp()
        return (p_NHS * (logp_NHS - logq_NHS).where(p_NHS > 0, 0)).sum(-1).mean(-1)


class RelationalDistance(Feature):
    """Distances and angles between the rows of a micro-batch (RKD, Park et al. 2019, section 3.2).

    A row is the mean of its valid tokens; the loss is Huber's. It counts for every valid token of
    the micro-batch, so it depends on which rows are together.
    """

    type: Literal["rkd"]
    layers: LayerMap = "last"
    distance: float = Field(1.0, ge=0)
    """Weight of the pairwise distances, each side's divided by their mean."""
    angle: float = Field(2.0, ge=0)
    """Weight of the cosines of the angles that three rows make."""
    part: ClassVar[Literal["hidden", "attention", "values"]] = "hidden"

    def compare(self, student: Tensor, teacher: Tensor, place: TokenPositions) -> Tensor:
        """Return the micro-batch's loss, once for each of its tokens, (N,)."""
        from torch.nn.functional import smooth_l1_loss

        sides = [place.rows(x) for x in (student, teacher)]
        total = sides[0].sum() * 0
        if len(sides[0]) > 1 and self.distance:
            q, p = map(distances, sides)
            total = total + self.distance * smooth_l1_loss(q, p)
        if len(sides[0]) > 2 and self.angle:
            q, p = map(angles, sides)
            total = total + self.angle * smooth_l1_loss(q, p)
        return total.expand(len(place.positions_N))


class SimilarityPreserving(Feature):
    """Mean squared error of row-normalised similarity matrices (SPKD, Tung & Mori 2019, section 3).

    A row is the mean of its valid tokens; the loss counts for every valid token of the micro-batch.
    """

    type: Literal["spkd"]
    layers: LayerMap = "last"
    part: ClassVar[Literal["hidden", "attention", "values"]] = "hidden"

    def compare(self, student: Tensor, teacher: Tensor, place: TokenPositions) -> Tensor:
        """Return the micro-batch's loss, once for each of its tokens, (N,)."""
        from torch.nn.functional import normalize

        q_RR, p_RR = (normalize(x @ x.T, dim=-1) for x in map(place.rows, (student, teacher)))
        return (q_RR - p_RR).square().mean().expand(len(place.positions_N))


def heads_to(x_NHS: Tensor, count: int) -> Tensor:
    """Average neighbouring heads until there are `count`; these must divide them."""
    tokens, heads, keys = x_NHS.shape
    if heads % count:
        raise UserError(f"{heads} heads cannot be averaged to {count}", where="terms: attention")
    return x_NHS.reshape(tokens, count, heads // count, keys).mean(2)


def log_of(p: Tensor) -> Tensor:
    """Return log p, with a key that is never attended to counting for nothing."""
    return p.clamp_min(1e-9).log()


def relations(x_BSHE: Tensor) -> Tensor:
    """Return log softmax(X Xᵀ/√E) over each token and those before it, (B, H, S, S)."""
    x_BHSE = x_BSHE.float().transpose(1, 2)
    scores_BHSS = x_BHSE @ x_BHSE.mT / x_BHSE.shape[-1] ** 0.5
    later_SS = scores_BHSS.new_ones(scores_BHSS.shape[-2:]).triu(1).bool()
    masked_BHSS: Tensor = scores_BHSS.masked_fill(later_SS, -1e9)
    return masked_BHSS.log_softmax(-1)


def distances(x_RD: Tensor) -> Tensor:
    """Return the distance of each pair of rows, divided by their mean."""
    first, second = x_RD.new_ones(len(x_RD), len(x_RD)).triu(1).nonzero(as_tuple=True)
    found = (x_RD[first] - x_RD[second]).square().sum(-1).clamp_min(1e-12).sqrt()
    return found / found.mean()


def angles(x_RD: Tensor) -> Tensor:
    """Return the cosine at row i of the angle between rows j and k, for all, (R, R, R)."""
    from torch.nn.functional import normalize

    sides_RRD: Tensor = normalize(x_RD[None] - x_RD[:, None], dim=-1)
    return sides_RRD @ sides_RRD.mT


FeatureTerm = Annotated[
    HiddenMse
    | HiddenCosine
    | Attention
    | ValueRelation
    | RelationalDistance
    | SimilarityPreserving,
    Field(discriminator="type"),
]
