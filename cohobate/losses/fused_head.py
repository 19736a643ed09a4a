"""The LM head fused with the loss: no (B, S, V) tensor, and no second pass over the logits.

The selected tokens are walked in chunks. The forward pass computes the logits of a chunk, its loss,
and the gradients with respect to the hidden states and the head's weight, and drops the logits. The
student's head costs two matrix products a chunk, three if it is trained, and a live teacher's head
one more; recomputing the logits in the backward pass would cost one more each. The idea is that of
Liger Kernel's fused linear cross-entropy (Hsu et al. 2024). Products run in the model's precision,
softmaxes in float32.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cohobate.losses.soft_targets import ResponseTerm
from cohobate.losses.targets import Targets
from cohobate.models.lm_head import Head


def fused_head_loss(
    hidden_ND: Tensor,
    head: Head,
    terms: Sequence[ResponseTerm],
    targets: Targets,
    *,
    divisor: float | Tensor,
    chunk_tokens: int = 512,
    compiled: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return the loss, Σ over tokens and terms / `divisor`, and the loss of each token and term.

    Differentiable with respect to the hidden states and the head's weight and bias, whichever need
    it. Under autocast the products run in autocast's dtype, else in that of the hidden states.

    Args:
        hidden_ND: the student's last hidden state at the N selected positions alone.
        head: the student's head.
        terms: the terms of the loss.
        targets: the text's tokens and the teacher's distributions at those positions.
        divisor: number of selected tokens of the whole update, over all micro-batches and workers.
        chunk_tokens: how many tokens' logits exist at once; below 256 the products are slow.
        compiled: let torch.compile fuse what is elementwise against a live teacher; results
            differ by rounding alone.

    Returns:
        The loss (a scalar), and the weighted losses (N, F) of F terms, detached.

    Raises:
        UserError: a term that the targets cannot give.
    """
    loss, losses_NF = _FusedHead.apply(  # type: ignore[no-untyped-call]
        hidden_ND,
        head.weight_VD,
        head.bias_V,
        head,
        tuple(terms),
        targets,
        divisor,
        chunk_tokens,
        compiled,
    )
    return loss, losses_NF


_GRAD_ROWS = 2048
"""Rows of the head's gradient that are computed at once on a CPU, so that the block is converted to
float32 while it is in the cache."""


class _FusedHead(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0917
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        head: Head,
        terms: tuple[ResponseTerm, ...],
        targets: Targets,
        divisor: float | Tensor,
        chunk_tokens: int,
        compiled: bool,
    ) -> tuple[Tensor, Tensor]:
        device = hidden_ND.device.type
        dtype = hidden_ND.dtype
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
        # losses and sums of gradients are at least float32, whatever the products run in
        wide = torch.promote_types(dtype, torch.float32)
        # autocast would cast head and hidden states again in every product
        with torch.autocast(device, enabled=False):
            cast_VD = head.weight(dtype)
            grad_ND = torch.empty_like(hidden_ND, dtype=dtype)
            grad_VD: Tensor | None = None
            grad_V = _zeros(bias_V, wide) if ctx.needs_input_grad[2] else None
            losses_NF = hidden_ND.new_empty(len(hidden_ND), len(terms), dtype=wide)
            for part in targets.chunks(chunk_tokens):
                chunk_ND = hidden_ND[part].detach().to(dtype)
                chunk = targets.select(part).project()
                # products over whole chunks, as they are slow on few rows; what lies between is
                # elementwise, and goes block by block through the cache
                product_NV = chunk_ND @ cast_VD.T
                for block in chunk.chunks(chunk.block_tokens(len(cast_VD))):
                    logits_NV = head.finished(product_NV[block])
                    # the loss overwrites the logits; a soft cap's derivative needs them
                    capped_NV = logits_NV.clone() if head.softcap else logits_NV
                    block_targets = chunk.select(block)
                    block_NF, grad_NV = block_targets.loss_and_grad(
                        logits_NV, terms, compiled=compiled
                    )
                    if block_targets.weight_N is not None:
                        block_NF = block_NF * block_targets.weight_N[:, None]
                        grad_NV.mul_(block_targets.weight_N[:, None])
                    # a slice of a slice is a view: this writes into losses_NF
                    losses_NF[part][block] = block_NF
                    # the divisor is the whole update's, so that micro-batches only need to be added
                    grad_NV = head.product_grad(capped_NV, grad_NV).div_(divisor)
                    if grad_V is not None:
                        grad_V += grad_NV.sum(0)
                    product_NV[block] = grad_NV  # in the product's memory: no second (N, V)
                torch.mm(product_NV, cast_VD, out=grad_ND[part])
                if ctx.needs_input_grad[1]:
                    grad_VD = _add_weight_grad(grad_VD, product_NV, chunk_ND, head)
                del product_NV, chunk  # before the next ones are made
            if ctx.needs_input_grad[1] and grad_VD is None:  # no token at all
                grad_VD = _zeros(weight_VD, wide)
        # the backward pass only scales what is complete here
        ctx.save_for_backward(grad_ND.to(hidden_ND.dtype), grad_VD, grad_V)
        ctx.mark_non_differentiable(losses_NF)
        return losses_NF.sum() / divisor, losses_NF

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> Any:  # type: ignore[override]
        grads = ctx.saved_tensors
        # reading one scalar costs less than a copy of a gradient as large as the head
        if grad != 1:
            grads = [None if x is None else x * grad for x in grads]
        # none for the head, terms, targets, divisor, chunk size and `compiled`
        return *grads, *[None] * 6


def _add_weight_grad(
    total_VD: Tensor | None, grad_NV: Tensor, hidden_ND: Tensor, head: Head
) -> Tensor:
    """Return total + gradᵀ hidden, in float32 or wider; None stands for a total of zeros."""
    wide = torch.promote_types(grad_NV.dtype, torch.float32)
    first = total_VD is None
    if total_VD is None:
        # the memory of the last update's gradient, where the head kept it: fresh pages are slow
        kept_VD, size = head.take("gradient", wide), (grad_NV.shape[1], hidden_ND.shape[1])
        total_VD = hidden_ND.new_empty(size, dtype=wide) if kept_VD is None else kept_VD
    if grad_NV.dtype == wide:
        # beta=0 ignores what the memory holds
        return torch.addmm(total_VD, grad_NV.T, hidden_ND, beta=0 if first else 1, out=total_VD)
    # a 16-bit product is added in float32, some ids at a time on a CPU
    ids = _GRAD_ROWS if grad_NV.device.type == "cpu" else len(total_VD)
    for start in range(0, len(total_VD), ids):
        part = slice(start, start + ids)
        product_VD = grad_NV[:, part].T @ hidden_ND
        total_VD[part].copy_(product_VD) if first else total_VD[part].add_(product_VD)
    return total_VD


def _zeros(like: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if like is None else torch.zeros_like(like, dtype=dtype)
