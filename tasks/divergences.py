"""What a student's next-token distribution is compared with, and how: the terms of a loss.

p is the teacher's distribution, q the student's, both after the term's temperature T. Every
divergence is one class that works on float log-probabilities over C outcomes (the last dimension):
the whole vocabulary for a live teacher, or the K stored ids and one bucket for all the others
(C = K + 1) for stored signals, where it is the divergence of the coarser distributions, which is
never larger than the full one. Adding a divergence: write its class, and name it in `Term`.

Shapes: N valid tokens, C outcomes.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from tasks.params import Section

if TYPE_CHECKING:
    from torch import Tensor


class Divergence(Section):
    """A distance between p and q for each token, summed over the outcomes.

    The loss of a term is `weight * temperature**2 * per_token`. The factor T² (Hinton et al. 2015,
    section 2) keeps the gradient's size when T changes; it matters only where terms of different T
    are mixed, and it is never applied to the hard term.
    """

    weight: float = Field(1.0, gt=0)
    """What this term counts in the sum of the terms."""
    temperature: float = Field(1.0, gt=0)
    """T: both distributions are softmax(logits / T)."""
    tempers: Literal["vocabulary", "outcomes"] = "vocabulary"
    """What T acts on: the distribution over all ids (Hinton et al.); or, for stored signals, the
    distribution over the K ids and the bucket, so that T does not lift the mass of tens of
    thousands of ids that mean nothing. For a live teacher the two are one."""
    tail: Literal["bucket", "renormalise"] = "bucket"
    """Of stored top-k signals: one bucket holds the mass of all other ids; or the k are scaled to
    sum to 1, which is biased and only there to reproduce others' results."""

    works_without_tail: ClassVar[bool] = False
    """Whether minimising it over the stored ids alone keeps the student on those ids."""

    @model_validator(mode="after")
    def _refuse_collapse(self) -> Divergence:
        if self.tail == "renormalise" and not self.works_without_tail:
            raise ValueError(
                "tail: renormalise makes the student leave the stored ids, because this divergence "
                "weighs by the student's own probability; use tail: bucket"
            )
        return self

    @property
    def softmax_temperature(self) -> float:
        """Temperature of the softmax over the vocabulary."""
        return 1.0 if self.tempers == "outcomes" else self.temperature

    def over_outcomes(self, logp_NC: Tensor, logq_NC: Tensor) -> tuple[Tensor, Tensor]:
        """Return `with_slope`, both distributions being tempered first where T acts on outcomes."""
        left = self.temperature / self.softmax_temperature
        if left == 1:
            return self.with_slope(logp_NC, logq_NC)
        logp_NC, logq_NC = ((log_NC / left).log_softmax(-1) for log_NC in (logp_NC, logq_NC))
        loss_N, slope_NC = self.with_slope(logp_NC, logq_NC)
        # d log q'_j/d log q_i = ([i = j] − q'_i) / T, where q' is q tempered
        total_N1 = slope_NC.sum(-1, keepdim=True)
        return loss_N, slope_NC.addcmul(logq_NC.exp(), total_N1, value=-1).div_(left)

    def per_token(self, logp_NC: Tensor, logq_NC: Tensor) -> Tensor:
        """Return the divergence of each token, (N,), without weight and T²."""
        raise NotImplementedError

    def with_slope(self, logp_NC: Tensor, logq_NC: Tensor) -> tuple[Tensor, Tensor]:
        """Return `per_token` (N,) and its derivative with respect to logq (N, C).

        By autograd over this one elementwise expression; override it where a closed form is
        quicker.
        """
        import torch

        with torch.enable_grad():
            leaf_NC = logq_NC.detach().requires_grad_()
            loss_N = self.per_token(logp_NC, leaf_NC)
            (slope_NC,) = torch.autograd.grad(loss_N.sum(), leaf_NC)
        return loss_N.detach(), slope_NC


class ForwardKL(Divergence):
    """Σ p (log p − log q): covers the teacher's mass; the default on text that is given."""

    type: Literal["forward_kl"] = "forward_kl"
    works_without_tail: ClassVar[bool] = True

    def per_token(self, logp_NC: Tensor, logq_NC: Tensor) -> Tensor:
        """Return KL(p‖q), (N,)."""
        return kl(logp_NC, logq_NC)

    def with_slope(self, logp_NC: Tensor, logq_NC: Tensor) -> tuple[Tensor, Tensor]:
        """Return KL(p‖q) and its slope −p."""
        p_NC = logp_NC.exp()
        return (p_NC * (logp_NC - logq_NC)).sum(-1), p_NC.neg_()


class ReverseKL(Divergence):
    """Σ q (log q − log p): seeks the teacher's modes; the default on the student's own text."""

    type: Literal["reverse_kl"] = "reverse_kl"

    def per_token(self, logp_NC: Tensor, logq_NC: Tensor) -> Tensor:
        """Return KL(q‖p), (N,)."""
        return kl(logq_NC, logp_NC)

    def with_slope(self, logp_NC: Tensor, logq_NC: Tensor) -> tuple[Tensor, Tensor]:
        """Return KL(q‖p) and its slope q (log q − log p + 1)."""
        q_NC, gap_NC = logq_NC.exp(), logq_NC - logp_NC
        slope_NC = q_NC * gap_NC
        return slope_NC.sum(-1), slope_NC.add_(q_NC)


