"""A frozen base in 4 bits under low-rank updates (QLoRA, Dettmers et al. 2023), by bitsandbytes.

The linear layers of the blocks hold their weights as NF4: 4 bits each, and a float32 scale for each
64. They compute with the weights that these stand for, in the number format of their inputs.
Afterwards the layers hold those weights in float32: the updates were learnt over them, and are
merged into them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from cohobate.errors import UserError
from cohobate.models.layers import blocks_of

BLOCK = 64
"""Weights that share a scale."""


@contextmanager
def four_bit_blocks(model: PreTrainedModel) -> Iterator[None]:
    """Hold the linear layers of a causal LM's blocks in 4 bits within the block.

    Raises:
        UserError: the blocks have no linear layers, or one whose inputs are no multiple of 64.
    """
    layers = _linear_layers(model, nn.Linear)
    if not layers:
        raise _refused(f"{type(model).__name__} has no linear layers to hold in 4 bits")
    for _, name, layer in layers:
        # bitsandbytes 0.50 on a CPU: a block that spans two rows comes back wrong, in silence
        if layer.in_features % BLOCK:
            problem = f"{name} has {layer.in_features} inputs, no multiple of {BLOCK}"
            raise _refused(f"{problem}: it cannot be held in 4 bits")
    for parent, name, layer in layers:
        setattr(parent, name, _quantised(layer))
    yield
    # as the layers beneath the updates, which stay around them
    for parent, name, layer in _four_bit_layers(model):
        setattr(parent, name, _plain(layer))


def _refused(problem: str) -> UserError:
    return UserError(problem, where="adapter.base_precision", fix="base_precision: bfloat16")


def _linear_layers(model: PreTrainedModel, kind: type) -> list[tuple[Any, str, Any]]:
    """Return the parent, name and layer of each layer of a kind in the blocks."""
    return [
        (parent, name, layer)
        for block in blocks_of(model)
        for parent in block.modules()
        for name, layer in parent.named_children()
        if type(layer) is kind
    ]


def _four_bit_layers(model: PreTrainedModel) -> list[tuple[Any, str, Any]]:
    from bitsandbytes.nn import Linear4bit

    return _linear_layers(model, Linear4bit)


def _quantised(layer: nn.Linear) -> Any:
    from bitsandbytes.nn import Linear4bit, Params4bit

    with torch.device("meta"):
        four_bit = Linear4bit(
            layer.in_features, layer.out_features, bias=layer.bias is not None, quant_type="nf4"
        )
    weight = Params4bit(
        layer.weight.detach().float(),
        requires_grad=False,
        quant_type="nf4",
        blocksize=BLOCK,
        compress_statistics=False,
    )
    # bitsandbytes quantises as a weight is moved
    four_bit.weight, four_bit.bias = weight.to(layer.weight.device), layer.bias
    return four_bit


def _plain(layer: Any) -> nn.Linear:
    """Return a layer with the weights that those of 4 bits stand for, in float32."""
    from bitsandbytes.functional import dequantize_4bit

    with torch.device("meta"):
        plain = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
    weight_OI = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    plain.weight = nn.Parameter(weight_OI.float(), requires_grad=False)
    plain.bias = layer.bias
    return plain
