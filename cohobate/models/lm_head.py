"""The output head of a causal LM: from hidden states to logits.

Some architectures change the logits behind the head: Granite divides them, Cohere multiplies them,
MiniCPM divides what the head reads, Gemma 2 caps them. What a model does is measured on the model
itself (`_measured`), so that it does not depend on how its configuration names the factor.
"""

# ruff: noqa: N815 (fields that are tensors carry shape suffixes too)

from dataclasses import dataclass
from functools import cached_property
from threading import Lock, get_ident
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from cohobate.errors import UserError
from cohobate.models.layers import body_of

_FACTORS = (
    "logit_scale",
    "logits_scaling",
    "lm_head_multiplier",
    "output_multiplier",
    "logits_mup_width_multiplier",
)
"""Names that configurations give the factor: some models multiply by it, some divide."""
_CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")


@dataclass(frozen=True)
class Head:
    """What turns hidden rows into logits: `cap(scale · (h Wᵀ + b))`, over the real ids alone."""

    weight_VD: Tensor
    bias_V: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None
    """Logits are softcap · tanh(logits / softcap) (Gemma 2)."""
    packed: Any = None
    """The layer itself, where its weight is packed for products
    (cohobate/fast/packed_linear.py)."""

    @classmethod
    def of(cls, model: Any, vocabulary: int | None = None) -> "Head":
        """Return the head of a causal LM; `vocabulary` leaves out the ids of mere padding.

        Raises:
            UserError: the model does more with its last hidden state than this class does.
        """
        linear, finish = model.get_output_embeddings(), _finish_of(model)
        weight_VD, bias_V = linear.weight, getattr(linear, "bias", None)
        rows = min(len(weight_VD), finish.rows, vocabulary or len(weight_VD))
        whole = rows == len(weight_VD)
        # a packed layer multiplies with all ids, and adds its bias itself
        packed = linear if whole and bias_V is None and hasattr(linear, "packed_from") else None
        if not whole:
            weight_VD = weight_VD[:rows]
            bias_V = None if bias_V is None else bias_V[:rows]
        return cls(weight_VD, bias_V, finish.scale, finish.softcap, packed)

    @cached_property
    def _kept(self) -> dict[tuple[str, torch.dtype], Tensor]:
        return {}

    def keep(self, name: str, tensor: Tensor) -> None:
        """Keep memory as large as the head to be written again: on a CPU fresh memory is slow."""
        if tensor.device.type == "cpu":
            self._kept[name, tensor.dtype] = tensor

    def take(self, name: str, dtype: torch.dtype) -> Tensor | None:
        """Return memory that was kept, its content undefined; it is then the caller's alone."""
        return self._kept.pop((name, dtype), None)

    def weight(self, dtype: torch.dtype) -> Tensor:
        """Return the weight in the dtype of the products; valid until the next call.

        A frozen one is cast only once; one that learns is cast anew, into the same memory.
        """
        weight_VD = self.weight_VD.detach()
        if weight_VD.dtype == dtype:
            return weight_VD
        cast_VD = self._kept.get(("cast", dtype))
        if cast_VD is None:
            cast_VD = weight_VD.to(dtype)
        elif self.weight_VD.requires_grad:
            cast_VD.copy_(weight_VD)
        # a learning one is kept on a CPU alone, where fresh memory is slow
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

    def product_grad(self, logits_NV: Tensor, grad_NV: Tensor) -> Tensor:
        """Carry d loss/d logits (changed in place) back to the product's result."""
        if self.softcap:
            # the derivative of cap · tanh(x / cap), from the capped logits
            grad_NV *= 1 - (logits_NV / self.softcap) ** 2
        return grad_NV.mul_(self.scale) if self.scale != 1 else grad_NV


def check_head(model: Any) -> None:
    """Refuse a model whose logits are more than `Head` makes of its last hidden state.

    Raises:
        UserError: the architecture does something else with it.
    """
    _finish_of(model)


class _Finish(NamedTuple):
    """What a model does to the product of its last hidden state and the head's weight."""

    scale: float
    softcap: float | None
    rows: int
    """Logits that the model gives; rows of the weight beyond them are padding."""


_KNOWN: WeakKeyDictionary[Any, _Finish] = WeakKeyDictionary()
_MEASURING = Lock()


def _finish_of(model: Any) -> _Finish:
    """Return what was measured on a model; once, before its weights are sharded or moved."""
    if model.device.type == "meta":  # without weights there are no logits to measure
        return _Finish(1.0, None, len(model.get_output_embeddings().weight))
    with _MEASURING:  # batches of one model run in several threads
        if model not in _KNOWN:
            # a caller's autocast would round the product that the model's own is compared with
            with torch.autocast(model.device.type, enabled=False):
                finish = _measured(model)
            if finish is None:
                raise UserError(
                    f"{type(model).__name__} does more with its last hidden state than a head: "
                    "its logits cannot be computed from the head's weight",
                    fix="use a causal language model such as Llama, Qwen, Gemma, Granite or GPT-2",
                )
            _KNOWN[model] = finish
        return _KNOWN[model]


