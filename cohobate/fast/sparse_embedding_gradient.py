"""The gradient of the input embeddings, added to the rows that were read and to no others.

Autograd makes a tensor as large as the embeddings for it, mostly zeros, and adds that to what a
tied head gave. With a student of a few blocks these two passes over all embeddings took a quarter
of an update on a CPU.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from cohobate import processes
from cohobate.fast.switch import enabled


@contextmanager
def sparse_gradient(model: PreTrainedModel) -> Iterator[None]:
    """Within the block, add the gradient of embedded tokens to `weight.grad` itself.

    Only where it pays and is exact: plain embeddings on a CPU, and one worker, as workers exchange
    the gradient that autograd returns.
    """
    embedding: Any = model.get_input_embeddings()
    plain = type(embedding) is nn.Embedding and not embedding.scale_grad_by_freq
    on_cpu = embedding.weight.device.type == "cpu"
    if not (enabled() and plain and on_cpu) or processes.world_size() > 1:
        yield
        return
    embedding.__class__ = _SparseEmbedding
    try:
        yield
    finally:
        embedding.__class__ = nn.Embedding


class _SparseEmbedding(nn.Embedding):
    # a class, as a function set on the module would stay that of the original in a copy of it

    def forward(self, ids_BS: Tensor) -> Tensor:
        if not (self.weight.requires_grad and torch.is_grad_enabled()):
            return super().forward(ids_BS)
        # An input of its own that requires a gradient calls `backward`. With the weight as input,
        # autograd would hold back the tied head's gradient until this one is there.
        trigger = torch.zeros((), requires_grad=True)
        embedded: Tensor = _Embedded.apply(trigger, self, ids_BS)  # type: ignore[no-untyped-call]
        return embedded


class _Embedded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, _: Tensor, embedding: nn.Embedding, ids_BS: Tensor) -> Tensor:
        ctx.embedding, ctx.ids_BS = embedding, ids_BS
        return embedding.weight.detach()[ids_BS]

    @staticmethod
    def backward(ctx: Any, grad_BSD: Tensor) -> Any:  # type: ignore[override]
        weight_VD = ctx.embedding.weight
        if weight_VD.grad is None:
            weight_VD.grad = torch.zeros_like(weight_VD)
        # as nn.Embedding does
        if ctx.embedding.padding_idx is not None:
            grad_BSD = grad_BSD * (ctx.ids_BS != ctx.embedding.padding_idx)[..., None]
        # index_add_ adds up what ids that occur several times give
        ids, grads = ctx.ids_BS.flatten(), grad_BSD.flatten(0, -2)
        weight_VD.grad.index_add_(0, ids, grads.to(weight_VD.dtype))
        # the gradient is in `weight.grad` already
        return None, None, None
