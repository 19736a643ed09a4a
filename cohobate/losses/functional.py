"""KL divergences and mixtures as functions of log-probabilities, which several terms use.

p is the teacher's distribution, q the student's.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def kl(logp_NC: Tensor, logq_NC: Tensor) -> Tensor:
    """Return KL(p‖q) = Σ p (log p − log q) of each token, (N,)."""
    return (logp_NC.exp() * (logp_NC - logq_NC)).sum(-1)


def mixture(loga_NC: Tensor, logb_NC: Tensor, share: float | Tensor) -> Tensor:
    """Return log(share·a + (1 − share)·b); `share` is a number, or one for each token (N, 1)."""
    if not isinstance(share, float | int):
        return (loga_NC + share.log()).logaddexp(logb_NC + (-share).log1p())
    if share == 0:
        return logb_NC
    return (loga_NC + math.log(share)).logaddexp(logb_NC + math.log1p(-share))


def blend(logp_NC: Tensor, logq_NC: Tensor, teacher_share: float) -> Tensor:
    """Return the log-probabilities of a progressive target: t·p + (1 − t)·q, q detached."""
    return logp_NC if teacher_share == 1 else mixture(logp_NC, logq_NC.detach(), teacher_share)


def skew_forward_kl(
    logp_NC: Tensor, logq_NC: Tensor, alpha: float | Tensor
) -> tuple[Tensor, Tensor]:
    """Return KL(p‖m) with m = αp + (1−α)q, and its gradient by log q, −(1−α) p q/m."""
    logm_NC = mixture(logp_NC, logq_NC, alpha)
    grad_NC = (alpha - 1) * (logp_NC + logq_NC - logm_NC).exp()
    return kl(logp_NC, logm_NC), grad_NC


def skew_reverse_kl(
    logp_NC: Tensor, logq_NC: Tensor, alpha: float | Tensor
) -> tuple[Tensor, Tensor]:
    """Return KL(q‖m) with m = (1−α)p + αq, and its gradient q (log q − log m + 1 − α q/m)."""
    logm_NC = mixture(logq_NC, logp_NC, alpha)
    gap_NC, q_NC = logq_NC - logm_NC, logq_NC.exp()
    return (q_NC * gap_NC).sum(-1), q_NC * (gap_NC + 1 - alpha * gap_NC.exp())
