"""The arithmetic of distances between distributions, given as log-probabilities.

p is the teacher's distribution, q the student's. Shapes: N tokens, C outcomes, R rows.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def kl(logp_NC: Tensor, logq_NC: Tensor) -> Tensor:
    """Return Σ p (log p − log q) of each token, (N,)."""
    return (logp_NC.exp() * (logp_NC - logq_NC)).sum(-1)


def mixture(loga_NC: Tensor, logb_NC: Tensor, share: float | Tensor) -> Tensor:
    """Return log(share·a + (1 − share)·b); `share` is a number, or one for each token (N, 1)."""
    if not isinstance(share, float | int):
        return (loga_NC + share.log()).logaddexp(logb_NC + (-share).log1p())
    if share == 0:
        return logb_NC
    return (loga_NC + math.log(share)).logaddexp(logb_NC + math.log1p(-share))


def skew_forward(logp_NC: Tensor, logq_NC: Tensor, alpha: float | Tensor) -> tuple[Tensor, Tensor]:
    """Return KL(p‖m) with m = αp + (1−α)q, and its grad −(1−α) p q/m."""
    logm_NC = mixture(logp_NC, logq_NC, alpha)
    grad_NC = (alpha - 1) * (logp_NC + logq_NC - logm_NC).exp()
    return kl(logp_NC, logm_NC), grad_NC


def skew_reverse(logp_NC: Tensor, logq_NC: Tensor, alpha: float | Tensor) -> tuple[Tensor, Tensor]:
    """Return KL(q‖m) with m = (1−α)p + αq, and its grad q (log q − log m + 1 − α q/m)."""
    logm_NC = mixture(logq_NC, logp_NC, alpha)
    gap_NC, q_NC = logq_NC - logm_NC, logq_NC.exp()
    return (q_NC * gap_NC).sum(-1), q_NC * (gap_NC + 1 - alpha * gap_NC.exp())


def row_alphas(
    logp_N: Tensor,
    logq_N: Tensor,
    row_N: Tensor,
    by_student_N: Tensor,
    *,
    largest: float,
    smallest: float,
) -> Tensor:
    """Return DistiLLM-2's α of each token, (N,) (Ko et al. 2025, section 3.3).

    α = clip(1 − (1 − α₀) m / (d + 1e-5), smallest, α₀): d is the gap between the probabilities that
    the two models give a row's tokens (geometric means; on the student's text the student's minus
    the teacher's), and m the mean of d over the rows of that kind in the micro-batch. A row on
    which they differ more than usual gets the larger α, an easier target.

    Args:
        logp_N: log-probability that the teacher gives each token of the text.
        logq_N: the student's.
        row_N: number of the row that a token belongs to.
        by_student_N: whether the student wrote it.
        largest: α₀.
        smallest: the least α of a row.
    """
    import torch

    _, row_N, count_R = torch.unique(row_N, return_inverse=True, return_counts=True)
    teacher_R, student_R, own_R = (
        logp_N.new_zeros(len(count_R)).index_add(0, row_N, x.to(logp_N.dtype)) / count_R
        for x in (logp_N, logq_N, by_student_N)
    )
    gap_R = (teacher_R.exp() - student_R.exp()) * (1 - 2 * own_R)
    mean_R = gap_R.clone()
    for kind in (own_R > 0.5, own_R <= 0.5):
        mean_R[kind] = gap_R[kind].mean()
    alpha_R: Tensor = 1 - (1 - largest) * mean_R / (gap_R + 1e-5)
    return alpha_R.clamp(smallest, largest)[row_N]