class JensenShannon(Divergence):
    """β KL(p‖m) + (1−β) KL(q‖m) with m = βp + (1−β)q (GKD, Agarwal et al. 2023, section 2).

    β = 0 is the forward and β = 1 the reverse KL by convention, though the formula gives 0 there.
    """

    type: Literal["jensen_shannon"] = "jensen_shannon"
    beta: float = Field(0.5, ge=0, le=1)
    """β: share of the teacher in the mixture."""

    def per_token(self, logp_NC: Tensor, logq_NC: Tensor) -> Tensor:
        """Return the generalised Jensen-Shannon divergence, (N,)."""
        if self.beta in (0, 1):
            return kl(logq_NC, logp_NC) if self.beta else kl(logp_NC, logq_NC)
        logm_NC = mixture(logp_NC, logq_NC, self.beta)
        return self.beta * kl(logp_NC, logm_NC) + (1 - self.beta) * kl(logq_NC, logm_NC)


class SkewForwardKL(Divergence):
    """KL(p ‖ αp + (1−α)q) (DistiLLM, Ko et al. 2024, section 3.1)."""

    type: Literal["skew_forward_kl"] = "skew_forward_kl"
    alpha: float = Field(0.1, ge=0, lt=1)
    """α: share of the teacher in what it is compared with."""

    def per_token(self, logp_NC: Tensor, logq_NC: Tensor) -> Tensor:
        """Return the skewed forward KL, (N,)."""
        return kl(logp_NC, mixture(logp_NC, logq_NC, self.alpha))


class SkewReverseKL(Divergence):
    """KL(q ‖ (1−α)p + αq) (DistiLLM, Ko et al. 2024, section 3.1)."""

    type: Literal["skew_reverse_kl"] = "skew_reverse_kl"
    alpha: float = Field(0.1, ge=0, lt=1)
    """α: share of the student in what it is compared with."""

    def per_token(self, logp_NC: Tensor, logq_NC: Tensor) -> Tensor:
        """Return the skewed reverse KL, (N,)."""
        return kl(logq_NC, mixture(logq_NC, logp_NC, self.alpha))


class AdaptiveKL(Divergence):
    """Forward and reverse KL, weighted by where p and q differ (AKL, Wu et al. 2024, section 4).

    The head is the outcomes of highest p, as many as stay within `head_mass` (at least one); the
    tail is the rest. The forward KL gets the head's share of Σ|p − q|, the reverse KL the tail's.
    The shares are constants to the gradient.
    """

    type: Literal["adaptive_kl"] = "adaptive_kl"
    head_mass: float = Field(0.5, gt=0, lt=1)
    """Cumulative teacher probability that makes the head."""

    def per_token(self, logp_NC: Tensor, logq_NC: Tensor) -> Tensor:
        """Return the adaptively weighted KL, (N,)."""
        head_N = self.head_share(logp_NC, logq_NC)
        return head_N * kl(logp_NC, logq_NC) + (1 - head_N) * kl(logq_NC, logp_NC)

    def head_share(self, logp_NC: Tensor, logq_NC: Tensor) -> Tensor:
        """Return g_head / (g_head + g_tail), (N,), detached; ½ where p equals q."""
        p_NC, order_NC = logp_NC.detach().exp().sort(dim=-1, descending=True)
        gap_NC = (p_NC - logq_NC.detach().exp().gather(-1, order_NC)).abs()
        in_head_NC = p_NC.cumsum(-1) <= self.head_mass
        in_head_NC[..., 0] = True
        head_N, all_N = (gap_NC * in_head_NC).sum(-1), gap_NC.sum(-1)
        return (head_N / all_N).nan_to_num(0.5)


class TotalVariation(Divergence):
    """½ Σ |p − q|."""

    type: Literal["total_variation"] = "total_variation"

    def per_token(self, logp_NC: Tensor, logq_NC: Tensor) -> Tensor:
        """Return the total variation distance, (N,)."""
        return (logp_NC.exp() - logq_NC.exp()).abs().sum(-1) / 2


class Hard(Section):
    """−log q[y] at T = 1, where y is the token that the training text has (whoever wrote it)."""

    type: Literal["hard"] = "hard"
    weight: float = Field(1.0, gt=0)
    """What this term counts in the sum of the terms."""


def kl(logp_NC: Tensor, logq_NC: Tensor) -> Tensor:
    """Return Σ p (log p − log q) of each token, (N,)."""
    return (logp_NC.exp() * (logp_NC - logq_NC)).sum(-1)


def mixture(loga_NC: Tensor, logb_NC: Tensor, share: float) -> Tensor:
    """Return log(share·a + (1 − share)·b)."""
    if share == 0:
        return logb_NC
    return (loga_NC + math.log(share)).logaddexp(logb_NC + math.log1p(-share))


Term = Annotated[
    Hard
    | ForwardKL
    | ReverseKL
    | JensenShannon
    | SkewForwardKL
    | SkewReverseKL
    | AdaptiveKL
    | TotalVariation,
    Field(discriminator="type"),
]
