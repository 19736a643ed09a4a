"""Losses on pairs of answers, of which the first is preferred: DPO and its kin.

Each is a function of the log-probabilities of whole answers, under TRL's name and with TRL's
formula (DPOTrainer 1.16; tests/cohobate/losses/test_preference_loss.py compares the two). Their
gradient is autograd's: the tensors hold a number for each pair, not for each token.

Shapes: J pairs of a micro-batch.
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

    chosen_J: "Tensor"
    rejected_J: "Tensor"
    reference_chosen_J: "Tensor"
    """By the model before training."""
    reference_rejected_J: "Tensor"
    chosen_tokens_J: "Tensor"
    """Number of tokens."""
    rejected_tokens_J: "Tensor"
    beta: float
    """β: how strongly the model is held to the reference; higher is closer. IPO's τ."""
    label_smoothing: float = 0.0
    """Share of the pairs whose preference is taken to be the wrong way round."""

    @property
    def chosen_ratio_J(self) -> "Tensor":  # noqa: N802
        """log π/π_ref of the chosen answers."""
        return self.chosen_J - self.reference_chosen_J

    @property
    def rejected_ratio_J(self) -> "Tensor":  # noqa: N802
        """log π/π_ref of the rejected answers."""
        return self.rejected_J - self.reference_rejected_J

    @property
    def chosen_reward_J(self) -> "Tensor":  # noqa: N802
        """DPO's implicit reward β · log π/π_ref of the chosen answers."""
        return self.beta * self.chosen_ratio_J

    @property
    def rejected_reward_J(self) -> "Tensor":  # noqa: N802
        """DPO's implicit reward of the rejected answers."""
        return self.beta * self.rejected_ratio_J

    @property
    def margin_J(self) -> "Tensor":  # noqa: N802
        """Difference of the two rewards."""
        return self.chosen_reward_J - self.rejected_reward_J

    @property
    def mean_ratio_difference_J(self) -> "Tensor":  # noqa: N802
        """Difference of the two log ratios, each a mean over the answer's tokens."""
        chosen_J = self.chosen_ratio_J / self.chosen_tokens_J
        return chosen_J - self.rejected_ratio_J / self.rejected_tokens_J


def preference_losses(pairs: PairLogprobs, loss_type: Mapping[LossType, float]) -> "Tensor":
    """Return the losses of each pair and type, each times its weight, (J, F).

    Raises:
        KeyError: there is no loss of such a name.
    """
    import torch

    columns = [weight * _LOSSES[name](pairs) for name, weight in loss_type.items()]
    return torch.stack(columns, -1)


def _logsigmoid(x_J: "Tensor") -> "Tensor":
    from torch.nn.functional import logsigmoid

    result_J: Tensor = logsigmoid(x_J)
    return result_J


def _sigmoid(p: PairLogprobs) -> "Tensor":
    """Rafailov et al. 2023, "Direct Preference Optimization", equation 7."""
    return -_logsigmoid(p.margin_J)


def _sigmoid_norm(p: PairLogprobs) -> "Tensor":
    """DPO on log ratios per token (Lambert et al. 2024, "Tülu 3", equation 6)."""
    return -_logsigmoid(p.beta * p.mean_ratio_difference_J)


def _hinge(p: PairLogprobs) -> "Tensor":
    """Zhao et al. 2023, "SLiC-HF"."""
    return (1 - p.margin_J).relu()


def _ipo(p: PairLogprobs) -> "Tensor":
    """Azar et al. 2023, equation 17, on log ratios per token, as its authors confirmed to TRL."""
    return (p.mean_ratio_difference_J - 1 / (2 * p.beta)) ** 2


def _exo_pair(p: PairLogprobs) -> "Tensor":
    """Ji et al. 2024, "EXO", equation 16: KL(softmax of the rewards ‖ (1 − ε, ε))."""
    right_J, wrong_J = _logsigmoid(p.margin_J), _logsigmoid(-p.margin_J)
    log_right, log_wrong = math.log1p(-p.label_smoothing), math.log(p.label_smoothing)
    return right_J.exp() * (right_J - log_right) + wrong_J.exp() * (wrong_J - log_wrong)


def _nca_pair(p: PairLogprobs) -> "Tensor":
    """Chen et al. 2024, "Noise Contrastive Alignment"."""
    return (
        -_logsigmoid(p.chosen_reward_J)
        - 0.5 * _logsigmoid(-p.chosen_reward_J)
        - 0.5 * _logsigmoid(-p.rejected_reward_J)
    )


def _robust(p: PairLogprobs) -> "Tensor":
    """Chowdhury et al. 2024, "Provably Robust DPO"."""
    clean_J = -(1 - p.label_smoothing) * _logsigmoid(p.margin_J)
    flipped_J = -p.label_smoothing * _logsigmoid(-p.margin_J)
    return (clean_J - flipped_J) / (1 - 2 * p.label_smoothing)


def _bco_pair(p: PairLogprobs) -> "Tensor":
    """Jung et al. 2024, "Binary Classifier Optimization", on pairs."""
    return -_logsigmoid(p.chosen_reward_J) - _logsigmoid(-p.rejected_reward_J)


def _sppo_hard(p: PairLogprobs) -> "Tensor":
    """Wu et al. 2024, "SPPO", equation 4.7, the winner's probability being 1."""
    winner_J = (p.chosen_ratio_J - 0.5 / p.beta) ** 2
    return winner_J + (p.rejected_ratio_J + 0.5 / p.beta) ** 2


def _aot(p: PairLogprobs) -> "Tensor":
    """Melnyk et al. 2024, "Alignment via Optimal Transport", on paired answers.

    Differences are sorted over the micro-batch, so that its size is part of the loss.
    """
    policy_J = (p.chosen_J - p.rejected_J).sort().values
    reference_J = (p.reference_chosen_J - p.reference_rejected_J).sort().values
    return _smoothed(p, policy_J - reference_J)


def _aot_unpaired(p: PairLogprobs) -> "Tensor":
    """The same, chosen and rejected answers sorted apart."""
    return _smoothed(p, p.chosen_ratio_J.sort().values - p.rejected_ratio_J.sort().values)


def _smoothed(p: PairLogprobs, difference_J: "Tensor") -> "Tensor":
    right_J, wrong_J = (_logsigmoid(sign * p.beta * difference_J) for sign in (1, -1))
    return -right_J * (1 - p.label_smoothing) - wrong_J * p.label_smoothing


def _apo_zero(p: PairLogprobs) -> "Tensor":
    """D'Oosterlinck et al. 2024, "APO", equation 7: for answers better than the model's own."""
    return 1 - p.chosen_reward_J.sigmoid() + p.rejected_reward_J.sigmoid()


def _apo_down(p: PairLogprobs) -> "Tensor":
    """The same, equation 8: for answers worse than the model's own."""
    return p.chosen_reward_J.sigmoid() + 1 - p.margin_J.sigmoid()


def _discopop(p: PairLogprobs) -> "Tensor":
    """Lu et al. 2024, "DiscoPOP", equation 5: logistic and exponential loss, blended."""
    blend_J = (p.margin_J / _DISCOPOP_TAU).sigmoid()
    return -_logsigmoid(p.margin_J) * (1 - blend_J) + (-p.margin_J).exp() * blend_J


def _sft(p: PairLogprobs) -> "Tensor":
    """Cross-entropy of the chosen answers, the mean over the micro-batch's tokens."""
    return (-p.chosen_J.sum() / p.chosen_tokens_J.sum()).expand(len(p.chosen_J))


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
