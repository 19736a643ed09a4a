"""The gradient of the input embeddings, added where it belongs: to the rows that were read.

Autograd makes a tensor as large as the embeddings for it, mostly zeros, and adds that to what a
tied head gave. With a student of a few blocks these two passes over all embeddings took a quarter
of an update on a CPU.

Shapes: B batch, S sequence, V vocabulary, D width.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from cohobate import processes


@contextmanager
def sparse_gradient(model: PreTrainedModel) -> Iterator[None]:
    """Within the block, add the slope of embedded tokens to `weight.grad` itself.

    Only where it pays and is exact: plain embeddings on a CPU, one worker (what workers exchange is
    the gradient that autograd returns).
    """
    embedding: Any = model.get_input_embeddings()
    plain = type(embedding) is nn.Embedding and not embedding.scale_grad_by_freq
    if not plain or embedding.weight.device.type != "cpu" or processes.world_size() > 1:
        yield
        return
    untouched = embedding.forward

    def forward(ids_BS: Tensor) -> Tensor:
        embedded: Tensor
        if embedding.weight.requires_grad and torch.is_grad_enabled():
            hook = torch.zeros(
                (), requires_grad=True
            )  # weight's own gradient is not to wait for us
            embedded = _Embedded.apply(hook, embedding, ids_BS)  # type: ignore[no-untyped-call]
        else:
            embedded = untouched(ids_BS)
        return embedded

    embedding.forward = forward
    try:
        yield
    finally:
        del embedding.forward


class _Embedded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, _: Tensor, embedding: nn.Embedding, ids_BS: Tensor) -> Tensor:
        ctx.embedding, ctx.ids_BS = embedding, ids_BS
        return embedding.weight.detach()[ids_BS]

    @staticmethod
    def backward(ctx: Any, slope_BSD: Tensor) -> Any:  # type: ignore[override]
        weight_VD = ctx.embedding.weight
        if weight_VD.grad is None:
            weight_VD.grad = torch.zeros_like(weight_VD)
        if ctx.embedding.padding_idx is not None:
            slope_BSD = slope_BSD * (ctx.ids_BS != ctx.embedding.padding_idx)[..., None]
        ids, slopes = ctx.ids_BS.flatten(), slope_BSD.flatten(0, -2)
        weight_VD.grad.index_add_(0, ids, slopes.to(weight_VD.dtype))
        return None, None, None
