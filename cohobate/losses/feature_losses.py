"""Feature losses: distances between the hidden states, attention maps or values of two models.

A feature stands in a phase's `terms` beside the divergences, and needs one live teacher of the
student's tokenizer. Each is one class that compares a layer of the student with what its layer map
gives of the teacher, token by token, so that its loss is a mean over tokens like any other. Adding
one: write its class, and name it in `FeatureTerm`.

Layers are counted in blocks: 1 is the output of the first block, 0 (of hidden states) the
embeddings.
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
    """Where the N selected tokens of a micro-batch are."""

    positions_N: Tensor  # noqa: N815
    """Positions, counted through B·S."""
    length: int
    """S."""
    visible_N: Tensor | None = None  # noqa: N815
    """How many tokens each of them attends to; None: itself and those before it."""

    @property
    def visible(self) -> Tensor:
        """The number of tokens that each token attends to, (N,)."""
        if self.visible_N is not None:
            return self.visible_N
        return self.positions_N % self.length + 1

    def tokens(self, x_BSD: Tensor) -> Tensor:
        """Return the selected tokens of a tensor with one vector a token, (N, …) in float32."""
        return x_BSD.flatten(0, 1)[self.positions_N].float()

    def queries(self, x_BHSS: Tensor) -> Tensor:
        """Return the selected tokens' rows of a tensor with one map a head, (N, H, S) float32."""
        return self.tokens(x_BHSS.transpose(1, 2))

    def row_means(self, x_BSD: Tensor) -> Tensor:
        """Return the mean over the selected tokens of each row that has any, (B, D)."""
        from torch import unique

        row_N = self.positions_N // self.length
        # numbers the rows from 0 again, without those that have no selected token
        _, row_N, count_B = unique(row_N, return_inverse=True, return_counts=True)
        tokens_ND = self.tokens(x_BSD)
        total_BD = tokens_ND.new_zeros(len(count_B), tokens_ND.shape[-1])
        total_BD = total_BD.index_add(0, row_N, tokens_ND)
        mean_BD: Tensor = total_BD / count_B[:, None]
        return mean_BD


class Feature(Section):
    """A distance between a layer of the student and the teacher's layer that is mapped to it."""

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
    """Which tensors of the models are compared."""
    projects: ClassVar[bool] = False
    """Whether the student's side goes through a trained linear map where the widths differ."""

    def compare(self, student: Tensor, teacher: Tensor, positions: TokenPositions) -> Tensor:
        """Return the distance at each selected token, (N,), without weight.

        Args:
            student: a layer's tensor: (B, S, D) hidden states, (B, H, S, S) attention maps, or
                (B, S, H, E) values. Differentiable.
            teacher: the mapped layer's.
            positions: of the selected tokens.
        """
        raise NotImplementedError


class HiddenMse(Feature):
    """Mean squared error of hidden states: 1/D ‖W h_q − h_p‖².

    FitNets (Romero et al. 2015), section 2.2; TinyBERT (Jiao et al. 2020), section 3. W is a
    trained linear map where the widths differ.
    """

    type: Literal["hidden_mse"]
    part: ClassVar[Literal["hidden", "attention", "values"]] = "hidden"
    projects: ClassVar[bool] = True

    def compare(self, student: Tensor, teacher: Tensor, positions: TokenPositions) -> Tensor:
        """Return the mean over the width, (N,)."""
        return (positions.tokens(student) - positions.tokens(teacher)).square().mean(-1)


class HiddenCosine(Feature):
    """Cosine distance of hidden states: 1 − cos(W h_q, h_p).

    DistilBERT (Sanh et al. 2019), section 3. W is a trained linear map where the widths differ.
    """

    type: Literal["hidden_cosine"]
    part: ClassVar[Literal["hidden", "attention", "values"]] = "hidden"
    projects: ClassVar[bool] = True

    def compare(self, student: Tensor, teacher: Tensor, positions: TokenPositions) -> Tensor:
        """Return one minus the cosine, (N,)."""
        from torch.nn.functional import cosine_similarity

        return 1 - cosine_similarity(positions.tokens(student), positions.tokens(teacher), dim=-1)


class Attention(Feature):
    """Distance of attention maps: KL(a_p‖a_q), or the mean squared error over the visible keys.

    MiniLM (Wang et al. 2020), section 3.1, and TinyBERT (Jiao et al. 2020), section 3. Needs
    `attention: eager`.
    """

    type: Literal["attention"]
    distance: Literal["kl", "mse"] = "kl"
    heads: Literal["average", "match"] = "average"
    """Average the maps over the heads; or match head with head, after averaging neighbours on the
    side that has more."""
    part: ClassVar[Literal["hidden", "attention", "values"]] = "attention"

    def compare(self, student: Tensor, teacher: Tensor, positions: TokenPositions) -> Tensor:
        """Return the mean over the heads, (N,)."""
        count = 1 if self.heads == "average" else min(student.shape[1], teacher.shape[1])
        q_NHS, p_NHS = (heads_to(positions.queries(x), count) for x in (student, teacher))
        if self.distance == "mse":
            # the maps are zero beyond what a token attends to
            return ((q_NHS - p_NHS).square().sum(-1) / positions.visible[:, None]).mean(-1)
        return (p_NHS * (log_of(p_NHS) - log_of(q_NHS))).sum(-1).mean(-1)