@torch.no_grad()
def _measured(model: Any) -> _Finish | None:
    """Measure in two passes what a model does between body and logits; None: no `_Finish` has it.

    In the second pass the head's output is replaced by a ramp, whatever the weights are: so that a
    factor and a cap show wherever they are.
    """
    linear, recorder = model.get_output_embeddings(), _Recorder()
    if linear is None or getattr(linear, "weight", None) is None:
        return None
    ids_BS = torch.tensor([[1, 2]], device=model.device)
    handles = [
        body_of(model).register_forward_hook(recorder.keep_hidden),
        linear.register_forward_hook(recorder.keep_product),
    ]
    try:
        with torch.autocast(ids_BS.device.type, enabled=False):
            logits_BSV = model(input_ids=ids_BS, use_cache=False).logits
            hidden_BSD, product_BSV = recorder.hidden, recorder.product
            if hidden_BSD is None or product_BSV is None:
                return None
            # cubed: many small values, where a cap is straight, and large ones, where it bends
            steps = torch.linspace(-1, 1, product_BSV.shape[-1], device=ids_BS.device)
            recorder.ramp = 90 * steps**3
            ramp_BSV = recorder.ramp.to(product_BSV.dtype).expand(product_BSV.shape)
            after_BSV = model(input_ids=ids_BS, use_cache=False).logits
    except Exception as error:  # each architecture fails in its own way
        raise UserError(f"{type(model).__name__} cannot read two tokens: {error}") from error
    finally:
        for handle in handles:
            handle.remove()
    # fewer than the weight has, where the model cuts off the ids of padding
    rows = logits_BSV.shape[-1]
    after = _behind(model.config.get_text_config(), ramp_BSV[..., :rows], after_BSV)
    if after is None:
        return None
    bias_V = getattr(linear, "bias", None)
    plain_BSV = hidden_BSD.to(linear.weight.dtype) @ linear.weight.T
    # in front of the head: h itself may be scaled (MiniCPM); with a bias that is no plain factor
    input_factor = 1.0
    if bias_V is None:
        input_factor = _factor(model.config.get_text_config(), plain_BSV, product_BSV)
    else:
        plain_BSV = plain_BSV + bias_V
    if not _alike(input_factor * plain_BSV, product_BSV):
        return None
    return _Finish(input_factor * after[0], after[1], rows)


class _Recorder:
    """Forward hooks that keep what the body and the head give, or replace the latter by a ramp.

    They act in the thread that measures alone: passes of the same model beside it stay as they are.
    """

    hidden: Tensor | None = None
    product: Tensor | None = None
    ramp: Tensor | None = None

    def __init__(self) -> None:
        self._thread = get_ident()

    def keep_hidden(self, module: Any, inputs: Any, out: Any) -> None:
        if get_ident() != self._thread:
            return
        self.hidden = getattr(out, "last_hidden_state", None)
        if self.hidden is None and isinstance(out, tuple):
            self.hidden = out[0]

    def keep_product(self, module: Any, inputs: Any, out: Tensor) -> Tensor:
        if get_ident() != self._thread:
            return out
        self.product = out
        return out if self.ramp is None else self.ramp.to(out.dtype).expand(out.shape)


def _behind(config: Any, ramp: Tensor, after: Tensor) -> tuple[float, float | None] | None:
    """Return factor and cap that turn a ramp into what a model made of it; None: no such pair."""
    caps = [cap for name in _CAPS if (cap := getattr(config, name, None))]
    # a configured cap first: without one, no factor fits a bent ramp
    for cap in [*caps, None]:
        # where a cap bends little, the factor shows
        straight = slice(None) if cap is None else ramp.abs().amax(0).amax(0) < cap / 20
        scale = _factor(config, ramp[..., straight], after[..., straight])
        scaled = ramp.double() * scale
        if cap is not None:
            scaled = (scaled / cap).tanh() * cap
        if _alike(scaled, after):
            return scale, cap
    return None


def _factor(config: Any, before: Tensor, after: Tensor) -> float:
    """Return the factor between two tensors: the configuration's own figure where it is one."""
    x, y = before.double().flatten().nan_to_num(), after.double().flatten().nan_to_num()
    square = float(x @ x)
    # least squares: the factor a that makes |a x − y| smallest
    measured = float(x @ y) / square if square else 1.0
    configured = [getattr(config, name, None) for name in _FACTORS]
    figures = [float(value) for value in configured if isinstance(value, int | float) and value]
    for figure in (1.0, *figures, *(1 / value for value in figures)):
        # 16-bit products are off by less than 2 %; the given figure is exact
        if abs(measured - figure) <= 0.02 * abs(figure):
            return figure
    return measured


def _alike(ours: Tensor, theirs: Tensor) -> bool:
    # nan_to_num: weights that are not finite are another mistake, and reported elsewhere
    bound = 1e-3 if theirs.dtype in {torch.float32, torch.float64} else 3e-2
    ours, theirs = ours.double().nan_to_num(), theirs.double().nan_to_num()
    return torch.allclose(ours, theirs, rtol=bound, atol=bound)
