"""What a student's next-token distribution is compared with, and how: the terms of a loss.

p is the teacher's distribution, q the student's, both after the term's temperature T. Every
divergence is one class that works on float log-probabilities over C outcomes (the last dimension):
the whole vocabulary for a live teacher, or the K stored ids and one bucket for all the others
(C = K + 1) for stored signals, where it is the divergence of the coarser distributions, which is
never larger than the full one. Adding a divergence: write its class, and name it in `Term`.

Shapes: N valid tokens, C outcomes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from cohobate.losses.distances import kl, mixture, skew_forward, skew_reverse
from cohobate.params import Section

if TYPE_CHECKING:
    from torch import Tensor

    from cohobate.losses.targets import Targets


class Divergence(Section):
    """A distance between p and q for each token, summed over the outcomes.

    The loss of a term is `weight * temperature**2 * per_token`. The factor T² (Hinton et al. 2015,
    section 2) keeps the gradient's size when T changes; it matters only where terms of different T
    are mixed, and it is never applied to the hard term.
    """

    type: str
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
    on_stored_signals: ClassVar[bool] = True
    """Whether the K ids and the bucket of all others are enough to define it."""
    mass_covering: ClassVar[bool] = False
    """Whether its grad has the factor p; of the others it has q, and is nothing where q is."""

    @property
    def trains_from_scratch(self) -> bool:
        """Whether it moves a student that gives the teacher's tokens next to no probability."""
        return self.mass_covering

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

    def at(self, targets: Targets) -> Divergence:
        """Return the divergence as it is at these tokens: the same at all, unless overridden."""
        return self

    def over_outcomes(self, logp_NC: Tensor, logq_NC: Tensor) -> tuple[Tensor, Tensor]:
        """Return `with_grad`, both distributions being tempered first where T acts on outcomes."""
        left = self.temperature / self.softmax_temperature
        if left == 1:
            return self.with_grad(logp_NC, logq_NC)
        logp_NC, logq_NC = ((log_NC / left).log_softmax(-1) for log_NC in (logp_NC, logq_NC))
        loss_N, grad_NC = self.with_grad(logp_NC, logq_NC)
        # d log q'_j/d log q_i = ([i = j] − q'_i) / T, where q' is q tempered
        total_N1 = grad_NC.sum(-1, keepdim=True)
        return loss_N, grad_NC.addcmul(logq_NC.exp(), total_N1, value=-1).div_(left)

    def per_token(self, logp_NC: Tensor, logq_NC: Tensor) -> Tensor:
        """Return the divergence of each token, (N,), without weight and T²."""
        raise NotImplementedError

    def with_grad(self, logp_NC: Tensor, logq_NC: Tensor) -> tuple[Tensor, Tensor]:
        """Return `per_token` (N,) and its derivative with respect to logq (N, C).

        By autograd over this one elementwise expression; override it where a closed form is
        quicker.
        """
        import torch

        with torch.enable_grad():
            leaf_NC = logq_NC.detach().requires_grad_()
            loss_N = self.per_token(logp_NC, leaf_NC)
            (grad_NC,) = torch.autograd.grad(loss_N.sum(), leaf_NC)
        return loss_N.detach(), grad_NC


class ForwardKL(Divergence):
    """Σ p (log p − log q): covers the teacher's mass; the default on text that is given."""

    type: Literal["forward_kl"] = "forward_kl"
    works_without_tail: ClassVar[bool] = True
    mass_covering: ClassVar[bool] = True

    def per_token(self, logp_NC: Tensor, logq_NC: Tensor) -> Tensor:
        """Return KL(p‖q), (N,)."""
        return kl(logp_NC, logq_NC)

    def with_grad(self, logp_NC: Tensor, logq_NC: Tensor) -> tuple[Tensor, Tensor]:
        """Return KL(p‖q) and its grad −p."""
        p_NC = logp_NC.exp()
        return (p_NC * (logp_NC - logq_NC)).sum(-1), p_NC.neg_()


