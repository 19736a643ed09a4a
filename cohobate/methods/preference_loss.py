"""The preference loss of a causal LM on micro-batches of pairs, and its training.

A micro-batch holds the chosen answers of some pairs, then their rejected answers, as TRL's collator
stacks them. It is read in one pass; the log-probability of an answer is the sum over its tokens.
"""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from cohobate import processes
from cohobate.data.examples import Example
from cohobate.errors import UserError
from cohobate.fast.forward_pass import forward
from cohobate.losses.divergences import Hard
from cohobate.losses.fused_head import fused_head_loss
from cohobate.losses.live_teacher import label_logprobs
from cohobate.losses.preferences import LossType, PairLogprobs, preference_losses
from cohobate.losses.targets import Targets
from cohobate.methods.reference_logprobs import ReferenceLogprobs, pair_batches
from cohobate.models import sharding
from cohobate.models.lm_head import check_head
from cohobate.training.batches import plan_batches
from cohobate.training.history import Update
from cohobate.training.hyperparameters import Hyperparameters
from cohobate.training.model_loss import ModelLoss
from cohobate.training.trainer import fit_batches


class PreferenceLoss(ModelLoss):
    """A causal LM and its preference losses, each with its weight.

    The loss is a function of few numbers, the answers' log-probabilities; the head stays fused. So
    it is computed in two steps: first these sums without a gradient, and what the loss is and how
    it changes with each of them; then the fused cross-entropy of all tokens, each weighted by the
    change of its answer. That has the loss' gradient, for one more product with the head, which is
    what recomputing the logits in the backward pass would cost.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        loss_type: Mapping[LossType, float],
        reference: ReferenceLogprobs,
        *,
        beta: float,
        label_smoothing: float = 0.0,
        chunk_tokens: int = 512,
        vocabulary: int | None = None,
    ) -> None:
        super().__init__()
        self.model, self.reference = model, reference
        self.loss_weights = dict(loss_type)  # not `loss_type`: Trainer reads that attribute
        self.beta, self.label_smoothing = beta, label_smoothing
        self.chunk_tokens, self.vocabulary = chunk_tokens, vocabulary
        self.metrics: dict[str, list[float]] = {"accuracies": [], "margins": []}

    def train(self, mode: bool = True) -> "PreferenceLoss":
        """Set the mode; dropout layers stay off, as in TRL: the reference is without dropout."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.Dropout):
                module.eval()
        return self

    def before_training(self) -> None:
        """Have the reference's log-probabilities: this model's own, of its initial weights."""
        self.eval()
        self.reference.load_or_compute(self.answer_logprobs, self.device)
        sharding.release(self)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        device: torch.device = next(self.model.parameters()).device
        return device

    @property
    def models(self) -> list[PreTrainedModel]:
        """The student."""
        return [self.model]

    @property
    def names(self) -> list[str]:
        """The loss types, where there are several; one alone is the loss itself."""
        return list(self.loss_weights) if len(self.loss_weights) > 1 else []

    def count(self, batch: Mapping[str, Any]) -> int:
        """Return how many pairs a batch has: the loss is a mean over pairs."""
        return len(batch["ids_BS"]) // 2

    def state(self) -> dict[str, Any]:
        """Return the metrics so far."""
        return self.metrics

    def restore(self, state: dict[str, Any]) -> None:
        """Set the metrics."""
        self.metrics = {name: list(values) for name, values in state.items()}

    def progress_note(self) -> str:
        """Return the reward accuracy of the last micro-batch."""
        return f"reward accuracy {self.metrics['accuracies'][-1]:.0%}"

    def summary(self) -> dict[str, float]:
        """Return accuracy and margin of the implicit rewards, over the last tenth of the run."""
        return {
            f"reward {name}": round(fmean(values[-max(1, len(values) // 10) :]), 4)
            for name, values in self.metrics.items()
        }

    def forward(
        self,
        *,
        ids_BS: Tensor,
        positions_N: Tensor,
        labels_N: Tensor,
        divisor: float | Tensor,
        teacher_inputs: Mapping[str, Any],
        by_student_N: Tensor | None = None,
        weight_N: Tensor | None = None,
        progress: float = 1.0,
    ) -> tuple[Tensor, Tensor]:
        """Return Σ losses / divisor, and each token's share of its pair's losses, (N, F)."""
        hidden_ND, row_N = self._read(ids_BS, positions_N)
        logp_B = self._answer_logprobs(hidden_ND, row_N, labels_N, len(ids_BS))
        # tokens of each answer, for the losses that are means over them
        tokens_B = torch.bincount(row_N, minlength=len(ids_BS))
        # B numbers: this graph ends at the sums, and is gone with this block
        with torch.enable_grad():
            logp_B.requires_grad_()
            pairs = self._pairs(logp_B, teacher_inputs["reference_B"], tokens_B)
            losses_BF = preference_losses(pairs, self.loss_weights)
            if weight_N is not None:
                # all tokens of a pair have its weight: the last one of each answer tells it
                weight_B = weight_N.to(logp_B)[tokens_B.cumsum(0) - 1]
                losses_BF = losses_BF * weight_B.chunk(2)[0][:, None]
            (grad_B,) = torch.autograd.grad(losses_BF.sum(), logp_B)
        self._note(pairs)
        surrogate, _ = fused_head_loss(
            hidden_ND,
            self.head_of(self.model, self.vocabulary),
            [Hard()],
            # cross-entropy is −log p: a token's weight is minus the gradient of its row's sum
            Targets(labels_N, weight_N=-grad_B[row_N]),
            divisor=divisor,
            chunk_tokens=self.chunk_tokens,
        )
        losses_BF = losses_BF.detach()
        # the surrogate adds its gradient, and nothing to the value
        loss = losses_BF.sum() / divisor + surrogate - surrogate.detach()
        tokens_B = pairs.chosen_tokens_B + pairs.rejected_tokens_B
        # rows b and b + B/2 are one pair: their tokens share its losses evenly
        return loss, (losses_BF / tokens_B[:, None])[row_N % len(losses_BF)]

    def _pairs(self, logp_B: Tensor, reference_B: Tensor, tokens_B: Tensor) -> PairLogprobs:
        # the first half of a micro-batch is chosen, the second rejected
        chosen_B, rejected_B = logp_B.chunk(2)
        reference_chosen_B, reference_rejected_B = reference_B.chunk(2)
        chosen_tokens_B, rejected_tokens_B = tokens_B.chunk(2)
        return PairLogprobs(
            chosen_B,
            rejected_B,
            reference_chosen_B,
            reference_rejected_B,
            chosen_tokens_B,
            rejected_tokens_B,
            self.beta,
            self.label_smoothing,
        )

    @torch.no_grad()
    def answer_logprobs(self, ids_BS: Tensor, positions_N: Tensor, labels_N: Tensor) -> Tensor:
        """Return the log-probability of each row's answer, the sum over its tokens, (B,)."""
        return sharding.call(self, self._read_answers, ids_BS, positions_N, labels_N)

    def _read_answers(self, ids_BS: Tensor, positions_N: Tensor, labels_N: Tensor) -> Tensor:
        hidden_ND, row_N = self._read(ids_BS, positions_N)
        return self._answer_logprobs(hidden_ND, row_N, labels_N, len(ids_BS))

    def _read(self, ids_BS: Tensor, positions_N: Tensor) -> tuple[Tensor, Tensor]:
        """Return the last hidden states at the answers' tokens, and the row of each."""
        hidden_ND = forward(self.model, ids_BS, positions_N).last_hidden_ND
        return hidden_ND, positions_N // ids_BS.shape[1]

    @torch.no_grad()
    def _answer_logprobs(
        self, hidden_ND: Tensor, row_N: Tensor, labels_N: Tensor, rows: int
    ) -> Tensor:
        device = hidden_ND.device.type
        if torch.is_autocast_enabled(device):  # products as the fused head computes them
            hidden_ND = hidden_ND.to(torch.get_autocast_dtype(device))
        head = self.head_of(self.model, self.vocabulary)
        logp_N = label_logprobs(hidden_ND, head, labels_N, self.chunk_tokens)
        return logp_N.new_zeros(rows).index_add_(0, row_N, logp_N)

    @torch.no_grad()
    def _note(self, pairs: PairLogprobs) -> None:
        margin_B = pairs.margin_B
        figures = torch.stack([(margin_B > 0).float().mean(), margin_B.mean()])
        # workers have as many pairs each, so the mean of their means is the mean
        means = processes.all_reduce_sum(figures) / processes.world_size()
        for name, value in zip(self.metrics, means.tolist(), strict=True):
            self.metrics[name].append(value)


def fit_pairs(
    model: PreTrainedModel,
    chosen: Sequence[Example],
    rejected: Sequence[Example],
    loss_fn: PreferenceLoss,
    hyperparameters: Hyperparameters,
    *,
    seed: int,
    label: str,
) -> list[Update]:
    """Train `model` in place on pairs, `chosen` and `rejected` being parallel.

    Raises:
        UserError: there is no pair; or loss or gradient are not finite: names the pairs.
    """
    if not chosen:
        raise UserError("there is nothing to learn: no pair is short enough", where=label)
    check_head(model)
    batches = [processes.shard(b) for b in plan_batches(chosen, hyperparameters, seed)]
    data = pair_batches(chosen, rejected, batches, hyperparameters.rows_at_once, loss_fn.reference)
    return fit_batches(
        model, data, loss_fn, hyperparameters, [0] * len(batches), seed=seed, label=label
    )
