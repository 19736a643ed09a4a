"""The worker processes of one training run: rank, world size, and collective operations.

One process alone is one worker of one. More of them are started by
cohobate/training/distributed.py, over torch.distributed.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch.distributed as dist
from torch import Tensor

from cohobate.errors import UserError

T = TypeVar("T")


def world_size() -> int:
    """Return how many workers there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Return which worker this is, from 0. The first one writes what is published."""
    return dist.get_rank() if dist.is_initialized() else 0


def shard(batch: Sequence[T]) -> list[T]:
    """Return this worker's rows of an update; rows lie by length, so every n-th is a fair share."""
    return list(batch[rank() :: world_size()])


def unshard(share: list[T]) -> list[T]:
    """Return the rows of all workers in the order of which `shard` took each worker's share."""
    shares = all_gather(share)
    longest = max(map(len, shares))
    return [rows[n] for n in range(longest) for rows in shares if n < len(rows)]


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Return the sum of a tensor over all workers."""
    if world_size() == 1:
        return tensor
    summed = tensor.clone()
    dist.all_reduce(summed)
    return summed


def all_gather(value: T) -> list[T]:
    """Return the value of each worker, in their order."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def union(names: list[str]) -> list[str]:
    """Return the names that any worker has, each once."""
    return list(dict.fromkeys(name for some in all_gather(names) for name in some))


def on_all_workers(function: Callable[[], None]) -> None:
    """Call a function in every worker; where it fails in one, fail in all.

    Raises:
        UserError: it failed in another worker.
    """
    if world_size() == 1:
        function()
        return
    failure: Exception | None = None
    try:
        function()
    except Exception as error:  # whatever it is: the others would wait for this worker
        failure = error
    failures = all_gather(None if failure is None else str(failure))
    if failure is not None:
        raise failure
    for number, reason in enumerate(failures):
        if reason is not None:
            raise UserError(f"worker {number} failed: {reason}")


def on_first_worker(function: Callable[[], T]) -> T:
    """Call a function in the first worker alone; return its result, or raise its error, in all.

    Raises:
        UserError: the function did.
    """
    if world_size() == 1:
        return function()
    said: list[Any] = [None]
    if rank() == 0:
        try:
            said = [function()]
        except UserError as error:
            # sent on like a result: the others would wait for it without end
            said = [error]
    dist.broadcast_object_list(said)
    if isinstance(said[0], UserError):
        raise said[0]
    result: T = said[0]
    return result
