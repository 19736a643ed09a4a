"""The last block's MLP at the selected tokens alone.

The output of a causal LM's last block goes to its head and nowhere else. Where few tokens are
selected, as those of a short answer behind its prompt, the block's MLP (three quarters of a Llama
block's weights) has few rows to work on; its attention reads all. For a student of five blocks that
is an eighth of the body's work, forwards and backwards.
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


class _Selection(local):
    """The selected tokens of this thread's pass: batches run in threads over one model."""

    positions_N: Tensor | None = None  # noqa: N815
    """Tokens, counted through B·S, each once; None: all, and the hooks do nothing."""
    input_shape: torch.Size | None = None
    """Of what the MLP was given, from its first hook to its second."""


_SELECTION = _Selection()
_HOOKED: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()
_LOCK = Lock()


@contextmanager
def mlp_at(model: PreTrainedModel, positions_N: Tensor, tokens: int) -> Iterator[None]:
    """Within the block, run the last MLP at the selected tokens alone, where the model allows it.

    What the body gives at other tokens is then meaningless.

    Args:
        model: its last MLP gets hooks at the first call, which stay and do nothing elsewhere.
        positions_N: the selected tokens, counted through the sequences.
        tokens: how many there are in all; where more than half are selected, all are read.
    """
    # each once: `_scatter` writes a token to one place
    unique_N: Tensor = torch.unique(positions_N)
    few = 0 < 2 * len(unique_N) <= tokens
    if not few or _recomputes(model) or not _is_hooked(model):
        yield
        return
    # read by the hooks, in this thread alone
    _SELECTION.positions_N = unique_N
    try:
        yield
    finally:
        _SELECTION.positions_N = _SELECTION.input_shape = None


def find_selection(model: PreTrainedModel) -> None:
    """Give the last MLP its hooks, where the model allows it, at once."""
    _is_hooked(model)


def all_close(x: Tensor, reference: Tensor) -> bool:
    """Say whether the outputs of two passes of one model differ by no more than rounding."""
    bound = 1e-4 if reference.dtype in {torch.float32, torch.float64} else 3e-2
    return bool((x - reference).abs().max() <= bound * reference.abs().max())


def _recomputes(model: PreTrainedModel) -> bool:
    """Say whether blocks run again in the backward pass: no selection is set by then."""
    # a model that does not say counts as one that does
    return torch.is_grad_enabled() and getattr(model, "is_activation_checkpointing", True)


def _is_hooked(model: PreTrainedModel) -> bool:
    """Say whether a model's last MLP has the hooks; each model is probed once."""
    with _LOCK:
        if model not in _HOOKED:
            _HOOKED[model] = _hook(model)
        return _HOOKED[model]


def _hook(model: PreTrainedModel) -> bool:
    mlp = getattr(blocks_of(model)[-1], "mlp", None) if has_blocks(model) else None
    if not isinstance(mlp, nn.Module):
        return False
    handles = [mlp.register_forward_pre_hook(_select), mlp.register_forward_hook(_scatter)]
    if _gives_the_same(model):
        return True
    for handle in handles:  # an MLP that looks at several tokens, or a block of another form
        handle.remove()
    return False


@torch.no_grad()
def _gives_the_same(model: PreTrainedModel) -> bool:
    ids_BS = torch.tensor([[1, 2, 3, 4], [1, 2, 4, 3]], device=model.device)
    # of both rows, not all: a mixed-up place shows
    positions_N = torch.tensor([1, 6, 7], device=model.device)
    _SELECTION.positions_N = positions_N
    with torch.autocast(ids_BS.device.type, enabled=False):
        try:
            hidden_BSD = body_of(model)(ids_BS, use_cache=False).last_hidden_state
        except (ValueError, RuntimeError, IndexError, TypeError, AttributeError):
            return False
        finally:
            _SELECTION.positions_N = _SELECTION.input_shape = None
        reference_BSD = body_of(model)(ids_BS, use_cache=False).last_hidden_state
    return all_close(
        hidden_BSD.flatten(0, 1)[positions_N], reference_BSD.flatten(0, 1)[positions_N]
    )


def _select(mlp: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """Give the MLP the selected tokens as one row, (1, N, D)."""
    if _SELECTION.positions_N is None or len(inputs) != 1 or inputs[0].dim() != 3:
        return None
    _SELECTION.input_shape = inputs[0].shape
    # as one row, for an MLP may expect three dimensions
    return (inputs[0].flatten(0, 1).index_select(0, _SELECTION.positions_N)[None],)


def _scatter(mlp: nn.Module, inputs: Any, out_1ND: Any) -> Tensor | None:
    """Put what the MLP made of them back where they were, zeros elsewhere."""
    if _SELECTION.positions_N is None or _SELECTION.input_shape is None:
        return None
    rows, tokens, _ = _SELECTION.input_shape
    zeros_ND = out_1ND.new_zeros(rows * tokens, out_1ND.shape[-1])
    whole_ND: Tensor = zeros_ND.index_copy(0, _SELECTION.positions_N, out_1ND[0])
    return whole_ND.view(rows, tokens, -1)
