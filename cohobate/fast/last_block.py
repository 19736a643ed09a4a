"""The last block's MLP at the tokens that are looked at, and at no others.

What a causal LM's last block makes of a token goes nowhere but to its head. Where few tokens are
looked at, as those of a short answer behind its prompt, the block's MLP (three quarters of a Llama
block's weights) has few rows to work on; attention alone reads all. Of a student of five blocks
that is an eighth of the body's work, forwards and backwards.

The hooks stay on the module and do nothing unless the thread that runs it has said so: batches run
side by side over one model.

Shapes: G sequences, T tokens of each, N tokens looked at, D width.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock, local
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from cohobate.models.layers import blocks_of, body_of, has_blocks


class _Asked(local):
    """What this thread looks at."""

    at_N: Tensor | None = None  # noqa: N815
    """Tokens, counted through G·T, each once; None: all."""
    shape: torch.Size | None = None
    """Of what the MLP was given, while it has some of it."""


_ASKED = _Asked()
_HOOKED: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()
_ONE = Lock()


@contextmanager
def only(model: PreTrainedModel, at_N: Tensor, tokens: int) -> Iterator[None]:
    """Within the block, let the last MLP read `at_N` alone of so many tokens, where it can.

    `at_N` counts through the sequences. What the body leaves of other tokens is not to be used.
    """
    some_N: Tensor = torch.unique(at_N)
    few = 0 < 2 * len(some_N) <= tokens
    if not few or _recomputes(model) or not _hooked(model):
        yield
        return
    _ASKED.at_N = some_N
    try:
        yield
    finally:
        _ASKED.at_N = _ASKED.shape = None


def _recomputes(model: PreTrainedModel) -> bool:
    """Say whether blocks run again in the backward pass, when nothing is asked any more."""
    return torch.is_grad_enabled() and getattr(model, "is_activation_checkpointing", True)


def agree(found: Tensor, wanted: Tensor) -> bool:
    """Say whether two passes of one model differ by no more than rounding."""
    bound = 1e-4 if wanted.dtype in {torch.float32, torch.float64} else 3e-2
    return bool((found - wanted).abs().max() <= bound * wanted.abs().max())


def _hooked(model: PreTrainedModel) -> bool:
    """Say whether a model's last MLP works token by token; it is tried once."""
    with _ONE:
        if model not in _HOOKED:
            _HOOKED[model] = _hook(model)
        return _HOOKED[model]


def _hook(model: PreTrainedModel) -> bool:
    mlp = getattr(blocks_of(model)[-1], "mlp", None) if has_blocks(model) else None
    if not isinstance(mlp, nn.Module):
        return False
    handles = [mlp.register_forward_pre_hook(_take), mlp.register_forward_hook(_put_back)]
    if _works_alike(model):
        return True
    for handle in handles:
        handle.remove()
    return False


@torch.no_grad()
def _works_alike(model: PreTrainedModel) -> bool:
    ids_BS = torch.tensor([[1, 2, 3, 4], [1, 2, 4, 3]], device=model.device)
    _ASKED.at_N = torch.tensor([1, 6, 7], device=model.device)
    with torch.autocast(ids_BS.device.type, enabled=False):
        try:
            found_BSD = body_of(model)(ids_BS, use_cache=False).last_hidden_state
        except (ValueError, RuntimeError, IndexError, TypeError, AttributeError):
            return False
        finally:
            at_N, _ASKED.at_N, _ASKED.shape = _ASKED.at_N, None, None
        wanted_BSD = body_of(model)(ids_BS, use_cache=False).last_hidden_state
    return agree(found_BSD.flatten(0, 1)[at_N], wanted_BSD.flatten(0, 1)[at_N])


def _take(mlp: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
    if _ASKED.at_N is None or len(inputs) != 1 or inputs[0].dim() != 3:
        return None
    _ASKED.shape = inputs[0].shape
    return (inputs[0].flatten(0, 1).index_select(0, _ASKED.at_N)[None],)


def _put_back(mlp: nn.Module, inputs: Any, out_1ND: Any) -> Tensor | None:
    if _ASKED.at_N is None or _ASKED.shape is None:
        return None
    sequences, tokens, _ = _ASKED.shape
    nothing_ND = out_1ND.new_zeros(sequences * tokens, out_1ND.shape[-1])
    whole_ND: Tensor = nothing_ND.index_copy(0, _ASKED.at_N, out_1ND[0])
    return whole_ND.view(sequences, tokens, -1)
