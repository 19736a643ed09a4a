"""Generation on several Ray workers, each with the teacher in memory; the answers are the same."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cohobate.errors import UserError
from cohobate.generation.requests import Batching, Decoding, Request
from cohobate.models.number_formats import Precision

if TYPE_CHECKING:
    from cohobate.backends.loaded_teacher import AnsweredBatch
    from cohobate.teachers.signal_store.top_k_form import StoredTopK


def start_workers(
    opened: "tuple[Path, Precision, Batching, StoredTopK | None]", workers: int, gpus: float
) -> "Callable[[list[list[Request]], Decoding], Iterator[AnsweredBatch]]":
    """Start the workers; return a function that answers batches and yields them in order.

    Args:
        opened: the arguments of `LoadedTeacher`.
        workers: how many.
        gpus: GPUs of each.

    A worker answers one batch at a time with one thread, as a thread of a single process does, so
    the rows do not depend on the number of workers.
    """
    import ray
    from ray.exceptions import RayActorError
    from ray.util import ActorPool

    if not ray.is_initialized():
        ray.init(address="local", include_dashboard=False, log_to_driver=False)
    # the class is made in a function: this module imports no torch
    started: Any = ray.remote(num_gpus=gpus)(_single_threaded())
    pool = ActorPool([started.remote(*opened) for _ in range(workers)])

    def answers(batches: list[list[Request]], decoding: Decoding) -> "Iterator[AnsweredBatch]":
        try:
            # the pool yields in the order of the batches, whichever worker is done first
            yield from pool.map(
                lambda worker, batch: worker.answer.remote(batch, decoding), batches
            )
        except RayActorError as error:
            raise UserError(
                f"a worker died while it generated: {str(error).splitlines()[0]}",
                fix="repeat the command: finished answers are kept",
            ) from None

    return answers


def _single_threaded() -> type:
    from cohobate.backends.loaded_teacher import AnsweredBatch, LoadedTeacher

    class Worker(LoadedTeacher):
        """A teacher in a process of its own."""

        def answer(self, batch: Sequence[Request], decoding: Decoding) -> AnsweredBatch:
            """Answer one batch with one thread."""
            import torch

            torch.set_num_threads(1)
            answered: AnsweredBatch = super().answer(batch, decoding)
            return answered

    return Worker
