"""The response terms of a loss: divergences from a teacher's distribution, and the hard term.

p is the teacher's next-token distribution, q the student's, both at the term's temperature. Each
divergence is one class over log-probabilities of C outcomes, the last dimension. Their base class
is in base_divergence.py; distances between hidden states are in feature_losses.py. Adding one:
write its class, and name it in `Term`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from cohobate.losses.base_divergence import Divergence
from cohobate.losses.distillm2 import DistiLLM2
from cohobate.losses.functional import kl, mixture, skew_forward_kl, skew_reverse_kl
from cohobate.params import Section

if TYPE_CHECKING:
    from torch import Tensor


class ForwardKL(Divergence):
    """Forward Kullback-Leibler divergence: KL(p‖q) = Σ p (log p − log q).

    Covers the teacher's mass; the default on given text. Hinton et al. 2015, "Distilling the
    Knowledge in a Neural Network", section 2.

    Takes logp_NC and logq_NC, (N, C); returns (N,).
    """

    type: Literal["forward_kl"] = "forward_kl"
    works_without_tail: ClassVar[bool] = True
    mass_covering: ClassVar[bool] = True

    def per_token(self, logp_NC: Tensor, logq_NC: Tensor) -> Tensor:
        """Return KL(p‖q), (N,)."""
        return kl(logp_NC, logq_NC)

    def loss_and_grad(self, logp_NC: Tensor, logq_NC: Tensor) -> tuple[Tensor, Tensor]:
        """Return KL(p‖q) and its gradient −p."""
        p_NC = logp_NC.exp()
        # left to right: the loss reads p before it is negated in place
        return (p_NC * (logp_NC - logq_NC)).sum(-1), p_NC.neg_()


class ReverseKL(Divergence):
    """Reverse Kullback-Leibler divergence: KL(q‖p) = Σ q (log q − log p).

    Seeks the teacher's modes; the default on the student's own text. Gu et al. 2023, "MiniLLM",
    section 2.1.

    Takes logp_NC and logq_NC, (N, C); returns (N,).
    """

    type: Literal["reverse_kl"] = "reverse_kl"

    def per_token(self, logp_NC: Tensor, logq_NC: Tensor) -> Tensor:
        """Return KL(q‖p), (N,)."""
        return kl(logq_NC, logp_NC)

    def loss_and_grad(self, logp_NC: Tensor, logq_NC: Tensor) -> tuple[Tensor, Tensor]:
        """Return KL(q‖p) and its gradient q (log q − log p + 1)."""
        q_NC, gap_NC = logq_NC.exp(), logq_NC - logp_NC
        # Σ of this product is the loss itself
        grad_NC = q_NC * gap_NC
        return grad_NC.sum(-1), grad_NC.add_(q_NC)


class JensenShannon(Divergence):
    """Generalised Jensen-Shannon divergence: β KL(p‖m) + (1−β) KL(q‖m) with m = βp + (1−β)q.

    Agarwal et al. 2023, "On-Policy Distillation of Language Models" (GKD), section 2. β = 0 is the
    forward and β = 1 the reverse KL by convention, though the formula gives 0 there.

    Takes logp_NC and logq_NC, (N, C); returns (N,).
    """

    type: Literal["jensen_shannon"] = "jensen_shannon"
    beta: float = Field(0.5, ge=0, le=1)
    """β: share of the teacher in the mixture."""

    @property
    def trains_from_scratch(self) -> bool:
        """Only where it is the forward KL."""
        return self.beta == 0

    def per_token(self, logp_NC: Tensor, logq_NC: Tensor) -> Tensor:
        """Return the generalised Jensen-Shannon divergence, (N,)."""
        if self.beta in (0, 1):
            return kl(logq_NC, logp_NC) if self.beta else kl(logp_NC, logq_NC)
        logm_NC = mixture(logp_NC, logq_NC, self.beta)
        return self.beta * kl(logp_NC, logm_NC) + (1 - self.beta) * kl(logq_NC, logm_NC)

    def loss_and_grad(self, logp_NC: Tensor, logq_NC: Tensor) -> tuple[Tensor, Tensor]:
        """Return it and its gradient (1−β) q (log q − log m), or that of the KL at either end."""
        if self.beta in (0, 1):
            # here the formula is 0, and so is its gradient
            end = ReverseKL() if self.beta else ForwardKL()
            return end.loss_and_grad(logp_NC, logq_NC)
        logm_NC = mixture(logp_NC, logq_NC, self.beta)
        # what comes from m itself cancels, as βp + (1−β)q = m; Σ of the rest is the second KL
        grad_NC = (1 - self.beta) * logq_NC.exp() * (logq_NC - logm_NC)
        return self.beta * kl(logp_NC, logm_NC) + grad_NC.sum(-1), grad_NC


class SkewForwardKL(Divergence):
    """Skew forward KL: KL(p ‖ αp + (1−α)q).

    Ko et al. 2024, "DistiLLM: Towards Streamlined Distillation for Large Language Models",
    section 3.1.

    Takes logp_NC and logq_NC, (N, C); returns (N,).
    """

    type: Literal["skew_forward_kl"] = "skew_forward_kl"
    alpha: float = Field(0.1, ge=0, lt=1)
    """α: share of the teacher in what it is compared with."""

    @property
    def trains_from_scratch(self) -> bool:
        """Only where it is the forward KL."""
        return self.alpha == 0

    def per_token(self, logp_NC: Tensor, logq_NC: Tensor) -> Tensor:
        """Return the skew forward KL, (N,)."""
        return kl(logp_NC, mixture(logp_NC, logq_NC, self.alpha))

    def loss_and_grad(self, logp_NC: Tensor, logq_NC: Tensor) -> tuple[Tensor, Tensor]:
        """Return it and its gradient −(1−α) p q/m with m = αp + (1−α)q."""
        return skew_forward_kl(logp_NC, logq_NC, self.alpha)


class SkewReverseKL(Divergence):
    """Skew reverse KL: KL(q ‖ (1−α)p + αq).

    Ko et al. 2024, "DistiLLM: Towards Streamlined Distillation for Large Language Models",
    section 3.1.

    Takes logp_NC and logq_NC, (N, C); returns (N,).
    """

    type: Literal["skew_reverse_kl"] = "skew_reverse_kl"
    alpha: float = Field(0.1, ge=0, lt=1)
    """α: share of the student in what it is compared with."""

    def per_token(self, logp_NC: Tensor, logq_NC: Tensor) -> Tensor:
        """Return the skew reverse KL, (N,)."""
        return kl(logq_NC, mixture(logq_NC, logp_NC, self.alpha))

    def loss_and_grad(self, logp_NC: Tensor, logq_NC: Tensor) -> tuple[Tensor, Tensor]:
        """Return it and its gradient q (log q − log m + 1 − α q/m) with m = (1−α)p + αq."""
        return skew_reverse_kl(logp_NC, logq_NC, self.alpha)


class AdaptiveKL(Divergence):
    """Adaptive KL: g_h/(g_h+g_t) KL(p‖q) + g_t/(g_h+g_t) KL(q‖p), with g = Σ|p − q| of a part.

    Wu et al. 2024, "Rethinking Kullback-Leibler Divergence in Knowledge Distillation for Large
    Language Models" (AKL), section 4. The head h is the outcomes of highest p, as many as stay
    within `head_mass` (at least one); the tail t is the rest. Both shares are constants to the
    gradient.

    Takes logp_NC and logq_NC, (N, C); returns (N,).
    """

    type: Literal["adaptive_kl"] = "adaptive_kl"
    head_mass: float = Field(0.5, gt=0, lt=1)
    """Cumulative teacher probability that makes the head."""
    mass_covering: ClassVar[bool] = True

    def per_token(self, logp_NC: Tensor, logq_NC: Tensor) -> Tensor:
        """Return the adaptively weighted KL, (N,)."""
        head_N = self.head_share(logp_NC, logq_NC)
        return head_N * kl(logp_NC, logq_NC) + (1 - head_N) * kl(logq_NC, logp_NC)

    def loss_and_grad(self, logp_NC: Tensor, logq_NC: Tensor) -> tuple[Tensor, Tensor]:
        """Return it and its gradient: the gradients of the two KLs in the same shares."""
        head_N = self.head_share(logp_NC, logq_NC)
        forward_N, forward_NC = ForwardKL().loss_and_grad(logp_NC, logq_NC)
        reverse_N, reverse_NC = ReverseKL().loss_and_grad(logp_NC, logq_NC)
        loss_N = head_N * forward_N + (1 - head_N) * reverse_N
        # reverse + head · (forward − reverse)
        return loss_N, reverse_NC.lerp(forward_NC, head_N[..., None])

    def head_share(self, logp_NC: Tensor, logq_NC: Tensor) -> Tensor:
        """Return g_h / (g_h + g_t), (N,), detached; ½ where p equals q."""
        # gaps in the order of falling p, so that the head is the first outcomes
        p_NC, order_NC = logp_NC.detach().exp().sort(dim=-1, descending=True)
        gap_NC = (p_NC - logq_NC.detach().exp().gather(-1, order_NC)).abs()
        in_head_NC = p_NC.cumsum(-1) <= self.head_mass
        # the most likely outcome is in the head even where it alone has more than the mass
        in_head_NC[..., 0] = True
        head_N, all_N = (gap_NC * in_head_NC).sum(-1), gap_NC.sum(-1)
        # 0/0 where p equals q
        return (head_N / all_N).nan_to_num(0.5)


class TotalVariation(Divergence):
    """Total variation distance: ½ Σ |p − q|.

    Wen et al. 2023, "f-Divergence Minimization for Sequence-Level Knowledge Distillation".

    Takes logp_NC and logq_NC, (N, C); returns (N,).
    """

    type: Literal["total_variation"] = "total_variation"

    def per_token(self, logp_NC: Tensor, logq_NC: Tensor) -> Tensor:
        """Return the total variation distance, (N,)."""
        return (logp_NC.exp() - logq_NC.exp()).abs().sum(-1) / 2

    def loss_and_grad(self, logp_NC: Tensor, logq_NC: Tensor) -> tuple[Tensor, Tensor]:
        """Return it and its gradient ½ q sign(q − p)."""
        q_NC = logq_NC.exp()
        gap_NC = q_NC - logp_NC.exp()
        return gap_NC.abs().sum(-1) / 2, gap_NC.sign() * q_NC / 2


class LogitMse(Divergence):
    """Mean squared error of centred logits: 1/V Σ (z̄_q − z̄_p)², with z̄ = z/T − mean(z/T).

    Ba & Caruana 2014, "Do Deep Nets Really Need to be Deep?", section 2.2. Centred
    log-probabilities are centred logits, so that a model's arbitrary shift is no error.

    Takes logp_NC and logq_NC, (N, C); returns (N,), with C = V: only for a live teacher.
    """

    type: Literal["logit_mse"] = "logit_mse"
    on_stored_signals: ClassVar[bool] = False
    mass_covering: ClassVar[bool] = True

    def per_token(self, logp_NC: Tensor, logq_NC: Tensor) -> Tensor:
        """Return the mean over the ids, (N,)."""
        gap_NC = logq_NC - logp_NC
        return (gap_NC - gap_NC.mean(-1, keepdim=True)).square().mean(-1)

    def loss_and_grad(self, logp_NC: Tensor, logq_NC: Tensor) -> tuple[Tensor, Tensor]:
        """Return it and its gradient, 2/V times the centred gap."""
        gap_NC = logq_NC - logp_NC
        gap_NC = gap_NC - gap_NC.mean(-1, keepdim=True)
        # subtracting the mean adds nothing to the gradient: a centred gap sums to 0
        return gap_NC.square().mean(-1), gap_NC * (2 / gap_NC.shape[-1])


class Hard(Section):
    """Cross-entropy with the training text: −log q[y] at T = 1, where y is the text's token."""

    type: Literal["hard"] = "hard"
    weight: float = Field(1.0, gt=0)
    """What this term counts in the sum of the terms."""

    def per_token(self, logq_NV: Tensor, labels_N: Tensor) -> Tensor:
        """Return −log q[y] of each token, (N,) in nats, without the weight."""
        return -logq_NV.gather(-1, labels_N[:, None])[:, 0]


Term = Annotated[
    Hard
    | ForwardKL
    | ReverseKL
    | JensenShannon
    | SkewForwardKL
    | SkewReverseKL
    | AdaptiveKL
    | TotalVariation
    | LogitMse
    | DistiLLM2,
    Field(discriminator="type"),
]
