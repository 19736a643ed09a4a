"""Modules that compute a training loss: what Trainer and DistributedDataParallel wrap.

A loss holds its model, as the losses of sentence-transformers do: `forward` takes a micro-batch and
returns the loss, so that the hidden states go straight into the fused head (no logits of a whole
batch exist), and DistributedDataParallel sees one forward pass. Losses are those of completion
tokens, (N, F); there is no loss of a row. `FusedTrainer` gives this module to Trainer as its model.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from cohobate.fast.forward_pass import forward
from cohobate.losses.distillm2 import DistiLLM2
from cohobate.losses.feature_losses import TokenPositions
from cohobate.losses.fused_head import fused_head_loss
from cohobate.losses.live_teacher import label_logprobs
from cohobate.losses.soft_targets import ResponseTerm
from cohobate.losses.targets import Targets
from cohobate.models import sharding
from cohobate.models.lm_head import Head
from cohobate.teachers.micro_batch import MicroBatch
from cohobate.teachers.target_sources import TargetSource
from cohobate.training.history import term_names

NOTHING: Mapping[str, Any] = MappingProxyType({})


class ModelLoss(nn.Module):
    """A module whose forward pass returns the loss of a micro-batch.

    `forward(**batch, divisor=...)` takes a batch of `MicroBatches`, and returns Σ losses / divisor
    (a scalar) and the losses of each token and of the F terms, (N, F), detached.
    """

    def __init__(self) -> None:
        super().__init__()
        self._head: Head | None = None

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients, but keep the head's memory: its next gradient is written there."""
        head = self._head
        if set_to_none and head and head.weight_VD.is_leaf and head.weight_VD.grad is not None:
            head.keep("gradient", head.weight_VD.grad)
        super().zero_grad(set_to_none)

    def head_of(self, model: PreTrainedModel, vocabulary: int | None) -> Head:
        """Return the head of the only model; one object, which keeps memory between updates."""
        # not earlier: moving a model to its device makes new parameters
        if self._head is None:
            self._head = Head.of(model, vocabulary)
        if not sharding.is_sharded(model):
            return self._head
        # what a head keeps between updates is as large as the whole weight
        head, self._head = self._head, None
        return head

    @property
    def models(self) -> list[PreTrainedModel]:
        """The models in training."""
        raise NotImplementedError

    @property
    def live_models(self) -> list[PreTrainedModel]:
        """The frozen teachers in memory."""
        return []

    @property
    def names(self) -> list[str]:
        """Columns of the history, one for each term of the loss."""
        raise NotImplementedError

    def count(self, batch: Mapping[str, Any]) -> int:
        """Return how many items of a batch the loss is a mean over: its completion tokens."""
        return len(batch["labels_N"])

    def before_training(self) -> None:
        """Compute what depends on the initial weights, on the device and in autocast."""

    def state(self) -> dict[str, Any]:
        """Return what a resumed run needs beside the weights, as JSON values."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Set what `state` returned."""

    def progress_note(self) -> str:
        """Return a figure for the progress line, or nothing."""
        return ""


