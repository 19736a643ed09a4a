"""Generation on several Ray workers, each with the teacher in memory; the answers are the same."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cohobate import ray_node
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

    ray_node.start_unless_connected()
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
            raise _died(error) from None

    return answers


class VllmReplicas:
    """Several vLLM engines behind the method of one: each gets a share of the prompts."""

    def __init__(self, actors: Sequence[Any], groups: Sequence[Any] = ()) -> None:
        self.actors, self.groups = actors, groups

    def generate(
        self, prompts: Sequence[Any], samplings: Sequence[Any], *, use_tqdm: bool
    ) -> list[Any]:
        """Return an output for each prompt, in their order, as `vllm.LLM.generate` does.

        Raises:
            UserError: an actor died.
        """
        import ray
        from ray.exceptions import RayActorError

        each = -(-len(prompts) // len(self.actors))
        shares = [slice(start, start + each) for start in range(0, len(prompts), each)]
        try:
            replies = [
                actor.generate.remote(prompts[share], samplings[share], use_tqdm)
                for actor, share in zip(self.actors, shares, strict=False)
            ]
            return [output for outputs in ray.get(replies) for output in outputs]
        except RayActorError as error:
            raise _died(error) from None

    def close(self) -> None:
        """End the actors, and give their GPUs back to the cluster."""
        import ray
        from ray.util import remove_placement_group

        for actor in self.actors:
            ray.kill(actor)
        for group in self.groups:
            remove_placement_group(group)


def start_vllm(options: dict[str, Any], replicas: int, gpus: int) -> VllmReplicas:
    """Start vLLM engines as Ray actors, each with its GPUs reserved together.

    Args:
        options: the arguments of `vllm.LLM`.
        replicas: how many engines.
        gpus: GPUs of each.
    """
    import ray
    from ray.util import placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    ray_node.start_unless_connected()
    engine: Any = ray.remote(_VllmEngine)
    if gpus == 1:
        actors = [engine.options(num_gpus=1).remote(options) for _ in range(replicas)]
        return VllmReplicas(actors)
    actors, groups = [], []
    for _ in range(replicas):
        # all GPUs of an engine or none; vLLM starts its own workers inside the group
        group = placement_group([{"GPU": 1, "CPU": 1}] * gpus, strategy="PACK")
        where = PlacementGroupSchedulingStrategy(group, placement_group_capture_child_tasks=True)
        placed = engine.options(num_cpus=0, num_gpus=0, scheduling_strategy=where)
        actors.append(placed.remote(options | {"distributed_executor_backend": "ray"}))
        groups.append(group)
    return VllmReplicas(actors, groups)


class _VllmEngine:
    """One vLLM engine in a process of its own."""

    def __init__(self, options: dict[str, Any]) -> None:
        import vllm

        self.model = vllm.LLM(**options)

    def generate(self, prompts: list[Any], samplings: list[Any], use_tqdm: bool) -> list[Any]:
        """Return vLLM's outputs."""
        return list(self.model.generate(prompts, samplings, use_tqdm=use_tqdm))


def _died(error: Exception) -> UserError:
    return UserError(
        f"a worker died while it generated: {str(error).splitlines()[0]}",
        fix="repeat the command: finished answers are kept",
    )


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
