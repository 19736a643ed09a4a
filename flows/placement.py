"""Where a stage runs: Ray places it, this file submits it, watches it and cancels it.

A stage is a plain Ray task that streams events while it runs and its result at the end. Ray never
retries it (`max_retries=0`): one layer owns retries, and that is Prefect. Worker processes are
reused (`max_calls=0`), so the heavy libraries are imported once for a node and round.
"""

import contextlib
import ctypes
import gc
import logging
import math
import os
import queue
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.errors import UserError
from tasks.progress import Event, Say, reporting_to
from tasks.resources import Resources
from tasks.versioning import Outcome


@dataclass(frozen=True)
class StageResult:
    """What comes back from a node: small, never tensors or tables."""

    outcome: Outcome
    seconds: float
    """Wall time of the whole stage on its node, DVC's part included."""
    body_seconds: float
    """Wall time of the stage's own function; 0 where it did not run."""
    pushed: int
    """Files sent to the DVC remote."""
    worker: int
    """Process id of the worker on its node."""


@dataclass(frozen=True)
class _Failure:
    error: UserError | None
    """An error for people, where the stage raised one."""
    trace: str


class StageFailedError(UserError):
    """The stage itself failed: running it again would fail again."""


class StageLostError(UserError):
    """The worker or node died under the stage: running it again may well succeed."""


@contextmanager
def ray_cluster(root: Path, wanted: dict[str, Resources]) -> Iterator[None]:
    """Be connected to Ray: as it is already, or at `RAY_ADDRESS`, or a local one for the block.

    Workers import the code that lies in `root`: a round's own, whatever this process runs.
    The local one listens on loopback alone and has a slot for each core, or as many as the most
    demanding stage of `wanted` asks for: slots are a count, not a promise.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address := os.environ.get("RAY_ADDRESS"):
        where: dict[str, Any] = {"address": address}
    else:
        most = max((resources.cpus for resources in wanted.values()), default=1)
        where = {
            "address": "local",
            "num_cpus": max(os.cpu_count() or 1, math.ceil(most)),
            "include_dashboard": False,
            "object_store_memory": 128 * 2**20,
            "_node_ip_address": "127.0.0.1",
        }
    with contextlib.chdir(root):  # Ray puts the driver's folder on its workers' path
        ray.init(**where, **quiet)
    try:
        yield
    finally:
        ray.shutdown()


def run_stage(
    root: Path, address: str, resources: Resources, on_event: Callable[[Event], None]
) -> StageResult:
    """Run one stage on the cluster, handing its events on as they come; block until it ends.

    Raises:
        StageFailedError: the stage raised; the message is its own, one readable error.
        StageLostError: the worker was killed, ran out of memory, or its node went away.
    """
    import ray
    from ray.exceptions import RayError

    if not ray.is_initialized():  # Ray would quietly start a cluster of its own
        raise StageFailedError(f"{address}: the round was stopped", mend="cohobate run")
    stream = _submit(root, address, resources)
    _live.append(stream)
    try:
        for reference in stream:
            message = ray.get(reference)
            if isinstance(message, StageResult):
                return message
            if isinstance(message, _Failure):
                raise _as_failed(address, message)
            on_event(message)
        raise StageLostError(f"{address} ended without a result")
    except RayError as error:
        if stream not in _live:
            raise StageFailedError(f"{address}: stopped", mend="cohobate run") from None
        reason = str(error).strip().splitlines()[0]
        raise StageLostError(
            f"{address}: its worker died ({type(error).__name__})",
            where=reason,
            mend="cohobate run   (what had finished is kept)",
        ) from None
    finally:
        if stream in _live:
            _live.remove(stream)


def stop_all() -> None:
    """Stop every stage that this process has on the cluster: the round was cancelled."""
    import ray

    while _live:
        ray.cancel(_live.pop(), force=True)


def check_capacity(wanted: dict[str, Resources]) -> None:
    """Refuse a round with a stage that no node could ever take, which Ray would let wait forever.

    Raises:
        UserError: naming the stage, what it asks for, and the largest node.
    """
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    for address, resources in wanted.items():
        asked = _as_ray_counts(resources)
        if not any(all(node.get(k, 0) >= v for k, v in asked.items()) for node in nodes):
            raise UserError(
                f"no node of the cluster can take {address}: it asks for {asked}",
                where=f"params.yaml, resources.{address.partition('@')[0]}",
                mend="lower what it asks for, or add a node (ray status)",
            )


def _submit(root: Path, address: str, resources: Resources) -> Any:
    import ray

    counts = _as_ray_counts(resources)
    place = ray.remote(
        num_cpus=counts.pop("CPU", 0),
        num_gpus=counts.pop("GPU", 0),
        memory=counts.pop("memory", None),
        resources=counts,
        max_retries=0,
        max_calls=0,
        num_returns="streaming",
    )(_stage_on_node)
    return place.options(name=address).remote(str(root), address)


def _as_ray_counts(resources: Resources) -> dict[str, float]:
    counts = {"CPU": resources.cpus, "GPU": resources.gpus, **resources.custom}
    counts["memory"] = resources.memory_gb * 2**30
    return {name: count for name, count in counts.items() if count}


def _stage_on_node(root: str, address: str) -> Iterator[Event | StageResult | _Failure]:
    """Run in the worker: the stage in a thread, its events yielded as they come."""
    messages: queue.SimpleQueue[Event | StageResult | _Failure] = queue.SimpleQueue()
    runner = threading.Thread(target=_run_versioned, args=(Path(root), address, messages.put))
    runner.start()
    while True:
        message = messages.get()
        yield message
        if isinstance(message, StageResult | _Failure):
            runner.join()
            return


def _run_versioned(
    root: Path, address: str, send: Callable[[Event | StageResult | _Failure], None]
) -> None:
    from tasks import versioning
    from tasks.__main__ import run_stage as body

    own = [0.0]

    def timed(which: str) -> None:
        start = time.monotonic()
        body(which)
        own[0] = time.monotonic() - start

    started = time.monotonic()
    try:
        os.chdir(root)  # a worker runs one stage at a time
        with reporting_to(send), _warnings_to(send):
            outcome = versioning.reproduce(root, address, timed)
            pushed = versioning.push(root, [address]) if outcome != "unchanged" else 0
        seconds = time.monotonic() - started
        send(StageResult(outcome, seconds, own[0], pushed, os.getpid()))
    except UserError as error:
        send(_Failure(error, traceback.format_exc()))
    except BaseException:  # whatever it is, the driver must hear of it
        send(_Failure(None, traceback.format_exc()))
    finally:
        _give_memory_back()


def _give_memory_back() -> None:
    """Return what a stage freed to the system: the worker lives on, and the next needs the room."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # glibc alone keeps such hoards
        ctypes.CDLL("libc.so.6").malloc_trim(0)


@contextmanager
def _warnings_to(send: Callable[[Say], None]) -> Iterator[None]:
    """Send the warnings that libraries log during a stage along with its own lines."""

    class Forward(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            send(Say(f"{record.name}: {record.getMessage()}"))

    handler = Forward(logging.WARNING)
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)


def _as_failed(address: str, failure: _Failure) -> StageFailedError:
    if failure.error is not None:
        error = failure.error
        failed = StageFailedError(f"{address}: {error.what}", where=error.where, mend=error.mend)
    else:
        last = failure.trace.strip().splitlines()[-1]
        failed = StageFailedError(f"{address}: {last}", mend=f"python -m tasks {address} --debug")
    failed.add_note(failure.trace)
    return failed


_live: list[Any] = []