class ReverseKL(Divergence):
    """Σ q (log q − log p): seeks the teacher's modes; the default on the student's own text."""

    type: Literal["reverse_kl"] = "reverse_kl"

    def per_token(self, logp_NC: Tensor, logq_NC: Tensor) -> Tensor:
        """Return KL(q‖p), (N,)."""
        return kl(logq_NC, logp_NC)

    def with_grad(self, logp_NC: Tensor, logq_NC: Tensor) -> tuple[Tensor, Tensor]:
        """Return KL(q‖p) and its grad q (log q − log p + 1)."""
        q_NC, gap_NC = logq_NC.exp(), logq_NC - logp_NC
        grad_NC = q_NC * gap_NC
        return grad_NC.sum(-1), grad_NC.add_(q_NC)


class JensenShannon(Divergence):
    """β KL(p‖m) + (1−β) KL(q‖m) with m = βp + (1−β)q (GKD, Agarwal et al. 2023, section 2).

    β = 0 is the forward and β = 1 the reverse KL by convention, though the formula gives 0 there.
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

    def with_grad(self, logp_NC: Tensor, logq_NC: Tensor) -> tuple[Tensor, Tensor]:
        """Return it and its grad (1−β) q (log q − log m), or that of the KL at either end."""
        if self.beta in (0, 1):
            end = ReverseKL() if self.beta else ForwardKL()
            return end.with_grad(logp_NC, logq_NC)
        logm_NC = mixture(logp_NC, logq_NC, self.beta)
        grad_NC = (1 - self.beta) * logq_NC.exp() * (logq_NC - logm_NC)
        return self.beta * kl(logp_NC, logm_NC) + grad_NC.sum(-1), grad_NC


class SkewForwardKL(Divergence):
    """KL(p ‖ αp + (1−α)q) (DistiLLM, Ko et al. 2024, section 3.1)."""

    type: Literal["skew_forward_kl"] = "skew_forward_kl"
    alpha: float = Field(0.1, ge=0, lt=1)
    """α: share of the teacher in what it is compared with."""

    @property
    def trains_from_scratch(self) -> bool:
        """Only where it is the forward KL."""
        return self.alpha == 0

    def per_token(self, logp_NC: Tensor, logq_NC: Tensor) -> Tensor:
        """Return the skewed forward KL, (N,)."""
        return kl(logp_NC, mixture(logp_NC, logq_NC, self.alpha))

    def with_grad(self, logp_NC: Tensor, logq_NC: Tensor) -> tuple[Tensor, Tensor]:
        """Return it and its grad −(1−α) p q/m, m being what p is compared with."""
        return skew_forward(logp_NC, logq_NC, self.alpha)


class SkewReverseKL(Divergence):
    """KL(q ‖ (1−α)p + αq) (DistiLLM, Ko et al. 2024, section 3.1)."""

    type: Literal["skew_reverse_kl"] = "skew_reverse_kl"
    alpha: float = Field(0.1, ge=0, lt=1)
    """α: share of the student in what it is compared with."""

    def per_token(self, logp_NC: Tensor, logq_NC: Tensor) -> Tensor:
        """Return the skewed reverse KL, (N,)."""
        return kl(logq_NC, mixture(logq_NC, logp_NC, self.alpha))

    def with_grad(self, logp_NC: Tensor, logq_NC: Tensor) -> tuple[Tensor, Tensor]:
        """Return it and its grad q (log q − log m + 1 − α q/m), with m that q is held against."""
        return skew_reverse(logp_NC, logq_NC, self.alpha)


class AdaptiveKL(Divergence):
    """Forward and reverse KL, weighted by where p and q differ (AKL, Wu et al. 2024, section 4).

    The head is the outcomes of highest p, as many as stay within `head_mass` (at least one); the
    tail is the rest. The forward KL gets the head's share of Σ|p − q|, the reverse KL the tail's.
    The shares are constants to the gradient.
    """

    type: Literal["adaptive_kl"] = "adaptive_kl"
    head_mass: float = Field(0.5, gt=0, lt=1)
    """Cumulative teacher probability that makes the head."""
    mass_covering: ClassVar[bool] = True

    def per_token(self, logp_NC: Tensor, logq_NC: Tensor) -> Tensor:
        """Return the adaptively weighted KL, (N,)."""
        head_N = self.head_share(logp_NC, logq_NC)
        return head_N * kl(logp_NC, logq_NC) + (1 - head_N) * kl(logq_NC, logp_NC)

    def with_grad(self, logp_NC: Tensor, logq_NC: Tensor) -> tuple[Tensor, Tensor]:
        """Return it and its grad: the two KLs' grads in the same shares."""
        head_N = self.head_share(logp_NC, logq_NC)
        forward_N, forward_NC = ForwardKL().with_grad(logp_NC, logq_NC)
        reverse_N, reverse_NC = ReverseKL().with_grad(logp_NC, logq_NC)
        loss_N = head_N * forward_N + (1 - head_N) * reverse_N
        return loss_N, reverse_NC.lerp(forward_NC, head_N[..., None])

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

    def with_grad(self, logp_NC: Tensor, logq_NC: Tensor) -> tuple[Tensor, Tensor]:
        """Return it and its grad ½ q sign(q − p)."""
        q_NC = logq_NC.exp()
        gap_NC = q_NC - logp_NC.exp()
        return gap_NC.abs().sum(-1) / 2, gap_NC.sign() * q_NC / 2


