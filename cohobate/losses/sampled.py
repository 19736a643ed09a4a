"""A teacher's distribution as N ids that were drawn from it.

Counts over N are an unbiased estimate of p, and so is every loss that is linear in p: the forward
KL, whose gradient is q − p. That of the K most likely ids alone is not (Anshumann et al. 2025,
"Sparse Logit Sampling: Accelerating Knowledge Distillation in LLMs", section 3). The entropy of p
is stored beside the draws, so that the loss is an estimate of the divergence itself.

Shapes: N valid tokens, V vocabulary, K distinct ids.
"""

# ruff: noqa: N815 (fields that are tensors carry shape suffixes too)

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from cohobate.errors import UserError
from cohobate.losses.divergences import ForwardKL, Hard

if TYPE_CHECKING:
    from cohobate.losses.token_losses import ResponseTerm


class SampledIds(NamedTuple):
    """Ids that were drawn from a teacher's distribution at one temperature."""

    ids_NK: Tensor
    share_NK: Tensor
    """Count of each id over the number of draws; a share of 0 fills rows of fewer ids up."""
    entropy_N: Tensor
    """Of the distribution that was drawn from, in nats."""
    temperature: float = 1.0

    def rows(self, part: slice | Tensor) -> "SampledIds":
        """Return the draws of some of the tokens."""
        some = (self.ids_NK[part], self.share_NK[part], self.entropy_N[part])
        return SampledIds(*some, self.temperature)


def against_draws(
    logits_NV: Tensor, terms: "Sequence[ResponseTerm]", labels_N: Tensor, teacher: SampledIds
) -> tuple[list[Tensor], Tensor]:
    """Return the weighted loss of each term (N,), and the grad of their sum, d/d logits (N, V).

    With a share t, the loss is Σ t (−log q) − H(p), its grad q Σ t − t. The logits, already
    divided by the temperature, are overwritten.

    Raises:
        UserError: a term that draws cannot give without bias.
    """
    logq_NV = logits_NV.sub_(logits_NV.logsumexp(-1, keepdim=True))
    share_NK = teacher.share_NK.to(logq_NV.dtype)
    losses: list[Tensor] = []
    soft = hard = 0.0
    for term in terms:
        if isinstance(term, Hard):
            losses.append(-term.weight * logq_NV.gather(-1, labels_N[:, None])[:, 0])
            hard += term.weight
            continue
        if not isinstance(term, ForwardKL) or term.temperature != teacher.temperature:
            raise UserError(
                f"{term.type} at temperature {term.softmax_temperature:g} has no unbiased estimate "
                f"from ids drawn at temperature {teacher.temperature:g}: only forward_kl there has",
                fix="capture.signals: {type: top_k, ...} or {type: hidden}",
            )
        scale = term.weight * term.temperature**2
        crossed_N = -(share_NK * logq_NV.gather(-1, teacher.ids_NK)).sum(-1)
        losses.append(scale * (crossed_N - teacher.entropy_N))
        soft += scale
    grad_NV = logq_NV.exp_().mul_(soft * share_NK.sum(-1, keepdim=True) + hard)
    grad_NV.scatter_add_(-1, teacher.ids_NK, -soft * share_NK)
    return losses, grad_NV.scatter_add_(
        -1, labels_N[:, None], torch.full_like(grad_NV[:, :1], -hard)
    )
