"""Soft targets of ids that were drawn from a teacher's distribution.

Counts over the draws are an unbiased estimate of p, and so is every loss that is linear in p: the
forward KL, whose gradient is q − p. The estimate from the K most likely ids alone is biased
(Anshumann et al. 2025, "Sparse Logit Sampling: Accelerating Knowledge Distillation in LLMs",
section 3).
"""

# ruff: noqa: N815 (fields that are tensors carry shape suffixes too)

from dataclasses import dataclass

from torch import Tensor

from cohobate.errors import UserError
from cohobate.losses.divergences import ForwardKL, Hard
from cohobate.losses.soft_targets import ResponseTerm, SoftTargets, TermGroup, subtract_labels


@dataclass(frozen=True, eq=False)
class SampledIds(SoftTargets):
    """Ids that were drawn from a teacher's distribution at one temperature."""

    ids_NK: Tensor
    """The distinct ids of each token."""
    share_NK: Tensor
    """Count of each id over the number of draws; a share of 0 fills up rows of fewer ids."""
    entropy_N: Tensor
    """Entropy of the distribution that was drawn from, in nats. It is stored beside the draws, so
    that the loss is an estimate of the divergence itself, not of the cross-entropy."""
    temperature: float = 1.0

    def select(self, tokens: slice | Tensor) -> "SampledIds":
        """Return the draws of some of the tokens."""
        tensors = (self.ids_NK[tokens], self.share_NK[tokens], self.entropy_N[tokens])
        return SampledIds(*tensors, self.temperature)

    def loss_and_grad(
        self, logits_NV: Tensor, labels_N: Tensor, term_group: TermGroup
    ) -> tuple[list[Tensor], Tensor]:
        """Return losses and gradient against the draws.

        With the share t of each id, the loss is Σ t (−log q) − H(p), and its gradient q Σ t − t.

        Raises:
            UserError: a term that draws cannot give without bias, or a progressive target.
        """
        if term_group.teacher_share != 1:
            raise UserError(
                "a progressive target needs whole distributions, not drawn ids",
                where="progressive",
                fix="capture.signals: {type: top_k, ...} or {type: hidden}",
            )
        logq_NV = logits_NV.sub_(logits_NV.logsumexp(-1, keepdim=True))
        share_NK = self.share_NK.to(logq_NV.dtype)
        losses: list[Tensor] = []
        soft = hard = 0.0
        for term in term_group.terms:
            if isinstance(term, Hard):
                losses.append(term.weight * term.per_token(logq_NV, labels_N))
                hard += term.weight
                continue
            if not isinstance(term, ForwardKL) or term.temperature != self.temperature:
                raise self._no_estimate(term, term_group.temperature)
            cross_entropy_N = -(share_NK * logq_NV.gather(-1, self.ids_NK)).sum(-1)
            losses.append(term.scale * (cross_entropy_N - self.entropy_N))
            soft += term.scale
        # in place, now that no term reads log q any more
        grad_NV = logq_NV.exp_().mul_(soft * share_NK.sum(-1, keepdim=True) + hard)
        # added, not written: id 0 fills up rows with a share of 0, and may be drawn too
        grad_NV.scatter_add_(-1, self.ids_NK, -soft * share_NK)
        return losses, subtract_labels(grad_NV, labels_N, hard)

    def _no_estimate(self, term: ResponseTerm, temperature: float) -> UserError:
        return UserError(
            f"{term.type} at temperature {temperature:g} has no unbiased estimate from ids drawn "
            f"at temperature {self.temperature:g}: only forward_kl at that temperature has",
            where="terms",
            fix="capture.signals: {type: top_k, ...} or {type: hidden}",
        )