class CausalLMLoss(ModelLoss):
    """A causal LM and its loss on text and on a teacher's distributions, term by term.

    Args:
        model: the student.
        terms: divergences and cross-entropies, each with its weight; the loss is their sum.
        chunk_tokens: tokens whose logits are in memory at once.
        target_source: gives the teacher's distributions; every soft term needs it.
        vocabulary: number of real ids where the head is padded to be wider.
        compiled: let torch.compile fuse the elementwise part of the loss.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        terms: Sequence[ResponseTerm],
        chunk_tokens: int = 512,
        target_source: TargetSource | None = None,
        vocabulary: int | None = None,
        *,
        compiled: bool = False,
    ) -> None:
        super().__init__()
        self.model, self.terms, self.chunk_tokens = model, tuple(terms), chunk_tokens
        self.compiled = compiled
        self.target_source, self.vocabulary = target_source, vocabulary
        self.matching = target_source.matching if target_source else None

    @property
    def models(self) -> list[PreTrainedModel]:
        """The student."""
        return [self.model]

    @property
    def live_models(self) -> list[PreTrainedModel]:
        """The teachers."""
        return self.target_source.live_models if self.target_source else []

    @property
    def names(self) -> list[str]:
        """Columns of the history: the types of the terms, numbered where one comes again."""
        return term_names([*self.terms, *(self.matching.terms if self.matching else ())])

    def forward(
        self,
        *,
        ids_BS: Tensor,
        positions_N: Tensor,
        labels_N: Tensor,
        divisor: float | Tensor,
        by_student_N: Tensor | None = None,
        weight_N: Tensor | None = None,
        progress: float = 1.0,
        teacher_inputs: Mapping[str, Any] = NOTHING,
        images: Sequence[tuple[str, ...]] = (),
    ) -> tuple[Tensor, Tensor]:
        """Return Σ losses / divisor, and the losses of each completion token and term, (N, F).

        Rows are padded on the right: under a causal mask no completion token attends to padding.
        """
        head = self.head_of(self.model, self.vocabulary)
        # only what features compare is kept of the forward pass
        parts = self.matching.parts if self.matching else frozenset()
        student_outputs = forward(self.model, ids_BS, positions_N, parts, images=images)
        hidden_ND = student_outputs.last_hidden_ND
        batch = MicroBatch(ids_BS, positions_N, labels_N, teacher_inputs)
        targets = Targets(labels_N, by_student_N=by_student_N, weight_N=weight_N)
        teacher_outputs = None
        if self.target_source is not None:
            teacher, teacher_outputs = self.target_source.targets(batch)
            targets = targets._replace(teacher=teacher, teacher_share=self._teacher_share(progress))
            targets = self._with_alphas(targets, hidden_ND, head, batch)
        loss, losses_NF = self._response(hidden_ND, head, targets, divisor)
        for teacher in self.live_models:
            # the fused head has read its head for the forward pass and for the backward pass
            sharding.release(teacher)
        if self.matching is None:
            return loss, losses_NF
        assert teacher_outputs is not None, "features need a live teacher"
        mean = losses_NF.sum(-1).mean() if len(losses_NF) else 0.0
        features_NF = self.matching(
            student_outputs, teacher_outputs, TokenPositions(positions_N, ids_BS.shape[1]), mean
        )
        if weight_N is not None:
            features_NF = features_NF * weight_N[:, None]
        loss = loss + features_NF.sum() / divisor
        return loss, torch.cat([losses_NF, features_NF.detach()], -1)

    def _response(
        self, hidden_ND: Tensor, head: Head, targets: Targets, divisor: float | Tensor
    ) -> tuple[Tensor, Tensor]:
        if not self.terms:
            # features alone: a zero with a graph, so that backward reaches the model
            return hidden_ND.sum() * 0, hidden_ND.new_empty(len(hidden_ND), 0)
        return fused_head_loss(
            hidden_ND,
            head,
            self.terms,
            targets,
            divisor=divisor,
            chunk_tokens=self.chunk_tokens,
            compiled=self.compiled,
        )

    def _teacher_share(self, progress: float) -> float:
        schedule = self.target_source.progressive if self.target_source else None
        return schedule.teacher_share(progress) if schedule else 1.0

    def _with_alphas(
        self, targets: Targets, hidden_ND: Tensor, head: Head, batch: MicroBatch
    ) -> Targets:
        """Give each token its row's α, where a term has one."""
        # α depends on a whole row, which the chunks of the fused head may split: it is computed
        # before
        term = next((t for t in self.terms if isinstance(t, DistiLLM2)), None)
        if term is None:
            return targets
        assert targets.by_student_N is not None
        assert targets.teacher is not None
        chunk = self.chunk_tokens
        alpha_N = term.row_alphas(
            targets.teacher.label_logprobs(batch.labels_N, chunk),
            label_logprobs(hidden_ND, head, batch.labels_N, chunk),
            batch.row_N,
            targets.by_student_N,
        )
        return targets._replace(alpha_N=alpha_N)
