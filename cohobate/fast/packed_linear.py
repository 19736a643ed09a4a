"""Linear layers of a frozen model whose weights are packed once for the processor's products.

PyTorch passes a weight to the processor's library in row order, and the library rearranges it for
every product. With the few rows of a decoding step that costs more than the product. A frozen layer
can keep the rearranged copy: 1.2 to 2.5 times as fast in bfloat16 up to a thousand rows, 1.05 to
1.4 times in float32 up to sixty-four, in large layers with AVX-512.

`torch.ops.mkldnn` are the operators that torch.compile's own packing calls, and private:
tests/cohobate/fast/test_packed_linear.py is their contract.
"""

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from cohobate.fast.switch import enabled
from cohobate.models.number_formats import flags

_ROWS = {torch.bfloat16: range(1, 1025), torch.float32: range(6, 65)}
"""Numbers of rows with which it pays. The batch alone decides whether the packed weight is used, so
that its outputs depend on no other batch."""
_LARGE = 1 << 19
"""Weights from which a float32 layer is packed: 576 x 576 runs at .65 to .98 of the plain speed."""
_HINT = 64  # rows of the products that the library is to pack for


class PackedLinear(nn.Linear):
    """A linear layer that has its weight in the processor's order too."""

    packed_OI: Tensor  # noqa: N815
    packed_from: tuple[Tensor, int]
    """The weight that was packed, and its version (a count of changes in place) at that time."""

    def forward(self, rows_NI: Tensor) -> Tensor:
        """Return rows Wᵀ + b."""
        count = rows_NI.numel() // rows_NI.shape[-1]
        # the operator has no derivative
        learns = torch.is_grad_enabled() and rows_NI.requires_grad
        # another weight was set since, or this one was written to: the copy is out of date
        source_OI, version = self.packed_from
        stale = self.weight.data_ptr() != source_OI.data_ptr() or self.weight._version != version
        cast = rows_NI.dtype != self.packed_OI.dtype or torch.is_autocast_enabled("cpu")
        if learns or stale or cast or count not in _ROWS[rows_NI.dtype]:
            return super().forward(rows_NI)
        product: Tensor = torch.ops.mkldnn._linear_pointwise(
            rows_NI, self.packed_OI, self.bias, "none", [], ""
        )
        return product


def pack(model: Any, largest: int) -> None:
    """Pack the plain linear layers of a frozen model, where it pays.

    `largest`: bytes of their weights up to which it is done, as the copy comes on top of them.
    """
    if not enabled():
        return
    layers = [layer for layer in model.modules() if type(layer) is nn.Linear and _can(layer)]
    # all layers or none
    if sum(layer.weight.nbytes for layer in layers) > largest:
        return
    for layer in layers:
        _pack(layer)


def packed_bytes(model: Any) -> int:
    """Return the bytes of the packed copies of a model's weights."""
    return sum(layer.weight.nbytes for layer in _packed(model))


@contextmanager
def unpacked(model: Any) -> Iterator[None]:
    """Within the block, use no packed weight: a counter of products does not know the operator."""
    layers = _packed(model)
    for layer in layers:
        layer.__class__ = nn.Linear
    try:
        yield
    finally:
        for layer in layers:
            layer.__class__ = PackedLinear


def _packed(model: Any) -> list[Any]:
    return [layer for layer in model.modules() if type(layer) is PackedLinear]


def _pack(layer: Any) -> None:
    # the same object: its hooks, its name and tied weights stay
    layer.__class__ = PackedLinear
    # the weight is kept, not its address alone: freed memory could be used again
    layer.packed_from = layer.weight.detach(), layer.weight._version
    layer.packed_OI = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), _HINT)


def _can(layer: nn.Linear) -> bool:
    weight_OI = layer.weight
    if type(weight_OI.data) is not Tensor:  # such as torchao's, which have products of their own
        return False
    if weight_OI.device.type != "cpu" or platform.machine() not in {"x86_64", "AMD64"}:
        return False
    if weight_OI.dtype not in _ROWS or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    if weight_OI.dtype is torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    # with AVX2 alone the packed layer runs at .92 to 1.0 of the plain speed, measured
    return "avx512_f" in flags() and weight_OI.numel() >= _LARGE