class LogitMse(Divergence):
    """Mean squared error of logits/T, both centred per token (Ba & Caruana 2014, section 2.2).

    Centred log-probabilities are centred logits, so that a model's arbitrary shift is no error.
    """

    type: Literal["logit_mse"] = "logit_mse"
    on_stored_signals: ClassVar[bool] = False
    mass_covering: ClassVar[bool] = True

    def per_token(self, logp_NC: Tensor, logq_NC: Tensor) -> Tensor:
        """Return the mean over the ids, (N,)."""
        gap_NC = logq_NC - logp_NC
        return (gap_NC - gap_NC.mean(-1, keepdim=True)).square().mean(-1)

    def with_grad(self, logp_NC: Tensor, logq_NC: Tensor) -> tuple[Tensor, Tensor]:
        """Return it and its grad 2/V times the centred gap."""
        gap_NC = logq_NC - logp_NC
        gap_NC = gap_NC - gap_NC.mean(-1, keepdim=True)
        return gap_NC.square().mean(-1), gap_NC * (2 / gap_NC.shape[-1])


class DistiLLM2(Divergence):
    """Skew forward KL on given text, skew reverse KL on the student's own (DistiLLM-2, Ko et al.
    2025, sections 3.1 and 3.3), each row with an α of its own: `distances.row_alphas`.
    """

    type: Literal["distillm2"] = "distillm2"
    alpha: float = Field(0.1, gt=0, lt=1)
    """α₀: the largest share, and that of a row of mean gap."""
    floor: float = Field(0.01, gt=0, lt=1)
    """The smallest share."""
    _alpha_N1: Tensor  # noqa: N815
    _by_student_N1: Tensor  # noqa: N815

    def at(self, targets: Targets) -> Divergence:
        """Return the divergence with the α and the origin of each of these tokens."""
        assert targets.alpha_N is not None and targets.by_student_N is not None
        term = self.model_copy()
        term._alpha_N1 = targets.alpha_N[:, None]
        term._by_student_N1 = targets.by_student_N[:, None]
        return term

    def per_token(self, logp_NC: Tensor, logq_NC: Tensor) -> Tensor:
        """Return the skewed KL of each token, (N,)."""
        forward_N = kl(logp_NC, mixture(logp_NC, logq_NC, self._alpha_N1))
        reverse_N = kl(logq_NC, mixture(logq_NC, logp_NC, self._alpha_N1))
        return reverse_N.where(self._by_student_N1[:, 0], forward_N)

    def with_grad(self, logp_NC: Tensor, logq_NC: Tensor) -> tuple[Tensor, Tensor]:
        """Return it and its grad, that of either kind."""
        forward = skew_forward(logp_NC, logq_NC, self._alpha_N1)
        reverse = skew_reverse(logp_NC, logq_NC, self._alpha_N1)
        own_N1 = self._by_student_N1
        return reverse[0].where(own_N1[:, 0], forward[0]), reverse[1].where(own_N1, forward[1])


class Hard(Section):
    """−log q[y] at T = 1, where y is the token that the training text has (whoever wrote it)."""

    type: Literal["hard"] = "hard"
    weight: float = Field(1.0, gt=0)
    """What this term counts in the sum of the terms."""

    def at(self, targets: Targets) -> Hard:
        """Return the term as it is at these tokens: the same."""
        return self


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
