"""Workers of a test: processes that are forked from one that has done nothing but import.

A fork of the test's own process crashed at times: it lacks the threads of its parent, and libraries
that earlier tests used may rely on them.
"""

import multiprocessing
import os
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import torch.distributed as dist
from accelerate.state import AcceleratorState
from pydantic import TypeAdapter
from ray import cloudpickle

from cohobate.data.records import TRAIN
from cohobate.methods.train import Method, _train


def phase(fields: dict[str, Any]) -> Any:
    return TypeAdapter(Method).validate_python(fields)


PRELOADED = [
    "cohobate.methods.train",
    "cohobate.training.fused_trainer",
    "datasets",
    "peft",
    "ray.cloudpickle",
    "torch.distributed.fsdp",
    "transformers.models.llama.modeling_llama",
]
"""What takes seconds to import. Not this module: `tests` is not on the first process's path."""


def _import_only_parent() -> ForkServerContext:
    """Return where processes are started from: a server that has only imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def together(
    fields: dict[str, Any],
    count: int = 2,
    scorer: Any = None,
    patch: Callable[[], None] = lambda: None,
) -> list[str]:
    """Train in `count` workers, each after `patch`; return what each one's error says.

    It is empty where there was none, and "killed" where a signal ended the worker.
    """
    Path("join").unlink(missing_ok=True)
    place = {"folder": str(Path.cwd()), "environment": dict(os.environ)}
    task = cloudpickle.dumps({"fields": fields, "scorer": scorer, "patch": patch})
    processes = []
    for rank in range(count):
        Path(f"said-{rank}").write_text("killed")
        processes.append(
            _import_only_parent().Process(target=_work, args=(rank, count, place, task))
        )
        processes[-1].start()
    for process in processes:
        process.join()
    return [Path(f"said-{rank}").read_text() for rank in range(count)]


def _work(rank: int, count: int, place: dict[str, Any], task: bytes) -> None:
    os.chdir(place["folder"])
    os.environ.clear()
    os.environ.update(place["environment"])
    message = ""
    try:
        job = cloudpickle.loads(task)
        job["patch"]()
        _join(rank, count)
        result = _train(
            TRAIN / "it", phase(job["fields"] | {"workers": count}), seed=1, scorer=job["scorer"]
        )
        cloudpickle.dumps(result)  # as Ray sends it
    except BaseException as error:
        message = f"{type(error).__name__}: {error}"
    Path(f"said-{rank}").write_text(message)
    os._exit(0)  # threads of the process group may not end by themselves


def _join(rank: int, count: int) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)  # type: ignore[no-untyped-call]
    places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    os.environ |= {name: str(value) for name, value in places.items()}
    dist.init_process_group(
        "gloo", init_method=f"file://{Path('join').absolute()}", rank=rank, world_size=count
    )
