"""The forward pass of a causal LM's body: what its head reads, and hidden states on request.

All stages read rows through `forward`. Where it gains, it takes the fast paths of this package:
padding-free rows, row attention, a prefix cache, the last MLP at selected tokens alone. The plain
path is `padded`, one call of the model; `COHOBATE_FAST=off` takes it always.
"""

# ruff: noqa: N815 (fields that are tensors carry shape suffixes too)

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn
from transformers import PreTrainedModel

from cohobate.errors import UserError
from cohobate.fast import last_block, padding_free
from cohobate.fast.prefix_cache import PrefixCache
from cohobate.fast.switch import enabled
from cohobate.models import seeing, sharding
from cohobate.models.layers import blocks_of, body_of, check_positions, heads_of

Part = Literal["hidden", "attention", "values"]


class ForwardOutputs(NamedTuple):
    """The outputs of a forward pass; those that were not requested are empty."""

    last_hidden_ND: Tensor
    """What the head reads, at the selected tokens."""
    hidden: tuple[Tensor, ...] = ()
    """(B, S, D) each: the embeddings, then the output of each block (the last one normed)."""
    attention: tuple[Tensor, ...] = ()
    """Attention weights of each block, (B, H, S, S)."""
    values: tuple[Tensor, ...] = ()
    """Values of each block, (B, S, H, E), H being the heads of keys and values."""


def forward(
    model: PreTrainedModel,
    ids_BS: Tensor,
    positions_N: Tensor,
    parts: frozenset[Part] = frozenset(),
    prefix_cache: PrefixCache | None = None,
    *,
    images: Sequence[tuple[str, ...]] = (),
) -> ForwardOutputs:
    """Run a causal LM's body over right-padded rows; return what the head reads at some tokens.

    The numbers are those of one pass over the padded rows, up to rounding: under a causal mask no
    token attends to padding behind it.

    Args:
        model: in any state.
        ids_BS: the rows, padded on the right with any id.
        positions_N: the selected tokens, counted through B·S.
        parts: what else is wanted; with any of these the rows are read as they are.
        prefix_cache: keys and values of the tokens that all rows begin with, if they do, of this
            very model; it must not change.
        images: names of the pictures before each row's text, where rows have any; such rows take
            the plain path.

    Raises:
        UserError: the model does not give a part, or a row is longer than the positions that it
            has embeddings of; or rows have pictures, and the model does not see.
    """
    if any(images):
        if parts:
            raise UserError(
                "hidden states and attention are not compared of rows with pictures",
                where="terms of the phase",
                fix="leave the feature terms out",
            )
        return ForwardOutputs(seeing.forward(model, ids_BS, positions_N, images))
    # a sharded teacher gathers its own weights; a student's are gathered by its loss
    return sharding.call(model, _forward, model, ids_BS, positions_N, parts, prefix_cache)


def _forward(
    model: PreTrainedModel,
    ids_BS: Tensor,
    positions_N: Tensor,
    parts: frozenset[Part],
    prefix_cache: PrefixCache | None,
) -> ForwardOutputs:
    check_positions(model, ids_BS.shape[1])
    if parts:
        return _with_parts(model, ids_BS, positions_N, parts)
    # chance is drawn for each token of a row, padding included: other rows, other dropout
    if not enabled() or (model.training and padding_free.has_dropout(model)):
        return ForwardOutputs(padded(model, ids_BS, positions_N))
    hidden_ND = padding_free.packed_forward(model, ids_BS, positions_N, prefix_cache)
    if hidden_ND is None:  # packing saves too little here, or the model cannot take packed rows
        with last_block.mlp_at(model, positions_N, ids_BS.numel()):
            hidden_ND = padded(model, ids_BS, positions_N)
    return ForwardOutputs(hidden_ND)


def padded(model: PreTrainedModel, ids_BS: Tensor, positions_N: Tensor) -> Tensor:
    """Return what the head reads at the selected tokens, (N, D), by one plain call of the body."""
    hidden_BSD: Tensor = body_of(model)(ids_BS, use_cache=False).last_hidden_state
    return hidden_BSD.flatten(0, 1)[positions_N]


def find_fast_paths(model: PreTrainedModel, device: str) -> None:
    """Try the fast paths on a model that is to be sharded over devices of a kind; keep the outcome.

    Afterwards a trial would not do: one that fails within a forward pass leaves weights gathered,
    and one that a worker makes alone waits for the others without end.
    """
    if enabled():
        padding_free.find_packing(model, device)
        last_block.find_selection(model)


def has_row_attention(model: PreTrainedModel) -> bool:
    """Say whether packed rows of a model in training attend row by row, as the model is set now."""
    return (
        enabled()
        and model.can_generate()
        and not padding_free.has_dropout(model)
        and padding_free.packing_mode(model) == "rows"
    )


def _with_parts(
    model: PreTrainedModel, ids_BS: Tensor, positions_N: Tensor, parts: frozenset[Part]
) -> ForwardOutputs:
    flags = {"output_hidden_states": "hidden" in parts, "output_attentions": "attention" in parts}
    options = {name: True for name, wanted in flags.items() if wanted}
    values: list[Tensor] = []
    with _kept_values(model, values, "values" in parts):
        out = body_of(model)(input_ids=ids_BS, use_cache=False, **options)
    last_hidden_ND = out.last_hidden_state.flatten(0, 1)[positions_N]
    outputs = ForwardOutputs(last_hidden_ND, values=tuple(values))
    if "hidden" in parts:
        outputs = outputs._replace(hidden=out.hidden_states)
    if "attention" in parts:
        outputs = outputs._replace(attention=out.attentions)
    # fused attention, and bodies that ignore a flag, return None or nothing
    for part in parts:
        if not getattr(outputs, part) or any(x is None for x in getattr(outputs, part)):
            raise UserError(f"{type(model).__name__} does not give its {part}", where="terms")
    return outputs


@contextmanager
def _kept_values(model: PreTrainedModel, values: list[Tensor], wanted: bool) -> Iterator[None]:
    """Within the block, append the output of each value projection to a list, layer after layer."""

    def keep(module: nn.Module, inputs: Any, values_BSO: Tensor) -> None:
        # (B, S, H·E) to (B, S, H, E)
        values.append(values_BSO.reshape(*values_BSO.shape[:2], heads_of(model), -1))

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
