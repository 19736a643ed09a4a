"""Footprint of a model: parameters, bytes and floating-point operations, counted, not timed."""

from pathlib import Path
from typing import TYPE_CHECKING

from cohobate.params import Section

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Footprint(Section):
    """A model's size, and its work for one token."""

    parameters: int
    """Tied ones are counted once."""
    non_embedding_parameters: int
    """Without the token embeddings and the output head."""
    flops_per_token: int
    """Of a forward pass, output head included, at `context` tokens; a multiply-add is two."""
    context: int
    """Tokens in the context for which `flops_per_token` holds."""
    bytes: int
    """Of the weights on disk."""


def footprint(model: "PreTrainedModel", folder: Path, context: int) -> Footprint:
    """Count a model that was loaded from `folder`, at a context of `context` tokens."""
    # by identity: a tied head and embedding are one weight
    embeddings = {
        id(layer.weight): layer.weight.numel()
        for layer in (model.get_input_embeddings(), model.get_output_embeddings())
        if layer is not None
    }
    parameters = sum(weight.numel() for weight in model.parameters())
    return Footprint(
        parameters=parameters,
        non_embedding_parameters=parameters - sum(embeddings.values()),
        flops_per_token=_flops(model, context) // context,
        context=context,
        bytes=sum(path.stat().st_size for path in folder.glob("*.safetensors")),
    )


def _flops(model: "PreTrainedModel", context: int) -> int:
    """Return the FLOPs of the matrix products of one forward pass over `context` tokens.

    Attention is counted over the whole square, as dense implementations compute it. Divided by
    the tokens, that is also the cost of the last token when earlier keys and values are cached. A
    model that sees reads a picture before them, whose work is counted too.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from cohobate.fast.packed_linear import unpacked
    from cohobate.models.seeing import blank_inputs

    used = model.config._attn_implementation
    of_experts = getattr(model.config, "_experts_implementation", None)
    model.set_attn_implementation("eager")  # the counter does not see inside fused attention
    if of_experts:  # nor products that are grouped by experts
        model.set_experts_implementation("eager")
    try:
        ids = torch.zeros((1, context), dtype=torch.long, device=model.device)
        counting = FlopCounterMode(display=False)
        with torch.inference_mode(), unpacked(model), counting as counter:
            inputs = blank_inputs(model, ids)
            model(**inputs, **({"use_cache": False} if model.can_generate() else {}))
    finally:
        model.set_attn_implementation(used)
        if of_experts:
            model.set_experts_implementation(of_experts)
    return int(counter.get_total_flops())
