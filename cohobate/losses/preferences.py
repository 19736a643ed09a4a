"""Losses on pairs of answers, of which the first is preferred: DPO and its kin.

Each is a function of the log-probabilities of whole answers, under TRL's name and with TRL's
formula (DPOTrainer 1.16; tests/cohobate/losses/test_preference_loss.py compares the two). Their
gradient is autograd's: the tensors hold a number for each pair, not for each token.
"""

# ruff: noqa: N815 (fields that are tensors carry shape suffixes too)

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

LossType = Literal[
    "sigmoid",
    "sigmoid_norm",
    "hinge",
    "ipo",
    "exo_pair",
    "nca_pair",
    "robust",
    "bco_pair",
    "sppo_hard",
    "aot",
    "aot_unpaired",
    "apo_zero",
    "apo_down",
    "discopop",
    "sft",
]
_DISCOPOP_TAU = 0.05
"""Temperature of DiscoPOP's modulation, as its authors recommend."""


class PairLogprobs(NamedTuple):
    """Log-probabilities of the answers of some pairs, each the sum over the answer's tokens."""

    chosen_B: "Tensor"
    rejected_B: "Tensor"
    reference_chosen_B: "Tensor"
    """By the model before training."""
    reference_rejected_B: "Tensor"
    chosen_tokens_B: "Tensor"
    """Number of tokens."""
    rejected_tokens_B: "Tensor"
    beta: float
    """β: how strongly the model is held to the reference; higher is closer. IPO's τ."""
    label_smoothing: float = 0.0
    """Share of the pairs whose preference is taken to be the wrong way round."""

    @property
    def chosen_ratio_B(self) -> "Tensor":  # noqa: N802
        """log π/π_ref of the chosen answers."""
        return self.chosen_B - self.reference_chosen_B

    @property
    def rejected_ratio_B(self) -> "Tensor":  # noqa: N802
        """log π/π_ref of the rejected answers."""
        return self.rejected_B - self.reference_rejected_B

    @property
    def chosen_reward_B(self) -> "Tensor":  # noqa: N802
        """DPO's implicit reward β · log π/π_ref of the chosen answers."""
        return self.beta * self.chosen_ratio_B

    @property
    def rejected_reward_B(self) -> "Tensor":  # noqa: N802
        """DPO's implicit reward of the rejected answers."""
        return self.beta * self.rejected_ratio_B

    @property
    def margin_B(self) -> "Tensor":  # noqa: N802
        """Difference of the two rewards."""
        return self.chosen_reward_B - self.rejected_reward_B

    @property
    def mean_ratio_difference_B(self) -> "Tensor":  # noqa: N802
        """Difference of the two log ratios, each a mean over the answer's tokens."""
        chosen_B = self.chosen_ratio_B / self.chosen_tokens_B
        return chosen_B - self.rejected_ratio_B / self.rejected_tokens_B


def preference_losses(pairs: PairLogprobs, loss_type: Mapping[LossType, float]) -> "Tensor":
    """Return the losses of each pair and type, each times its weight, (J, F).

    Raises:
        KeyError: there is no loss of such a name.
    """
    import torch

    columns = [weight * _LOSSES[name](pairs) for name, weight in loss_type.items()]
    return torch.stack(columns, -1)


def _logsigmoid(x_B: "Tensor") -> "Tensor":
    from torch.nn.functional import logsigmoid

    result_B: Tensor = logsigmoid(x_B)
    return result_B


def _sigmoid(p: PairLogprobs) -> "Tensor":
    """Rafailov et al. 2023, "Direct Preference Optimization", equation 7."""
    return -_logsigmoid(p.margin_B)


def _sigmoid_norm(p: PairLogprobs) -> "Tensor":
    """DPO on log ratios per token (Lambert et al. 2024, "Tülu 3", equation 6)."""
    return -_logsigmoid(p.beta * p.mean_ratio_difference_B)


def _hinge(p: PairLogprobs) -> "Tensor":
    """Zhao et al. 2023, "SLiC-HF"."""
    return (1 - p.margin_B).relu()


def _ipo(p: PairLogprobs) -> "Tensor":
    """Azar et al. 2023, equation 17, on log ratios per token, as its authors confirmed to TRL."""
    return (p.mean_ratio_difference_B - 1 / (2 * p.beta)) ** 2


