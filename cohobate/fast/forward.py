"""One pass of a causal LM's body, and what was asked of it on the way.

Shapes: B batch, S sequence, N tokens looked at, D width, H heads, E width of a head.
"""

# ruff: noqa: N815 (fields that are tensors carry shape suffixes too)

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn
from transformers import PreTrainedModel

from cohobate.errors import UserError
from cohobate.fast.padding_free import last_hidden
from cohobate.fast.prefix_cache import PrefixCache
from cohobate.models.layers import blocks_of, body_of, check_positions, heads_of

Part = Literal["hidden", "attention", "values"]


class ForwardOutputs(NamedTuple):
    """What a pass shows; a part that was not asked for is empty."""

    last_ND: Tensor
    """What the head reads."""
    hidden: tuple[Tensor, ...] = ()
    """(B, S, D) each: the embeddings, then what each block leaves (the last one normed)."""
    attention: tuple[Tensor, ...] = ()
    """(B, H, S, S) of each block."""
    values: tuple[Tensor, ...] = ()
    """(B, S, H, E) of each block, H being the heads of keys and values."""


def forward(
    model: PreTrainedModel,
    ids_BS: Tensor,
    at_N: Tensor,
    parts: frozenset[Part] = frozenset(),
    beginning: PrefixCache | None = None,
) -> ForwardOutputs:
    """Run the body over right-padded rows; what the head reads is wanted at some tokens.

    `at_N` counts through B·S. Under a causal mask no token attends to padding. What is known of a
    `beginning` need not be read where no part is asked for.

    Raises:
        UserError: the model does not show a part that is wanted.
    """
    if not parts:
        return ForwardOutputs(last_hidden(model, ids_BS, at_N, beginning))
    check_positions(model, ids_BS.shape[1])
    options = {"output_hidden_states": "hidden" in parts, "output_attentions": "attention" in parts}
    shown = {name: wanted for name, wanted in options.items() if wanted}
    values: list[Tensor] = []
    with _kept_values(model, values, "values" in parts):
        out = body_of(model)(input_ids=ids_BS, use_cache=False, **shown)
    seen = ForwardOutputs(out.last_hidden_state.flatten(0, 1)[at_N], values=tuple(values))
    if "hidden" in parts:
        seen = seen._replace(hidden=out.hidden_states)
    if "attention" in parts:
        seen = seen._replace(attention=out.attentions)
    for part in parts:
        if not getattr(seen, part) or any(x is None for x in getattr(seen, part)):
            raise UserError(f"{type(model).__name__} does not show its {part}", where="terms")
    return seen


@contextmanager
def _kept_values(model: PreTrainedModel, values: list[Tensor], wanted: bool) -> Iterator[None]:
    """Keep what the value projections give, block after block."""

    def keep(module: nn.Module, inputs: Any, values_BSW: Tensor) -> None:
        values.append(values_BSW.reshape(*values_BSW.shape[:2], heads_of(model), -1))

    hooks = []
    for block in blocks_of(model) if wanted else ():
        projection = getattr(getattr(block, "self_attn", None), "v_proj", None)
        if projection is None:
            raise UserError(f"{type(model).__name__} has no value projection of its own")
        hooks.append(projection.register_forward_hook(keep))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
