"""The output head and the loss as one operation: no (B, S, V) tensor, and no second pass.

The valid rows are walked in chunks. Of each chunk the logits, the loss and its gradient with
respect to the hidden rows and the head's weight are computed at once in the forward pass, and the
logits are dropped. Products are taken over whole chunks, as they starve on few rows; what lies
between is elementwise and goes block by block through the cache, the grad taking the logits'
place: two products with the student's head (three where the head is trained, and one
more with a live teacher's) instead of the recomputation's one more each. The idea is that of Liger
Kernel's fused linear cross-entropy (Hsu et al. 2024). Products run in the model's precision, the
softmax in float32.

Shapes: N valid tokens, V vocabulary, I some of its ids, D width, K stored ids, C outcomes (K + 1),
T terms.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cohobate.losses.targets import Targets
from cohobate.losses.token_losses import ResponseTerm, loss_and_grad
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
    """Return the loss, Σ over tokens and terms / `divisor`, and what each term gave per token.

    Differentiable with respect to the hidden rows and the head's weight and bias, whichever need
    it. Under autocast the products run in autocast's dtype, else in that of the hidden rows.

    Args:
        hidden_ND: the student's last hidden state at the valid positions alone.
        head: the student's head.
        terms: what the loss is made of.
        targets: what is to be predicted there.
        divisor: number of valid tokens of the whole update, over all micro-batches and workers.
        chunk_tokens: how many rows' logits exist at once; below 256 the products starve.
        compiled: let torch.compile fuse what is elementwise against a live teacher; same numbers,
            but for rounding.

    Returns:
        The loss (a scalar), and weighted losses (N, T), detached.
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


_IDS = 2048
"""Ids whose rows of the head's grad are made at once on a CPU: they are widened in the cache."""


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
        wide = torch.promote_types(dtype, torch.float32)
        with torch.autocast(device, enabled=False):
            product_VD = head.weight(dtype)
            grad_ND = torch.empty_like(hidden_ND, dtype=dtype)
            grad_VD: Tensor | None = None
            grad_V = _zeros(bias_V, wide) if ctx.needs_input_grad[2] else None
            losses_NF = hidden_ND.new_empty(len(hidden_ND), len(terms), dtype=wide)
            for part in targets.parts(chunk_tokens):
                rows_ND = hidden_ND[part].detach().to(dtype)
                chunk = targets.rows(part).projected()
                product_NV = rows_ND @ product_VD.T
                for block in chunk.parts(chunk.block_tokens(len(product_VD))):
                    logits_NV = head.finished(product_NV[block])
                    capped_NV = logits_NV.clone() if head.softcap else logits_NV
                    some = chunk.rows(block)
                    each_NF, grad_NV = loss_and_grad(logits_NV, terms, some, compiled=compiled)
                    if some.weight_N is not None:
                        each_NF = each_NF * some.weight_N[:, None]
                        grad_NV.mul_(some.weight_N[:, None])
                    losses_NF[part][block] = each_NF
                    grad_NV = head.product_grad(capped_NV, grad_NV).div_(divisor)
                    if grad_V is not None:
                        grad_V += grad_NV.sum(0)
                    product_NV[block] = grad_NV
                torch.mm(product_NV, product_VD, out=grad_ND[part])
                if ctx.needs_input_grad[1]:
                    grad_VD = _plus_product(grad_VD, product_NV, rows_ND, head)
                del product_NV, chunk  # before the next ones are made
            if ctx.needs_input_grad[1] and grad_VD is None:  # no valid token
                grad_VD = _zeros(weight_VD, wide)
        ctx.save_for_backward(grad_ND.to(hidden_ND.dtype), grad_VD, grad_V)
        ctx.mark_non_differentiable(losses_NF)
        return losses_NF.sum() / divisor, losses_NF

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> Any:  # type: ignore[override]
        grads = ctx.saved_tensors
        if grad != 1:  # a copy of what is as large as the head costs more than to look
            grads = [None if s is None else s * grad for s in grads]
        return *grads, *[None] * 6


def _plus_product(total_VD: Tensor | None, grad_NV: Tensor, rows_ND: Tensor, head: Head) -> Tensor:
    """Return total + slopeᵀ rows in float32 or wider; the first is written, not added to zeros."""
    wide = torch.promote_types(grad_NV.dtype, torch.float32)
    first = total_VD is None
    if total_VD is None:
        spare_VD, size = head.take("gradient", wide), (grad_NV.shape[1], rows_ND.shape[1])
        total_VD = rows_ND.new_empty(size, dtype=wide) if spare_VD is None else spare_VD
    if grad_NV.dtype == wide:
        return torch.addmm(total_VD, grad_NV.T, rows_ND, beta=0 if first else 1, out=total_VD)
    some = _IDS if grad_NV.device.type == "cpu" else len(total_VD)
    for start in range(0, len(total_VD), some):
        part = slice(start, start + some)
        product_ID = grad_NV[:, part].T @ rows_ND
        total_VD[part].copy_(product_ID) if first else total_VD[part].add_(product_ID)
    return total_VD


def _zeros(like: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if like is None else torch.zeros_like(like, dtype=dtype)
