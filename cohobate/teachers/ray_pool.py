"""A frozen teacher in Ray actors of its own: it runs over text that it did not write.

Its weights are neither in the process that trains nor in that which captures, and take GPUs of
their own. An actor runs one batch at a time with one CPU thread, so that what a batch gives does
not depend on how many actors there are.
"""

import json
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from cohobate import ray_node
from cohobate.errors import UserError
from cohobate.models.number_formats import NumberFormat
from cohobate.teachers.signal_store.teacher_pass import CapturedTeacher
from cohobate.teachers.teacher_workers import TeacherWorkers

if TYPE_CHECKING:
    from torch import Tensor

    from cohobate.data.examples import Example
    from cohobate.models.lm_head import Head
    from cohobate.teachers.signal_store.form import Signals
    from cohobate.teachers.signal_store.store import Origin

T = TypeVar("T")

_NODE_LABELS = "COHOBATE_NODE_LABELS"  # as cohobate/training/distributed.py has it
_AHEAD = 2  # batches that wait for each actor


class TeacherPool:
    """The actors of one teacher; use it with `with`.

    Args:
        folder: the teacher's checkpoint.
        number_format: of its weights and matrix products.
        settings: how many actors.

    Raises:
        UserError: the cluster has fewer GPUs than they need.
    """

    def __init__(self, folder: Path, number_format: NumberFormat, settings: TeacherWorkers) -> None:
        import ray

        self._ours = ray_node.start_unless_connected()
        _check_gpus(settings)
        actor: Any = ray.remote(PooledTeacher)
        # no CPU slot: the stage that waits for them may hold the only one
        placed = actor.options(
            num_cpus=0,
            num_gpus=settings.gpus_each,
            label_selector=json.loads(os.environ.get(_NODE_LABELS, "null")),
        )
        start = (str(folder.resolve()), number_format)
        self._actors = [placed.remote(*start) for _ in range(settings.workers)]
        self._next = 0

    def __enter__(self) -> "TeacherPool":
        return self

    def __exit__(self, *_: object) -> None:
        import ray

        for actor in self._actors:
            with suppress(Exception):  # it may have died, and the cluster with it
                ray.kill(actor)
        if self._ours:
            ray.shutdown()

    def call(self, method: str, *arguments: Any) -> Any:
        """Have the next actor run a method; return what `result` takes."""
        actor = self._actors[self._next]
        self._next = (self._next + 1) % len(self._actors)
        return getattr(actor, method).remote(*arguments)

    def result(self, reference: Any) -> Any:
        """Wait for what an actor returns.

        Raises:
            UserError: the actor died.
        """
        import ray
        from ray.exceptions import RayActorError, RayTaskError

        try:
            return ray.get(reference)
        except RayActorError as error:
            raise UserError(
                f"a worker with the teacher died: {str(error).splitlines()[0]}",
                fix="repeat the command: finished work is kept",
            ) from None
        except RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise error.cause from None
            raise

    def map(self, method: str, batches: Iterable[T], *arguments: Any) -> Iterator[tuple[T, Any]]:
        """Yield (batch, what the method returned), in the order of the batches."""
        running: deque[tuple[T, Any]] = deque()
        for batch in batches:
            running.append((batch, self.call(method, *arguments, batch)))
            if len(running) >= _AHEAD * len(self._actors):
                done, reference = running.popleft()
                yield done, self.result(reference)
        for done, reference in running:
            yield done, self.result(reference)


class PooledTeacher:
    """A teacher in a process of its own; `TeacherPool` starts it."""

    def __init__(self, folder: str, number_format: NumberFormat) -> None:
        import torch

        torch.set_num_threads(1)
        self.teacher = CapturedTeacher(Path(folder), number_format)

    def head(self) -> "Head":
        """Return the head over the ids of the tokenizer, on the CPU."""
        head = self.teacher.head
        bias_V = None if head.bias_V is None else head.bias_V.cpu()
        return type(head)(head.weight_VD.cpu(), bias_V, head.scale, head.softcap)

    def signals(
        self,
        origin: "Origin",
        chunk_tokens: int,
        prefix_P: "Tensor | None",
        batch: "Sequence[Example]",
    ) -> "Signals":
        """Return the signals at the learnt tokens of a batch (`compute_signals`)."""
        return self.teacher.signals_of(origin, chunk_tokens, prefix_P, batch)

    def hidden_states(self, batch: "Sequence[Example]") -> "list[Tensor]":
        """Return the last hidden states at the learnt tokens of each row, (N, D), on the CPU."""
        return self.teacher.hidden_states(batch)


def _check_gpus(settings: TeacherWorkers) -> None:
    import ray

    needed = settings.workers * settings.gpus_each
    available = ray.available_resources().get("GPU", 0.0) if needed else 0.0
    if available < needed:
        raise UserError(
            f"{settings.workers} teacher_workers need {needed:g} GPUs, {available:g} are free on "
            "the Ray cluster",
            where=f"params.yaml, teacher_workers: {{workers: {settings.workers}, gpus_each: "
            f"{settings.gpus_each:g}}}",
            fix="fewer workers, or add nodes; ray status shows the GPUs",
        )
