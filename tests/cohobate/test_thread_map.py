"""Batches side by side: in order, and the same result whatever the number of threads."""

import time

import pytest
import torch

from cohobate.thread_map import thread_map


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_results_come_in_order_and_do_not_depend_on_the_number_of_threads(threads: int) -> None:
    weight = torch.randn(257, 257, generator=torch.Generator().manual_seed(0))

    def work(n: int) -> torch.Tensor:
        time.sleep(0.01 * (n % 3))  # so that later batches end before earlier ones
        return (weight * n) @ weight

    results = list(thread_map(work, range(9), threads))
    assert [n for n, _ in results] == list(range(9))
    torch.set_num_threads(1)
    for n, result in results:
        assert torch.equal(result, (weight * n) @ weight)


def test_an_error_comes_out_where_its_batch_would_have() -> None:
    def work(n: int) -> int:
        if n == 2:
            raise ValueError("two")
        return n

    results = thread_map(work, range(5), 2)
    assert [next(results), next(results)] == [(0, 0), (1, 1)]
    with pytest.raises(ValueError, match="two"):
        next(results)
