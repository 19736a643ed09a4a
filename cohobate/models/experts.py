"""Mixture-of-experts models made of dense ones, and dense ones made of them.

Upcycling (Komatsuzaki et al. 2023, "Sparse Upcycling", section 3) gives each block copies of its
MLP as experts, and a router with random weights; all else is taken over. A token is read by the
experts of highest probability, whose weights sum to 1: as long as the copies are equal, the model
computes what it did before. The way back keeps one MLP a block: the experts' weighted mean, or the
one that is used most. Both forms are classes of transformers: Llama or Mistral, and Mixtral.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from cohobate.errors import UserError
from cohobate.models.layers import blocks_of, body_of
from cohobate.models.upcycling import DenseExperts, Upcycling

_DENSE, _SPARSE = ("llama", "mistral"), "mixtral"
_SHARED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
    "tie_word_embeddings",
    "sliding_window",
    "attention_dropout",
    "rope_parameters",
)
"""What the configurations of the three have in common."""


def has_experts(model: PreTrainedModel) -> bool:
    """Say whether a model is a mixture of experts that `dense` takes."""
    return str(model.config.model_type) == _SPARSE


@torch.no_grad()
def upcycle(model: PreTrainedModel, settings: Upcycling) -> PreTrainedModel:
    """Return a Mixtral of a Llama's or a Mistral's weights; in float32, it gives the same logits.

    Raises:
        UserError: another architecture, or one with biases.
    """
    from transformers import MixtralConfig, MixtralForCausalLM

    config = model.config
    biases = getattr(config, "attention_bias", False) or getattr(config, "mlp_bias", False)
    if config.model_type not in _DENSE or biases:
        raise UserError(
            f"{type(model).__name__} has no mixture of experts of the same blocks",
            where="params.yaml, adapt.upcycle",
            fix="a teacher that is a Llama or a Mistral without biases",
        )
    counts = {"num_local_experts": settings.experts, "num_experts_per_tok": settings.per_token}
    sparse = _empty(MixtralForCausalLM, MixtralConfig(**_fields(config), **counts), model)
    rng = torch.Generator().manual_seed(settings.seed)
    for ours, theirs in zip(blocks_of(sparse), blocks_of(model), strict=True):
        experts, mlp = _experts(ours), _mlp(theirs)
        experts.gate_up_proj.copy_(torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]))
        experts.down_proj.copy_(mlp.down_proj.weight)
        router_GD = _router(ours).weight
        drawn_GD = torch.randn(router_GD.shape, generator=rng) * config.initializer_range
        router_GD.copy_(drawn_GD)
    return sparse


@torch.no_grad()
def dense(
    model: PreTrainedModel, kind: DenseExperts, shares_LG: Tensor | None = None
) -> PreTrainedModel:
    """Return a Llama (a Mistral, with a sliding window) with one MLP in place of the experts.

    Args:
        model: a Mixtral.
        kind: `mean`, weighted by the shares, or `most_used`, the expert of the largest share.
        shares_LG: how much each block uses each of its experts (`expert_shares`); sums to 1 over
            the experts. Equal shares when not given, where only sizes count.

    Raises:
        UserError: the model has no experts, or is of another architecture.
    """
    from transformers import (
        LlamaConfig,
        LlamaForCausalLM,
        MistralConfig,
        MistralForCausalLM,
    )

    _check(model)
    fields = _fields(model.config)
    if fields.pop("sliding_window", None) is None:
        result = _empty(LlamaForCausalLM, LlamaConfig(**fields), model)
    else:
        window = {"sliding_window": model.config.sliding_window}
        result = _empty(MistralForCausalLM, MistralConfig(**fields, **window), model)
    for number, (ours, theirs) in enumerate(zip(blocks_of(result), blocks_of(model), strict=True)):
        experts, mlp = _experts(theirs), _mlp(ours)
        share_G = torch.full((experts.num_experts,), 1 / experts.num_experts)
        if shares_LG is not None:
            share_G = shares_LG[number].float()
        if kind == "most_used":
            share_G = nn.functional.one_hot(share_G.argmax(), len(share_G)).float()
        share_G = share_G.to(experts.down_proj)
        gate_OI, up_OI = torch.einsum("g,goi->oi", share_G, experts.gate_up_proj).chunk(2)
        mlp.gate_proj.weight.copy_(gate_OI)
        mlp.up_proj.weight.copy_(up_OI)
        mlp.down_proj.weight.copy_(torch.einsum("g,goi->oi", share_G, experts.down_proj))
    return result


@torch.no_grad()
def expert_shares(model: PreTrainedModel, batches: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Return the weight that each block's router gives each expert, the mean over tokens, (L, G).

    Args:
        model: a Mixtral.
        batches: ids (B, S), padded on the right, and which of them are tokens of a row (B, S).

    Raises:
        UserError: the model has no experts, or is of another architecture.
    """
    _check(model)
    blocks = blocks_of(model)
    totals_LG = torch.zeros(len(blocks), _experts(blocks[0]).num_experts, dtype=torch.float64)
    for ids_BS, real_BS in batches:
        routed: list[tuple[Tensor, Tensor]] = []
        with ExitStack() as hooks:
            for block in blocks:
                # `kept` is a default: a closure would see the list of the last batch
                hook = _router(block).register_forward_hook(
                    lambda _, given, out, kept=routed: kept.append((out[1], out[2]))
                )
                hooks.callback(hook.remove)
            body_of(model)(input_ids=ids_BS, use_cache=False)
        real_N = real_BS.flatten()
        for total_G, (weights_NC, chosen_NC) in zip(totals_LG, routed, strict=True):
            weights, chosen = weights_NC[real_N].flatten().double(), chosen_NC[real_N].flatten()
            total_G.index_add_(0, chosen, weights)
    return totals_LG / totals_LG.sum(-1, keepdim=True)


def _check(model: PreTrainedModel) -> None:
    if not has_experts(model):
        raise UserError(
            f"{type(model).__name__} has no experts that could become one MLP",
            where="params.yaml, init_student.experts",
            fix="a teacher that is a Mixtral, or adapt.upcycle with "
            "init_student.of: models/adapt/<teacher>",
        )


def _fields(config: Any) -> dict[str, Any]:
    """Return what the configuration of the other form takes over."""
    return {name: getattr(config, name) for name in _SHARED if hasattr(config, name)}


def _empty(kind: Any, config: Any, source: PreTrainedModel) -> Any:
    """Return a model of another form with all weights of `source` that both have."""
    device = source.device
    attention = source.config._attn_implementation
    # the caller's random numbers stay as they are
    with torch.random.fork_rng(devices=[]), torch.device(device):
        made = kind._from_config(config, dtype=source.dtype, attn_implementation=attention).eval()
    if device.type != "meta":
        state, own = source.state_dict(), made.state_dict()
        both = {name: weight for name, weight in state.items() if name in own}
        made.load_state_dict(both, strict=False)
    if source.generation_config is not None:
        made.generation_config = source.generation_config
    return made


def _mlp(block: Any) -> Any:
    return block.mlp


def _experts(block: Any) -> Any:
    return block.mlp.experts


def _router(block: Any) -> Any:
    return block.mlp.gate