class ValueRelation(Feature):
    """KL of value relations: KL(r_p‖r_q) with r = softmax(V Vᵀ/√E) over the visible tokens.

    MiniLM (Wang et al. 2020), section 3.2; the heads are regrouped as in MiniLMv2 (Wang et al.
    2021), section 3.1.
    """

    type: Literal["value_relation"]
    layers: LayerMap = "last"
    relation_heads: int | None = Field(None, ge=1)
    """Into so many heads both sides' values are split; the fewer heads of both when not given."""
    part: ClassVar[Literal["hidden", "attention", "values"]] = "values"

    def compare(self, student: Tensor, teacher: Tensor, positions: TokenPositions) -> Tensor:
        """Return the mean over the relation heads, (N,)."""
        count = self.relation_heads or min(student.shape[2], teacher.shape[2])
        logq_NHS, logp_NHS = (
            positions.queries(relations(x.reshape(*x.shape[:2], count, -1)))
            for x in (student, teacher)
        )
        # p is 0 at later tokens: their gap is rounding of −1e9, and is left out
        p_NHS = logp_NHS.exp()
        return (p_NHS * (logp_NHS - logq_NHS).where(p_NHS > 0, 0)).sum(-1).mean(-1)


class RelationalDistance(Feature):
    """Relational distillation: Huber losses of distances and angles between rows.

    RKD (Park et al. 2019), section 3.2. A row is the mean of its selected tokens. The loss counts
    for every selected token of the micro-batch, so it depends on which rows are together.
    """

    type: Literal["rkd"]
    layers: LayerMap = "last"
    distance: float = Field(1.0, ge=0)
    """Weight of the pairwise distances, each side's divided by their mean."""
    angle: float = Field(2.0, ge=0)
    """Weight of the cosines of the angles that three rows make."""
    part: ClassVar[Literal["hidden", "attention", "values"]] = "hidden"

    def compare(self, student: Tensor, teacher: Tensor, positions: TokenPositions) -> Tensor:
        """Return the micro-batch's loss, once for each of its tokens, (N,)."""
        from torch.nn.functional import smooth_l1_loss

        sides = [positions.row_means(x) for x in (student, teacher)]
        # zero, but part of the graph where there are too few rows
        total = sides[0].sum() * 0
        if len(sides[0]) > 1 and self.distance:
            q, p = map(distances, sides)
            total = total + self.distance * smooth_l1_loss(q, p)
        if len(sides[0]) > 2 and self.angle:
            q, p = map(angles, sides)
            total = total + self.angle * smooth_l1_loss(q, p)
        return total.expand(len(positions.positions_N))


class SimilarityPreserving(Feature):
    """Similarity preserving: mean squared error of row-normalised similarity matrices X Xᵀ.

    SPKD (Tung & Mori 2019), section 3. A row is the mean of its selected tokens. The loss counts
    for every selected token of the micro-batch.
    """

    type: Literal["spkd"]
    layers: LayerMap = "last"
    part: ClassVar[Literal["hidden", "attention", "values"]] = "hidden"

    def compare(self, student: Tensor, teacher: Tensor, positions: TokenPositions) -> Tensor:
        """Return the micro-batch's loss, once for each of its tokens, (N,)."""
        from torch.nn.functional import normalize

        q_BB, p_BB = (
            normalize(x @ x.T, dim=-1) for x in map(positions.row_means, (student, teacher))
        )
        return (q_BB - p_BB).square().mean().expand(len(positions.positions_N))


def heads_to(x_NHS: Tensor, count: int) -> Tensor:
    """Return maps of `count` heads, each the average of neighbouring ones.

    Raises:
        UserError: `count` does not divide the number of heads.
    """
    tokens, heads, keys = x_NHS.shape
    if heads % count:
        raise UserError(
            f"{heads} heads cannot be averaged to {count}",
            where="terms: attention",
            fix="heads: average",
        )
    return x_NHS.reshape(tokens, count, heads // count, keys).mean(2)


def log_of(p: Tensor) -> Tensor:
    """Return log p, finite where a key is never attended to."""
    return p.clamp_min(1e-9).log()


def relations(x_BSHE: Tensor) -> Tensor:
    """Return log softmax(X Xᵀ/√E) over each token and those before it, (B, H, S, S)."""
    x_BHSE = x_BSHE.float().transpose(1, 2)
    scores_BHSS = x_BHSE @ x_BHSE.mT / x_BHSE.shape[-1] ** 0.5
    later_SS = scores_BHSS.new_ones(scores_BHSS.shape[-2:]).triu(1).bool()
    # finite: a difference of two −∞ would be NaN
    masked_BHSS: Tensor = scores_BHSS.masked_fill(later_SS, -1e9)
    return masked_BHSS.log_softmax(-1)


def distances(x_BD: Tensor) -> Tensor:
    """Return the distance of each pair of rows, divided by their mean."""
    # each pair once, no row with itself
    first, second = x_BD.new_ones(len(x_BD), len(x_BD)).triu(1).nonzero(as_tuple=True)
    # the clamp keeps the root's derivative finite for two equal rows
    pairs = (x_BD[first] - x_BD[second]).square().sum(-1).clamp_min(1e-12).sqrt()
    return pairs / pairs.mean()


def angles(x_BD: Tensor) -> Tensor:
    """Return the cosine at row i of the angle between rows j and k, for all, (B, B, B)."""
    from torch.nn.functional import normalize

    # [i, j]: the direction from row i to row j; zeros for i = j
    sides_BBD: Tensor = normalize(x_BD[None] - x_BD[:, None], dim=-1)
    return sides_BBD @ sides_BBD.mT


FeatureTerm = Annotated[
    HiddenMse
    | HiddenCosine
    | Attention
    | ValueRelation
    | RelationalDistance
    | SimilarityPreserving,
    Field(discriminator="type"),
]
