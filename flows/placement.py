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
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from cohobate.dvc_bridge.versioning import Outcome
from cohobate.errors import UserError, from_os_error
from cohobate.progress import Event, Say, reporting_to
from flows import local_ray, ray_address, workspaces
from flows.api_keys import ApiKeys, in_environment
from flows.resources import Resources
from flows.workspaces import StageBundle, StageChanges, WorkspaceKind, packed_code


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
    figures: dict[str, Any] = field(default_factory=dict)
    """What the stage wrote into its `summary.json`."""
    back: StageChanges | None = None
    """What a node without a shared disk sends back."""


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
def ray_cluster(
    root: Path, wanted: dict[str, Resources], workspace: WorkspaceKind = "shared"
) -> Iterator[None]:
    """Be connected to Ray: as it is already, or at `RAY_ADDRESS`, or a local one for the block.

    Workers import the code that lies in `root`: a round's own, whatever this process runs.
    The local one listens on loopback alone and has a slot for each core, or as many as the most
    demanding stage of `wanted` asks for: slots are a count, not a promise.

    Raises:
        UserError: Ray did not start, or does not answer.
    """
    address = os.environ.get("RAY_ADDRESS", "local")
    if address == "local":
        local_ray.use_loopback()
    ray_address.check()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    if ray.is_initialized():
        yield
        return
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    where: dict[str, Any] = {"address": address}
    if address == "local":
        most = max((resources.cpus for resources in wanted.values()), default=1)
        where |= {
            "num_cpus": max(os.cpu_count() or 1, math.ceil(most)),
            "include_dashboard": False,
            "object_store_memory": local_ray.OBJECT_STORE,
            "_node_ip_address": local_ray.LOOPBACK,
        }
    with contextlib.ExitStack() as stack:
        if workspace == "isolated":
            quiet["runtime_env"] = {"working_dir": str(stack.enter_context(packed_code(root)))}
        with contextlib.chdir(root):  # Ray puts the driver's folder on its workers' path
            _connect(where | quiet)
        stack.callback(ray.shutdown)
        yield


def _connect(options: dict[str, Any]) -> None:
    """Connect to Ray; start a local one again where a busy machine made one of its parts late."""
    import ray

    terminated = signal.getsignal(signal.SIGTERM)
    local = options["address"] == "local"
    for left in reversed(range(_TRIES if local else 1)):
        try:
            ray.init(**options)
            break
        except Exception as error:  # Ray raises no class of its own where a part of it is late
            ray.shutdown()
            if local:
                local_ray.end_remains()
            if left:
                continue
            if not local:  # on versions that do not match Ray says several lines
                said = " ".join(str(error).split())[:300]
                where = f"RAY_ADDRESS={options['address']}"
                raise UserError(f"Ray: {said}", where=where, fix=ray_address.FIX) from error
            first = next(iter(str(error).splitlines()), type(error).__name__)
            fix = "cohobate doctor; a busy machine starts Ray too slowly: then simply again"
            raise UserError(f"Ray: {first}", where=options["address"], fix=fix) from error
        finally:
            # Ray's handler ends the process where it stands; Prefect's raises, and states come out
            # true. None: not set by Python, and not to be set by it
            in_main = threading.current_thread() is threading.main_thread()
            if in_main and terminated is not None:
                signal.signal(signal.SIGTERM, terminated)


def run_stage(
    root: Path,
    address: str,
    resources: Resources,
    on_event: Callable[[Event], None],
    workspace: WorkspaceKind = "shared",
    *,
    keys: ApiKeys = MappingProxyType({}),
) -> StageResult:
    """Run one stage on the cluster, handing its events on as they come; block until it ends.

    Raises:
        StageFailedError: the stage raised; the message is its own, one readable error.
        StageLostError: the worker was killed, ran out of memory, or its node went away.
    """
    import ray
    from ray.exceptions import RayError

    if not ray.is_initialized():  # Ray would quietly start a cluster of its own
        raise StageFailedError(f"{address}: the round was stopped", fix="cohobate run")
    bundle = workspaces.bundle(root) if workspace == "isolated" else None
    stream = _submit(root, address, resources, bundle, keys)
    _live.append(stream)
    try:
        for reference in stream:
            message = ray.get(reference)
            if isinstance(message, StageResult):
                if message.back:
                    workspaces.merge_changes(root, address, message.back)
                return message
            if isinstance(message, _Failure):
                raise _stage_failed(address, message)
            on_event(message)
        raise StageLostError(f"{address} ended without a result")
    except RayError as error:
        if stream not in _live:
            raise StageFailedError(f"{address}: stopped", fix="cohobate run") from None
        reason = str(error).strip().splitlines()[0]
        raise StageLostError(
            f"{address}: its worker died ({type(error).__name__})",
            where=reason,
            fix="cohobate run   (what had finished is kept)",
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
                fix="lower what it asks for, or add a node (ray status)",
            )


