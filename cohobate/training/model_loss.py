"""A causal language model made ready to learn: which weights move, and how it gives its loss.

Shapes: B batch, S sequence, N valid tokens, D width, T terms, F features.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from cohobate.errors import UserError
from cohobate.fast.forward import forward
from cohobate.fast.padding_free import has_row_attention
from cohobate.fast.sparse_embedding_gradient import sparse_gradient
from cohobate.losses.distillm2 import DistiLLM2
from cohobate.losses.features import TokenPositions
from cohobate.losses.fused_head import fused_head_loss
from cohobate.losses.live_teacher import label_logprobs
from cohobate.losses.soft_targets import ResponseTerm
from cohobate.losses.targets import Targets
from cohobate.models.layers import blocks_of
from cohobate.models.lm_head import Head
from cohobate.teachers.micro_batch import MicroBatch
from cohobate.teachers.target_sources import TargetSource
from cohobate.training.history import term_names
from cohobate.training.hyperparameters import SHORT_ROW, Freeze, Hyperparameters

NOTHING: Mapping[str, Any] = MappingProxyType({})


class CausalLMLoss(nn.Module):
    """A causal LM that returns its loss; the whole of it is what a Trainer or DDP wraps."""

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
        self._head: Head | None = None

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients; the memory of the head's is what its next one is written to."""
        head = self._head
        if set_to_none and head and head.weight_VD.is_leaf and head.weight_VD.grad is not None:
            head.keep("gradient", head.weight_VD.grad)
        super().zero_grad(set_to_none)

    @property
    def names(self) -> list[str]:
        """What the columns of the losses are: the types of the terms, numbered where repeated."""
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
    ) -> tuple[Tensor, Tensor]:
        """Return Σ losses / divisor, and the losses of each valid token and term, (N, T).

        Right padding under a causal mask: what is valid never attends to padding.
        """
        if self._head is None:  # not before: moving a model to its device makes new parameters
            self._head = Head.of(self.model, self.vocabulary)
        parts = self.matching.parts if self.matching else frozenset()
        seen = forward(self.model, ids_BS, positions_N, parts)
        hidden_ND = seen.last_ND
        batch = MicroBatch(ids_BS, positions_N, labels_N, teacher_inputs)
        targets, taught = Targets(labels_N, by_student_N=by_student_N, weight_N=weight_N), None
        if self.target_source is not None:
            teacher, taught = self.target_source.targets(batch)
            targets = targets._replace(teacher=teacher, share=self._share(progress))
            targets = self._with_alphas(targets, hidden_ND, batch)
        loss, losses_NF = self._response(hidden_ND, targets, divisor)
        if self.matching is None:
            return loss, losses_NF
        assert taught is not None, "features need a live teacher"
        mean = losses_NF.sum(-1).mean() if len(losses_NF) else 0.0
        features_NF = self.matching(
            seen, taught, TokenPositions(positions_N, ids_BS.shape[1]), mean
        )
        if weight_N is not None:
            features_NF = features_NF * weight_N[:, None]
        loss = loss + features_NF.sum() / divisor
        return loss, torch.cat([losses_NF, features_NF.detach()], -1)

    def _response(
        self, hidden_ND: Tensor, targets: Targets, divisor: float | Tensor
    ) -> tuple[Tensor, Tensor]:
        if not self.terms:
            return hidden_ND.sum() * 0, hidden_ND.new_empty(len(hidden_ND), 0)
        assert self._head is not None
        return fused_head_loss(
            hidden_ND,
            self._head,
            self.terms,
            targets,
            divisor=divisor,
            chunk_tokens=self.chunk_tokens,
            compiled=self.compiled,
        )

    def _share(self, progress: float) -> float:
        moving = self.target_source.progressive if self.target_source else None
        return moving.share(progress) if moving else 1.0

    def _with_alphas(self, targets: Targets, hidden_ND: Tensor, batch: MicroBatch) -> Targets:
        """Give each token its row's α, where a term has one."""
        term = next((t for t in self.terms if isinstance(t, DistiLLM2)), None)
        if term is None:
            return targets
        assert self._head is not None and targets.by_student_N is not None
        assert targets.teacher is not None
        chunk = self.chunk_tokens
        alpha_N = term.row_alphas(
            targets.teacher.label_logprobs(batch.labels_N, chunk),
            label_logprobs(hidden_ND, self._head, batch.labels_N, chunk),
            batch.row_N,
            targets.by_student_N,
        )
        return targets._replace(alpha_N=alpha_N)


def freeze(model: PreTrainedModel, frozen: Freeze) -> None:
    """Set which weights of a causal LM get no gradient.

    Raises:
        UserError: more blocks are to be frozen than there are.
    """
    model.requires_grad_(True)
    blocks = blocks_of(model)
    if frozen.layers > len(blocks):
        raise UserError(f"cannot freeze {frozen.layers} blocks: the model has {len(blocks)}")
    if frozen.embeddings:
        model.get_input_embeddings().requires_grad_(False)
    if frozen.head:
        model.get_output_embeddings().requires_grad_(False)
    for block in blocks[: frozen.layers]:
        block.requires_grad_(False)


@contextmanager
def attention(
    model: PreTrainedModel, hyperparameters: Hyperparameters, longest: int
) -> Iterator[None]:
    """Attend in the way that trains fastest for rows of this length; set it back afterwards."""
    before, wanted = model.config._attn_implementation, hyperparameters.attention
    if wanted == "auto":
        wanted = "eager"
        if model._supports_sdpa:  # older families (GPT-J, BLOOM) do not
            model.set_attn_implementation("sdpa")
            short = longest <= SHORT_ROW and not torch.cuda.is_available()
            wanted = "eager" if short and not has_row_attention(model) else "sdpa"
    model.set_attn_implementation(wanted)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


@contextmanager
def learning(
    model: PreTrainedModel, hyperparameters: Hyperparameters, longest: int, seed: int
) -> Iterator[None]:
    """Let a model learn within the block; its weights end as float32, in eval mode.

    Args:
        model: changed in place: what is frozen, adapted and rounded is as `hyperparameters` says.
        longest: tokens of the longest row.
        seed: of an adapter's first values.
    """
    freeze(model.float(), hyperparameters.freeze)
    still = blocks_of(model)[: hyperparameters.freeze.layers]
    with (
        attention(model, hyperparameters, longest),
        hyperparameters.adapter.attached(model, still, seed),
        hyperparameters.quantisation.rounding(model),
        sparse_gradient(model),
    ):
        yield
    model.eval().requires_grad_(True)
