"""The output head of a causal LM, apart from its body.

Shapes: N rows, V vocabulary, D width.
"""

# ruff: noqa: N815 (fields that are tensors carry shape suffixes too)

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from tasks.errors import UserError
from tasks.models.packed import PackedLinear


@dataclass(frozen=True)
class Head:
    """What turns hidden rows into logits: `cap(scale · (h Wᵀ + b))`, over the real ids alone."""

    weight_VD: Tensor
    bias_V: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None
    """Logits are softcap · tanh(logits / softcap) (Gemma 2)."""
    packed: Any = None
    """The layer itself, where its weight is packed for products (tasks/models/packed.py)."""

    @classmethod
    def of(cls, model: Any, vocabulary: int | None = None) -> "Head":
        """Return the head of a causal LM; `vocabulary` leaves out the ids of mere padding."""
        linear, config = model.get_output_embeddings(), model.config.get_text_config()
        weight_VD, bias_V = linear.weight, getattr(linear, "bias", None)
        whole = vocabulary is None or vocabulary >= len(weight_VD)
        packed = linear if whole and bias_V is None and isinstance(linear, PackedLinear) else None
        if not whole:
            weight_VD = weight_VD[:vocabulary]
            bias_V = None if bias_V is None else bias_V[:vocabulary]
        scale = getattr(config, "logit_scale", None) or 1.0  # Cohere multiplies, Granite divides
        scale /= getattr(config, "logits_scaling", None) or 1.0
        softcap = getattr(config, "final_logit_softcapping", None)
        return cls(weight_VD, bias_V, scale, softcap, packed)

    @cached_property
    def _kept(self) -> dict[tuple[str, torch.dtype], Tensor]:
        return {}

    def keep(self, what: str, tensor: Tensor) -> None:
        """Keep memory as large as the head to be written again: on a CPU fresh memory is dear."""
        if tensor.device.type == "cpu":
            self._kept[what, tensor.dtype] = tensor

    def take(self, what: str, dtype: torch.dtype) -> Tensor | None:
        """Return memory that was kept, whatever stands in it; the caller has it alone."""
        return self._kept.pop((what, dtype), None)

    def weight(self, dtype: torch.dtype) -> Tensor:
        """Return the weight in the dtype of the products, until it is asked for again.

        A frozen one is cast only once; one that learns is cast anew, to where it was.
        """
        weight_VD = self.weight_VD.detach()
        if weight_VD.dtype == dtype:
            return weight_VD
        cast_VD = self._kept.get(("cast", dtype))
        if cast_VD is None:
            cast_VD = weight_VD.to(dtype)
        elif self.weight_VD.requires_grad:
            cast_VD.copy_(weight_VD)
        if not self.weight_VD.requires_grad or cast_VD.device.type == "cpu":
            self._kept["cast", dtype] = cast_VD
        return cast_VD

    def product(self, hidden_ND: Tensor) -> Tensor:
        """Return h Wᵀ in the rows' dtype."""
        if self.packed is not None and self.packed.weight.dtype == hidden_ND.dtype:
            product_NV: Tensor = self.packed(hidden_ND)
            return product_NV
        return hidden_ND @ self.weight(hidden_ND.dtype).T

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """Return logits in float32 (or wider)."""
        return self.finished(self.product(hidden_ND))

    def finished(self, product_NV: Tensor) -> Tensor:
        """Return logits in float32 (or wider) from h Wᵀ, which may be overwritten."""
        logits_NV = product_NV.to(torch.promote_types(product_NV.dtype, torch.float32))
        if self.bias_V is not None:
            logits_NV += self.bias_V.detach()
        if self.scale != 1:
            logits_NV *= self.scale
        if self.softcap:
            logits_NV = logits_NV.div_(self.softcap).tanh_().mul_(self.softcap)
        return logits_NV

    def slope_below(self, logits_NV: Tensor, slope_NV: Tensor) -> Tensor:
        """Carry d loss/d logits (changed in place) back to the product's result."""
        if self.softcap:
            slope_NV *= 1 - (logits_NV / self.softcap) ** 2
        return slope_NV.mul_(self.scale) if self.scale != 1 else slope_NV


def check_head(model: Any) -> None:
    """Refuse a model whose logits are more than `Head` makes of its last hidden state.

    Raises:
        UserError: the architecture does something else with it.
    """
    ids_BS = torch.tensor([[1, 2]], device=model.device)
    with torch.no_grad():
        hidden_ND = model.get_decoder()(input_ids=ids_BS, use_cache=False).last_hidden_state[0]
        head = Head.of(model)
        ours, theirs = head.logits(hidden_ND), model(input_ids=ids_BS).logits[0]
    # nan_to_num: weights that are not finite are another mistake, and told elsewhere
    bound = 1e-3 if theirs.dtype == torch.float32 else 3e-2
    theirs = theirs.to(ours.dtype)
    if not torch.allclose(ours.nan_to_num(), theirs.nan_to_num(), rtol=bound, atol=bound):
        raise UserError(f"{type(model).__name__} does more with its last hidden state than a head")
