"""Fully sharded models: each worker holds a share of every weight (FSDP2, torch's `fully_shard`).

All that shards goes through here, on CPUs (gloo) and GPUs (nccl) alike; transformers' Trainer and
accelerate wrap nothing (accelerate shards on GPUs alone, and takes plain DDP on a CPU in silence).
Each transformer block is a unit: its weights are gathered for its forward pass and again for its
backward pass. What is left (embeddings, last norm, head) belongs to the root, and stays whole from
the root's forward pass to the end of its backward pass, so that the fused head can read the whole
head there. A gather is a step of all workers together: outside of the root's forward pass weights
are DTensors, and only `call` and `call_whole` read them.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn

from cohobate import processes
from cohobate.models.checkpoints import accelerator
from cohobate.models.layers import blocks_of, has_blocks
from cohobate.models.mapped_weights import settle

T = TypeVar("T")

_ROOTS: WeakKeyDictionary[nn.Module, Any] = WeakKeyDictionary()
"""The root of each sharded model: the module whose forward pass gathers."""
_GATHERED: WeakSet[Any] = WeakSet()
"""The roots that `call` left with whole weights."""


def shard(root: nn.Module, models: Sequence[Any], number_format: torch.dtype | None = None) -> None:
    """Replace each weight of a module by this worker's share of it, on this worker's device.

    Args:
        root: holds all weights: a loss with its models, or a frozen model itself.
        models: causal LMs in it, whose blocks are gathered one by one.
        number_format: what blocks are gathered in, where that is not the format of the weights:
            they are then float32 masters, and gradients are summed in float32.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import (
        MixedPrecisionPolicy,
        fully_shard,
        register_fsdp_forward_method,
    )

    mesh = init_device_mesh(accelerator(), (processes.world_size(),))
    # hidden states stay as they are, as under autocast: only weights are rounded
    policy = MixedPrecisionPolicy(
        param_dtype=number_format, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    blocks = [block for model in models if has_blocks(model) for block in blocks_of(model)]
    for block in blocks:
        settle(block)  # no more than one is whole in this worker
        options: dict[str, Any] = {"mp_policy": policy} if number_format else {}
        fully_shard(block, mesh=mesh, reshard_after_forward=True, **options)
    settle(root)
    fully_shard(root, mesh=mesh, reshard_after_forward=False)
    # a second forward method, for what reads the weights beside the root's own forward pass
    root.call_sharded = _call  # type: ignore[assignment]
    register_fsdp_forward_method(root, "call_sharded")
    if root not in models:
        # Trainer then neither moves a loss nor wraps it into DDP
        root.is_distributed_loading_by_transformers = True  # type: ignore[assignment]
    for module in {root, *models}:
        _ROOTS[module] = root


def is_sharded(module: nn.Module) -> bool:
    """Say whether the weights of a model or of a loss are sharded."""
    return module in _ROOTS


def is_root(module: nn.Module) -> bool:
    """Say whether a sharded module gathers its weights itself: a loss, or a frozen model."""
    return _ROOTS.get(module) is module


def call(module: nn.Module, function: Callable[..., T], *args: Any) -> T:
    """Call a function that runs forward passes of a module, all workers the same number of them.

    The module is as in its own forward pass: what is no block is whole, until `release`.
    """
    if not is_root(module):
        return function(*args)
    # one argument: FSDP would look for tensors in them, and move those
    _GATHERED.add(module)
    result: T = _ROOTS[module].call_sharded(partial(function, *args))
    return result


def call_whole(module: nn.Module, function: Callable[..., T], *args: Any) -> T:
    """Call a function while all weights of a module are whole in this worker; no gradients.

    Each worker may run as many forward passes as it likes: nothing is gathered within.
    """
    root = _ROOTS.get(module)
    if root is None:
        return function(*args)
    result: T = call(root, _call_gathered, root, function, *args)
    release(root)
    root.set_reshard_after_forward(True)
    root.set_reshard_after_forward(False, recurse=False)
    return result


def release(module: nn.Module) -> None:
    """Give up the weights that `call` left whole; between two updates, where it is a loss."""
    if module in _GATHERED:
        _GATHERED.discard(module)
        _ROOTS[module].reset_iter_state()


@torch.no_grad()
def restore(root: nn.Module) -> None:
    """Make a sharded module plain again: whole on the CPU of the first worker, on meta elsewhere.

    One worker publishes a model, and on a machine with many workers memory is not there for all.
    """
    from torch.distributed.tensor import DTensor

    if not is_root(root):
        return
    whole: dict[Tensor, nn.Parameter] = {}  # a tied weight stays one
    for module in root.modules():
        for name, weight in module._parameters.items():
            if isinstance(weight, DTensor):
                if weight not in whole:
                    whole[weight] = nn.Parameter(_whole(weight), weight.requires_grad)
                module._parameters[name] = whole[weight]
        _remove_hooks(module)
    del root.is_distributed_loading_by_transformers, root.call_sharded
    for module in [module for module, other in _ROOTS.items() if other is root]:
        del _ROOTS[module]


def _call(function: Callable[[], T]) -> T:
    return function()


def _call_gathered(root: Any, function: Callable[..., T], *args: Any) -> T:
    from torch.distributed.fsdp import FSDPModule

    # else the first block that has run would be given up, and gathered again in the next pass
    root.set_reshard_after_forward(False)
    for module in root.modules():
        if isinstance(module, FSDPModule):
            module.unshard()
    with torch.no_grad():
        return function(*args)


def _whole(weight: Any) -> Tensor:
    """Gather a weight; the workers behind the first keep nothing of it."""
    full: Tensor = weight.detach().full_tensor()
    return full.cpu() if processes.rank() == 0 else full.to("meta")


def _remove_hooks(module: Any) -> None:
    """Undo `fully_shard` of one module, for which torch has no function.

    Private in torch 2.13; tests/cohobate/training/test_sharded.py is the contract.
    """
    from torch.distributed.fsdp import FSDPModule

    if not isinstance(module, FSDPModule):
        return
    state = module._get_fsdp_state()
    state._pre_forward_hook_handle.remove()
    state._post_forward_hook_handle.remove()
    module.__class__ = type(module).__mro__[module._orig_cls_mro_index]
