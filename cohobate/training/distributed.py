"""Distributed training: several processes train one phase, placed and replaced by Ray Train.

Every worker runs the same function on the same files (the round's folder is on a shared disk), on
its shard of each update's rows; the first one writes checkpoints and publishes. Where a worker is
lost all are started again, from the newest training checkpoint
(cohobate/training/checkpointing.py): Ray's own checkpoints are not used.
"""

import json
import logging
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from cohobate.errors import UserError
from cohobate.progress import Event, emit, reporting_to

Result = TypeVar("Result")

NODE_LABELS = "COHOBATE_NODE_LABELS"
"""Environment variable with the labels of the nodes that workers may run on, as JSON."""
_STARTS = 3
_PATIENCE = "300"
"""Seconds for workers to start. Ray's default of 60 is short for two that import torch."""


def run(work: Callable[[], Result], workers: int, replacements: int) -> Result:
    """Run `work` in several workers together; return the result of the first one.

    Args:
        work: a function that can be pickled; it is run in this folder.
        workers: number of processes; each takes a CPU slot of Ray's, and a GPU where there is any.
        replacements: how often lost workers are replaced before this gives up.

    Raises:
        UserError: the work raised it; the cluster is too small; or workers were lost too often.
    """
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.util.queue import Queue

    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", _PATIENCE)
    with _cluster(workers), tempfile.TemporaryDirectory(prefix="cohobate-train-") as scratch:
        on_gpu = ray.cluster_resources().get("GPU", 0) > 0
        _check_slots("GPU" if on_gpu else "CPU", workers)
        # no CPU for its actor: the workers may need every slot
        messages = Queue(actor_options={"num_cpus": 0})
        trainer = TorchTrainer(
            _worker,
            train_loop_config={"root": str(Path.cwd()), "work": work, "send": messages.put},
            scaling_config=ScalingConfig(
                num_workers=workers,
                use_gpu=on_gpu,
                resources_per_worker={"CPU": 1},
                label_selector=json.loads(os.environ.get(NODE_LABELS, "null")),
            ),
            run_config=RunConfig(
                name="run",
                storage_path=scratch,
                failure_config=FailureConfig(max_failures=replacements),
            ),
        )
        # `fit` blocks until the workers end; this thread shows their progress meanwhile
        fitting = threading.Thread(target=_fit, args=(trainer, messages.put))
        fitting.start()
        try:
            result: Result = _receive_result(messages.get)
            return result
        finally:
            # workers send until they end: the queue goes after them
            fitting.join()
            messages.shutdown(force=True)


def _worker(config: dict[str, Any]) -> None:
    """Run in each worker."""
    from cohobate import processes

    os.chdir(config["root"])
    first = processes.rank() == 0
    send: Callable[[Any], None] = config["send"] if first else lambda message: None
    with reporting_to(send):
        try:
            send(config["work"]())
        except UserError as error:  # Ray would start the workers again for it
            send(error)


def _fit(trainer: Any, send: Callable[[Any], None]) -> None:
    from ray.train import TrainingFailedError

    try:
        trainer.fit()
        # read only if no result came before it: `_receive_result` returns at the first
        send(UserError("the workers ended without a result"))
    except TrainingFailedError as error:
        reason = str(error).strip().splitlines()[-1]
        send(UserError("the workers were lost too often, or failed", where=reason))
    except Exception as error:  # such as a lost cluster: the caller waits for a message
        send(UserError(f"Ray could not train: {type(error).__name__}", where=str(error)[:500]))


def _receive_result(receive: Callable[[], Any]) -> Any:
    """Pass on the progress events of the first worker, until its result comes."""
    while True:
        message = receive()
        if isinstance(message, UserError):
            raise message
        if not isinstance(message, Event):
            return message
        emit(message)


@contextmanager
def _cluster(workers: int) -> Iterator[None]:
    """Connect to the round's Ray cluster, or to a local one for the block where there is none."""
    import ray

    if ray.is_initialized():
        yield
        return
    home = tempfile.mkdtemp(prefix="cohobate-ray-")
    _start(workers, home)
    try:
        yield
    finally:
        ray.shutdown()
        shutil.rmtree(home, ignore_errors=True)


def _start(workers: int, home: str) -> None:
    """Start a local cluster; try again where a busy machine exceeds Ray's 30 seconds.

    Raises:
        UserError: it did not come up.
    """
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    for _ in range(_STARTS):
        try:
            ray.init(
                address="local",
                num_cpus=workers,
                include_dashboard=False,
                # messages are small; by default Ray takes 30 % of the memory for them
                object_store_memory=128 * 2**20,
                log_to_driver=False,
                logging_level=logging.ERROR,
                _node_ip_address="127.0.0.1",
                _temp_dir=home,
                _system_config={"worker_niceness": 0},  # they are this stage: as nice as it is
            )
        except Exception as error:  # Ray raises nothing narrower
            ray.shutdown()
            reason = str(error)
        else:
            return
    raise UserError("Ray did not start", where=reason[:500], fix="try again, or workers: 1")


def _check_slots(kind: str, workers: int) -> None:
    """Refuse more workers than there are slots: Ray would wait for them without end."""
    import ray

    held = 0.0
    with suppress(AssertionError):  # under `dvc repro` this is no worker of Ray's
        held = ray.get_runtime_context().get_assigned_resources().get(kind, 0)
    slots = ray.cluster_resources().get(kind, 0)
    if slots - held < workers:
        raise UserError(
            f"{workers} workers need as many {kind} slots: the cluster has {slots:g}, "
            f"and this stage itself holds {held:g} of them",
            where="params.yaml, train.<phase>.workers",
            fix="fewer workers, a larger cluster, or resources.train: {cpus: 0}",
        )


def gpus_of_cluster() -> dict[str, int]:
    """Return how many GPUs of each kind the Ray cluster of this process has, by Ray's names.

    Nothing where this process is connected to none, as under `dvc repro`.
    """
    if "ray" not in sys.modules:  # importing it takes seconds
        return {}
    import ray

    kinds: dict[str, int] = {}
    for node in ray.nodes() if ray.is_initialized() else ():
        counts = node["Resources"] if node["Alive"] else {}
        if gpus := int(counts.get("GPU", 0)):
            named = (key.partition(":")[2] for key in counts if key.startswith("accelerator_type:"))
            kind = next(named, "")
            kinds[kind] = kinds.get(kind, 0) + gpus
    return kinds
