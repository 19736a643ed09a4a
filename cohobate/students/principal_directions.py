"""The principal directions of a model's hidden states, measured where they enter its norms."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from cohobate.models.layers import body_of


def covariance(
    model: PreTrainedModel, norms: Sequence[nn.Module], batches: Sequence[tuple[Tensor, Tensor]]
) -> Tensor:
    """Return Σ x xᵀ (D, D) over what enters the norms, each x divided by its root mean square.

    So each norm counts alike: unnormed, the last blocks' hidden states would outweigh all others.
    """
    width = model.config.get_text_config().hidden_size
    total_DD = torch.zeros(width, width, dtype=torch.float64)
    for ids_BS, real_BS in batches:
        with inputs_of(norms) as inputs:
            body_of(model)(input_ids=ids_BS, use_cache=False)
        for hidden_BSD in inputs:
            hidden_ND = hidden_BSD[real_BS].double()
            hidden_ND = hidden_ND / hidden_ND.square().mean(-1, keepdim=True).sqrt()
            total_DD += hidden_ND.T @ hidden_ND
    return total_DD


@contextmanager
def inputs_of(modules: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """Yield a list to which a forward pass appends what enters each of the modules."""
    inputs: list[Tensor] = []
    with ExitStack() as hooks:
        for module in modules:
            hook = module.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
            hooks.callback(hook.remove)
        yield inputs


def principal(covariance_DD: Tensor) -> tuple[Tensor, Tensor]:
    """Return the power of each principal direction, and the directions as columns, strongest first.

    Each column's largest entry is positive: else its sign would be up to the library.
    """
    power_D, basis_DD = torch.linalg.eigh(covariance_DD)
    basis_DD = basis_DD.flip(-1)
    largest_1D = basis_DD.abs().argmax(0, keepdim=True)
    return power_D.flip(-1), basis_DD * basis_DD.gather(0, largest_1D).sign()


def last_block(model: PreTrainedModel, ids_BS: Tensor) -> Tensor:
    """Return what the last block gives, (B, S, D)."""
    with inputs_of([body_of(model).norm]) as inputs:
        body_of(model)(input_ids=ids_BS, use_cache=False)
    return inputs[0]
