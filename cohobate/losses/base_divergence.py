"""Base class of the divergences: weight, temperature, and what stored signals allow.

p is the teacher's next-token distribution, q the student's, both at the term's temperature T.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, model_validator

from cohobate.params import Section

if TYPE_CHECKING:
    from torch import Tensor


class Divergence(Section):
    """A distance between p and q at each token, summed over C outcomes.

    The outcomes are the whole vocabulary for a live teacher. For stored top-k signals they are the
    K stored ids and one bucket for all other ids (C = K + 1); the divergence of these coarser
    distributions is never larger than the full one.

    A term's loss is `weight * temperature**2 * per_token(logp_NC, logq_NC)`. The factor T² (Hinton
    et al. 2015, "Distilling the Knowledge in a Neural Network", section 2) keeps the gradient's
    size when T changes. It matters only where terms of different T are mixed, and is never applied
    to the hard term.
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
    """Whether its gradient has the factor p; else it has the factor q and vanishes with q."""

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

    @property
    def scale(self) -> float:
        """The factor weight · T² of the loss and its gradient."""
        return self.weight * self.temperature**2

    def per_token(self, logp_NC: Tensor, logq_NC: Tensor) -> Tensor:
        """Return the divergence of each token, (N,) in nats, without weight and T².

        Args:
            logp_NC: the teacher's log-probabilities.
            logq_NC: the student's log-probabilities; differentiable.
        """
        raise NotImplementedError

    def loss_and_grad(self, logp_NC: Tensor, logq_NC: Tensor) -> tuple[Tensor, Tensor]:
        """Return `per_token` (N,) and its derivative with respect to log q, (N, C).

        By autograd over this one elementwise expression. Override it where a closed form is
        faster.
        """
        import torch

        with torch.enable_grad():
            leaf_NC = logq_NC.detach().requires_grad_()
            loss_N = self.per_token(logp_NC, leaf_NC)
            (grad_NC,) = torch.autograd.grad(loss_N.sum(), leaf_NC)
        return loss_N.detach(), grad_NC

    def tempered_loss_and_grad(self, logp_NC: Tensor, logq_NC: Tensor) -> tuple[Tensor, Tensor]:
        """Return `loss_and_grad`; where T acts on the outcomes, both sides are tempered first."""
        left = self.temperature / self.softmax_temperature
        if left == 1:
            return self.loss_and_grad(logp_NC, logq_NC)
        logp_NC, logq_NC = ((log_NC / left).log_softmax(-1) for log_NC in (logp_NC, logq_NC))
        loss_N, grad_NC = self.loss_and_grad(logp_NC, logq_NC)
        # chain rule: d log q'_j/d log q_i = ([i = j] − q'_i) / T, where q' is q tempered
        total_N1 = grad_NC.sum(-1, keepdim=True)
        return loss_N, grad_NC.addcmul(logq_NC.exp(), total_N1, value=-1).div_(left)
