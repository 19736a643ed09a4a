"""Runs independent batches in threads of a CPU, each operation single-threaded.

Short rows make small operations, which split badly: on two cores two batches at once were measured
at 160 rows/s where one batch over both cores gave 120. And what a batch gives does not depend on
how many run beside it, so neither do the bytes that a stage writes.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")


def thread_map(
    function: Callable[[T], R], batches: Iterable[T], threads: int
) -> Iterator[tuple[T, R]]:
    """Yield (batch, function(batch)) in the order of the batches, `threads` of them at a time.

    On an accelerator one at a time: there a batch fills the device, and a queue orders the work.
    """
    at_once = 1 if torch.cuda.is_available() else threads
    function = _under_autocast(function)
    waiting: deque[tuple[T, Future[R]]] = deque()
    # torch.set_num_threads(1) runs in each thread as it starts
    with ThreadPoolExecutor(at_once, "batch", torch.set_num_threads, (1,)) as pool:
        try:
            for batch in batches:
                # in a copy of this context: progress goes to whoever runs the stage
                run = copy_context().run
                waiting.append((batch, pool.submit(run, function, batch)))
                if len(waiting) > at_once:  # one more in the queue, so that no thread waits for us
                    done, result = waiting.popleft()
                    yield done, result.result()
            for done, result in waiting:
                yield done, result.result()
        finally:
            for _, result in waiting:
                # the caller stopped early: batches that have not begun are not computed
                result.cancel()


def _under_autocast(function: Callable[[T], R]) -> Callable[[T], R]:
    """Return a function that runs under the autocast of this thread: others have none of it."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if not torch.is_autocast_enabled(device):
        return function
    dtype = torch.get_autocast_dtype(device)

    def run(batch: T) -> R:
        with torch.autocast(device, dtype):
            return function(batch)

    return run
