"""The forward pass of an encoder with a head: its logits, and hidden states on request."""

# ruff: noqa: N815 (fields that are tensors carry shape suffixes too)

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor
from transformers import PreTrainedModel

from cohobate.errors import UserError
from cohobate.fast.forward_pass import ForwardOutputs, Part


class EncoderOutputs(NamedTuple):
    """The logits of an encoder, and the parts that features compare."""

    logits: Tensor
    """(B, C) of a classifier; of a masked model (N, V) at the selected tokens."""
    parts: ForwardOutputs
    """Hidden states and attention weights; what was not requested is empty."""


def encoder_forward(
    model: PreTrainedModel,
    ids_BS: Tensor,
    mask_BS: Tensor,
    positions_N: Tensor | None = None,
    parts: frozenset[Part] = frozenset(),
) -> EncoderOutputs:
    """Run a classifier or a masked model.

    Args:
        model: the encoder with its head.
        ids_BS: the rows, padded on the right.
        mask_BS: 1 at their tokens, 0 at padding.
        positions_N: of a masked model: tokens whose logits are wanted, counted through B·S. Its
            head, which is as large as its body, reads no others.
        parts: what else is wanted; `attention` needs eager attention.

    Raises:
        UserError: the model does not give a part.
    """
    flags = {"output_hidden_states": "hidden" in parts, "output_attentions": "attention" in parts}
    options = {name: True for name, wanted in flags.items() if wanted}
    with _selected(model, positions_N):
        out = model(input_ids=ids_BS, attention_mask=mask_BS, **options)
    logits = out.logits if positions_N is None else out.logits[0]
    kept = ForwardOutputs(logits)
    if "hidden" in parts:
        kept = kept._replace(hidden=out.hidden_states)
    if "attention" in parts:
        kept = kept._replace(attention=out.attentions)
    for part in parts:
        if not getattr(kept, part) or any(x is None for x in getattr(kept, part)):
            raise UserError(f"{type(model).__name__} does not give its {part}", where="terms")
    return EncoderOutputs(logits, kept)


class _SelectedTokens(threading.local):
    """The tokens that heads of masked models read in a thread; None: all."""

    positions_N: Tensor | None = None


_SELECTION = _SelectedTokens()
_INSTALLING = threading.Lock()
_INSTALLED = "_cohobate_selects_tokens"


@contextmanager
def _selected(model: PreTrainedModel, positions_N: Tensor | None) -> Iterator[None]:
    """Within the block, in this thread, heads read the selected tokens alone, as one row."""
    if positions_N is None:
        yield
        return
    # installed once and never removed: other threads may be running the model
    with _INSTALLING:
        if not hasattr(model, _INSTALLED):
            model.base_model.register_forward_hook(_select)
            setattr(model, _INSTALLED, True)
    _SELECTION.positions_N = positions_N
    try:
        yield
    finally:
        _SELECTION.positions_N = None


def _select(module: Any, inputs: Any, out: Any) -> Any:
    """Leave the selected tokens of a body's last hidden state: heads read it first of all."""
    if _SELECTION.positions_N is not None:
        out.last_hidden_state = out.last_hidden_state.flatten(0, 1)[_SELECTION.positions_N][None]
    return out