def _submit(
    root: Path, address: str, resources: Resources, bundle: StageBundle | None, keys: ApiKeys
) -> Any:
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
    return place.options(name=address).remote(str(root), address, bundle, dict(keys))


def _as_ray_counts(resources: Resources) -> dict[str, float]:
    counts = {"CPU": resources.cpus, "GPU": resources.gpus, **resources.custom}
    counts["memory"] = resources.memory_gb * 2**30
    return {name: count for name, count in counts.items() if count}


def _stage_on_node(
    root: str, address: str, bundle: StageBundle | None, keys: ApiKeys
) -> Iterator[Event | StageResult | _Failure]:
    """Run in the worker: the stage in a thread, its events yielded as they come."""
    messages: queue.SimpleQueue[Event | StageResult | _Failure] = queue.SimpleQueue()
    given = (Path(root), address, bundle, keys, messages.put)
    runner = threading.Thread(target=_run_versioned, args=given)
    runner.start()
    while True:
        message = messages.get()
        yield message
        if isinstance(message, StageResult | _Failure):
            runner.join()
            return


def _run_versioned(
    root: Path,
    address: str,
    bundle: StageBundle | None,
    keys: ApiKeys,
    send: Callable[[Event | StageResult | _Failure], None],
) -> None:
    try:
        with reporting_to(send), _warnings_to(send), in_environment(keys):
            send(_bring_up_to_date(root, address, bundle))
    except UserError as error:
        send(_Failure(error, traceback.format_exc()))
    except OSError as error:
        send(_Failure(from_os_error(error), traceback.format_exc()))
    except BaseException:  # whatever it is, the driver must hear of it
        send(_Failure(None, traceback.format_exc()))
    finally:
        _return_freed_memory()


def _bring_up_to_date(root: Path, address: str, bundle: StageBundle | None) -> StageResult:
    from cohobate.dvc_bridge import storage, versioning
    from tasks.__main__ import run_stage as body

    own = [0.0]

    def timed(which: str) -> None:
        start = time.monotonic()
        body(which)
        own[0] = time.monotonic() - start

    started = time.monotonic()
    if bundle:
        root = workspaces.open_workspace(bundle, _CODE, address)
    os.chdir(root)  # a worker runs one stage at a time
    if bundle:
        storage.pull_inputs(root, address)
    outcome = versioning.reproduce(root, address, timed, outputs_elsewhere=bundle is not None)
    pushed = storage.push(root, [address]) if outcome != "unchanged" else 0
    seconds = time.monotonic() - started
    back = workspaces.collect_changes(root, address, bundle) if bundle else None
    figures = versioning.summary(root, address)
    return StageResult(outcome, seconds, own[0], pushed, os.getpid(), figures, back)


def _return_freed_memory() -> None:
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


def _stage_failed(address: str, failure: _Failure) -> StageFailedError:
    if failure.error is not None:
        error = failure.error
        failed = StageFailedError(f"{address}: {error.what}", where=error.where, fix=error.fix)
    else:
        last = failure.trace.strip().splitlines()[-1]
        failed = StageFailedError(f"{address}: {last}", fix=f"python -m tasks {address} --debug")
    failed.add_note(failure.trace)
    return failed


_TRIES = 3
_CODE = Path.cwd()
"""In a worker, before its first stage: the folder of small files that Ray brought."""
_live: list[Any] = []
