"""DistiLLM-2: skew KLs whose direction and α depend on the row that a token belongs to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from cohobate.losses.base_divergence import Divergence
from cohobate.losses.functional import kl, mixture, skew_forward_kl, skew_reverse_kl

if TYPE_CHECKING:
    from torch import Tensor


class DistiLLM2(Divergence):
    """DistiLLM-2's contrastive loss: KL(p ‖ αp + (1−α)q) on given text, KL(q ‖ (1−α)p + αq) on
    the student's own, each row with an α of its own (`row_alphas`).

    Ko et al. 2025, "DistiLLM-2: A Contrastive Approach Boosts the Distillation of LLMs", sections
    3.1 and 3.3.

    Takes logp_NC and logq_NC, (N, C); returns (N,).
    """

    type: Literal["distillm2"] = "distillm2"
    alpha: float = Field(0.1, gt=0, lt=1)
    """α₀: the largest share, and that of a row of mean gap."""
    floor: float = Field(0.01, gt=0, lt=1)
    """The smallest share."""
    _alpha_N1: Tensor  # noqa: N815
    _by_student_N1: Tensor  # noqa: N815

    def with_alphas(self, alpha_N: Tensor, by_student_N: Tensor) -> DistiLLM2:
        """Return the divergence at N given tokens.

        Args:
            alpha_N: the α of each token's row, from `row_alphas`.
            by_student_N: whether the student wrote the token's row.
        """
        term = self.model_copy()
        term._alpha_N1 = alpha_N[:, None]
        term._by_student_N1 = by_student_N[:, None]
        return term

    def per_token(self, logp_NC: Tensor, logq_NC: Tensor) -> Tensor:
        """Return the skew KL of each token, (N,)."""
        forward_N = kl(logp_NC, mixture(logp_NC, logq_NC, self._alpha_N1))
        reverse_N = kl(logq_NC, mixture(logq_NC, logp_NC, self._alpha_N1))
        return reverse_N.where(self._by_student_N1[:, 0], forward_N)

    def loss_and_grad(self, logp_NC: Tensor, logq_NC: Tensor) -> tuple[Tensor, Tensor]:
        """Return it and its gradient, that of the token's own direction."""
        forward = skew_forward_kl(logp_NC, logq_NC, self._alpha_N1)
        reverse = skew_reverse_kl(logp_NC, logq_NC, self._alpha_N1)
        own_N1 = self._by_student_N1
        return reverse[0].where(own_N1[:, 0], forward[0]), reverse[1].where(own_N1, forward[1])

    def row_alphas(
        self, logp_N: Tensor, logq_N: Tensor, row_N: Tensor, by_student_N: Tensor
    ) -> Tensor:
        """Return the α of each token, (N,): that of its row (Ko et al. 2025, section 3.3).

        α = clip(1 − (1 − α₀) m / (d + 1e-5), floor, α₀). d is the gap between the probabilities
        that the two models give a row's tokens: geometric means, teacher minus student; on the
        student's own text student minus teacher. m is the mean of d over the rows of that kind in
        the micro-batch. A row on which the models differ more than usual gets the larger α, an
        easier target.

        Args:
            logp_N: log-probability that the teacher gives each token of the text.
            logq_N: log-probability that the student gives it.
            row_N: number of the row that a token belongs to.
            by_student_N: whether the student wrote that row.
        """
        import torch

        # B counts the rows that have a token here
        _, row_N, count_B = torch.unique(row_N, return_inverse=True, return_counts=True)
        teacher_B, student_B, own_B = (
            logp_N.new_zeros(len(count_B)).index_add(0, row_N, x.to(logp_N.dtype)) / count_B
            for x in (logp_N, logq_N, by_student_N)
        )
        gap_B = (teacher_B.exp() - student_B.exp()) * (1 - 2 * own_B)
        mean_B = gap_B.clone()
        for kind in (own_B > 0.5, own_B <= 0.5):  # own_B is 0 or 1, but for rounding
            mean_B[kind] = gap_B[kind].mean()
        alpha_B: Tensor = 1 - (1 - self.alpha) * mean_B / (gap_B + 1e-5)
        return alpha_B.clamp(self.floor, self.alpha)[row_N]