def _exo_pair(p: PairLogprobs) -> "Tensor":
    """Ji et al. 2024, "EXO", equation 16: KL(softmax of the rewards ‖ (1 − ε, ε))."""
    right_B, wrong_B = _logsigmoid(p.margin_B), _logsigmoid(-p.margin_B)
    log_right, log_wrong = math.log1p(-p.label_smoothing), math.log(p.label_smoothing)
    return right_B.exp() * (right_B - log_right) + wrong_B.exp() * (wrong_B - log_wrong)


def _nca_pair(p: PairLogprobs) -> "Tensor":
    """Chen et al. 2024, "Noise Contrastive Alignment"."""
    return (
        -_logsigmoid(p.chosen_reward_B)
        - 0.5 * _logsigmoid(-p.chosen_reward_B)
        - 0.5 * _logsigmoid(-p.rejected_reward_B)
    )


def _robust(p: PairLogprobs) -> "Tensor":
    """Chowdhury et al. 2024, "Provably Robust DPO"."""
    clean_B = -(1 - p.label_smoothing) * _logsigmoid(p.margin_B)
    flipped_B = -p.label_smoothing * _logsigmoid(-p.margin_B)
    return (clean_B - flipped_B) / (1 - 2 * p.label_smoothing)


def _bco_pair(p: PairLogprobs) -> "Tensor":
    """Jung et al. 2024, "Binary Classifier Optimization", on pairs."""
    return -_logsigmoid(p.chosen_reward_B) - _logsigmoid(-p.rejected_reward_B)


def _sppo_hard(p: PairLogprobs) -> "Tensor":
    """Wu et al. 2024, "SPPO", equation 4.7, the winner's probability being 1."""
    winner_B = (p.chosen_ratio_B - 0.5 / p.beta) ** 2
    return winner_B + (p.rejected_ratio_B + 0.5 / p.beta) ** 2


def _aot(p: PairLogprobs) -> "Tensor":
    """Melnyk et al. 2024, "Alignment via Optimal Transport", on paired answers.

    Differences are sorted over the micro-batch, so that its size is part of the loss.
    """
    policy_B = (p.chosen_B - p.rejected_B).sort().values
    reference_B = (p.reference_chosen_B - p.reference_rejected_B).sort().values
    return _smoothed(p, policy_B - reference_B)


def _aot_unpaired(p: PairLogprobs) -> "Tensor":
    """The same, chosen and rejected answers sorted apart."""
    return _smoothed(p, p.chosen_ratio_B.sort().values - p.rejected_ratio_B.sort().values)


def _smoothed(p: PairLogprobs, difference_B: "Tensor") -> "Tensor":
    right_B, wrong_B = (_logsigmoid(sign * p.beta * difference_B) for sign in (1, -1))
    return -right_B * (1 - p.label_smoothing) - wrong_B * p.label_smoothing


def _apo_zero(p: PairLogprobs) -> "Tensor":
    """D'Oosterlinck et al. 2024, "APO", equation 7: for answers better than the model's own."""
    return 1 - p.chosen_reward_B.sigmoid() + p.rejected_reward_B.sigmoid()


def _apo_down(p: PairLogprobs) -> "Tensor":
    """The same, equation 8: for answers worse than the model's own."""
    return p.chosen_reward_B.sigmoid() + 1 - p.margin_B.sigmoid()


def _discopop(p: PairLogprobs) -> "Tensor":
    """Lu et al. 2024, "DiscoPOP", equation 5: logistic and exponential loss, blended."""
    blend_B = (p.margin_B / _DISCOPOP_TAU).sigmoid()
    return -_logsigmoid(p.margin_B) * (1 - blend_B) + (-p.margin_B).exp() * blend_B


def _sft(p: PairLogprobs) -> "Tensor":
    """Cross-entropy of the chosen answers, the mean over the micro-batch's tokens."""
    return (-p.chosen_B.sum() / p.chosen_tokens_B.sum()).expand(len(p.chosen_B))


_LOSSES: "Mapping[LossType, Callable[[PairLogprobs], Tensor]]" = {
    "sigmoid": _sigmoid,
    "sigmoid_norm": _sigmoid_norm,
    "hinge": _hinge,
    "ipo": _ipo,
    "exo_pair": _exo_pair,
    "nca_pair": _nca_pair,
    "robust": _robust,
    "bco_pair": _bco_pair,
    "sppo_hard": _sppo_hard,
    "aot": _aot,
    "aot_unpaired": _aot_unpaired,
    "apo_zero": _apo_zero,
    "apo_down": _apo_down,
    "discopop": _discopop,
    "sft": _sft,
}
