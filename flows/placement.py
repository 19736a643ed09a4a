"""Run stages on Ray: submit, stream events, cancel.

A stage is a plain Ray task that streams events while it runs and its result at the end. Ray never
retries it (`max_retries=0`): Prefect alone owns retries. Worker processes are reused
(`max_calls=0`), so heavy libraries are imported once per node and round.
"""

import contextlib
import ctypes
import gc
import json
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

from pydantic import SecretStr

from cohobate.dvc_bridge.versioning import Outcome
from cohobate.errors import UserError, from_os_error
from cohobate.progress import Event, Say, reporting_to
from cohobate.training.distributed import NODE_LABELS
from flows import cluster_capacity, local_ray, ray_address, workspaces
from flows.api_keys import ApiKeys, in_environment
from flows.resources import Resources
from flows.workspaces import StageBundle, StageChanges, WorkspaceKind, packed_code


@dataclass(frozen=True)
class StageResult:
    """Result of a stage, as its node returns it: small, never tensors or tables."""

    outcome: Outcome
    seconds: float
    """Wall time of the stage on its node, DVC's part included."""
    body_seconds: float
    """Wall time of the stage's own function; 0 where it did not run."""
    pushed: int
    """Files sent to the DVC remote."""
    worker: int
    """Process id of the worker on its node."""
    figures: dict[str, Any] = field(default_factory=dict)
    """Content of the stage's `summary.json`."""
    changes: StageChanges | None = None
    """From a node without a shared disk: changes beside the outputs."""


@dataclass(frozen=True)
class _Failure:
    error: UserError | None
    """The stage's `UserError`, where it raised one."""
    trace: str


class StageFailedError(UserError):
    """The stage failed by an error of its own: a retry would fail again."""


class StageStoppedError(StageFailedError):
    """The stage was stopped with its round; the same command goes on."""


class StagePrunedError(StageFailedError):
    """The stage was ended by who follows its events, such as a search."""


class StageLostError(UserError):
    """The worker or node of the stage died: a retry may succeed."""


@contextmanager
def ray_cluster(
    root: Path, needs: dict[str, Resources], workspace: WorkspaceKind = "shared"
) -> Iterator[None]:
    """Connect to Ray for a block: keep a connection, or use `RAY_ADDRESS`, or start a local node.

    Workers import the code in `root`, that of the round, whatever code this process runs. A local
    node listens on loopback only. It has one slot per core, or as many as the most demanding stage
    of `needs` needs: slots are a count and reserve nothing.

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
        most = max((resources.cpus for resources in needs.values()), default=1)
        where |= {
            "num_cpus": max(os.cpu_count() or 1, math.ceil(most)),
            "include_dashboard": False,
            "object_store_memory": local_ray.OBJECT_STORE,
            "_node_ip_address": local_ray.LOOPBACK,
        }
    with contextlib.ExitStack() as stack:
        if workspace == "isolated":
            quiet["runtime_env"] = {"working_dir": str(stack.enter_context(packed_code(root)))}
        # Ray puts the driver's folder on the import path of its workers
        with contextlib.chdir(root):
            _connect(where | quiet)
        stack.callback(ray.shutdown)
        yield


def _connect(options: dict[str, Any]) -> None:
    """Connect to Ray; restart a local node where a busy machine made a part of it time out."""
    import ray

    terminated = signal.getsignal(signal.SIGTERM)
    local = options["address"] == "local"
    for left in reversed(range(_TRIES if local else 1)):
        try:
            ray.init(**options)
            break
        except Exception as error:  # Ray raises plain exceptions where a part of it times out
            ray.shutdown()
            if local:
                local_ray.kill_remaining()
            if left:
                continue
            if not local:  # on versions that do not match Ray says several lines
                message = " ".join(str(error).split())[:300]
                where = f"RAY_ADDRESS={options['address']}"
                raise UserError(f"Ray: {message}", where=where, fix=ray_address.FIX) from error
            first = next(iter(str(error).splitlines()), type(error).__name__)
            fix = "cohobate doctor; on a busy machine Ray may time out: then repeat the command"
            raise UserError(f"Ray: {first}", where=options["address"], fix=fix) from error
        finally:
            # Ray's handler exits at once; Prefect's raises, so that it can record final states.
            # None: the handler was not set by Python and cannot be restored by it.
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
    """Run one stage on the cluster; pass its events to `on_event`; block until it ends.

    Raises:
        StageFailedError: the stage raised; the message is its own, one readable error.
        StageStoppedError: `stop_all` was called.
        StageLostError: the worker was killed, ran out of memory, or its node went away.
    """
    import ray
    from ray.exceptions import RayError

    if not ray.is_initialized():  # else Ray would start a cluster of its own
        raise StageStoppedError(f"{address}: the round was stopped", fix="cohobate run")
    bundle = workspaces.make_bundle(root) if workspace == "isolated" else None
    stream = _submit(root, address, resources, bundle, keys)
    _live.append(stream)  # what `stop_all` cancels
    try:
        for reference in stream:
            message = ray.get(reference)
            if isinstance(message, StageResult):
                if message.changes:
                    workspaces.merge_changes(root, address, message.changes)
                return message
            if isinstance(message, _Failure):
                raise _stage_failed(address, message)
            on_event(message)
        raise StageLostError(f"{address} ended without a result")
    except StagePrunedError:
        ray.cancel(stream, force=True)
        raise
    except RayError as error:
        # `stop_all` takes a stream out before it cancels it: that is no lost worker
        if stream not in _live:
            raise StageStoppedError(f"{address}: stopped", fix="cohobate run") from None
        reason = str(error).strip().splitlines()[0]
        raise StageLostError(
            f"{address}: its worker died ({type(error).__name__})",
            where=reason,
            fix="cohobate run   (finished stages are kept)",
        ) from None
    finally:
        if stream in _live:
            _live.remove(stream)


def stop_all() -> None:
    """Stop all stages that this process runs on the cluster, after the round was cancelled."""
    import ray

    while _live:
        ray.cancel(_live.pop(), force=True)


def alive_nodes() -> list[dict[str, Any]]:
    """Return the nodes of the cluster that can take work, as Ray has them."""
    import ray

    return [node for node in ray.nodes() if node["Alive"]]


def _submit(
    root: Path, address: str, resources: Resources, bundle: StageBundle | None, keys: ApiKeys
) -> Any:
    import ray

    counts = cluster_capacity.as_ray_counts(resources)
    task = ray.remote(
        num_cpus=counts.pop("CPU", 0),
        num_gpus=counts.pop("GPU", 0),
        memory=counts.pop("memory", None),
        resources=counts,
        max_retries=0,
        max_calls=0,
        num_returns="streaming",
        label_selector=resources.labels or None,
    )(_stage_on_node)
    variables = dict(keys) | _labels_of_workers(resources)
    return task.options(name=address).remote(str(root), address, bundle, variables)


def _labels_of_workers(resources: Resources) -> dict[str, SecretStr]:
    """Return the variable by which workers that a stage starts are placed on the same nodes."""
    labels = json.dumps(resources.labels, sort_keys=True)
    return {NODE_LABELS: SecretStr(labels)} if resources.labels else {}


def _stage_on_node(
    root: str, address: str, bundle: StageBundle | None, keys: ApiKeys
) -> Iterator[Event | StageResult | _Failure]:
    """Run a stage in a thread of the worker; yield its events as they arrive."""
    messages: queue.SimpleQueue[Event | StageResult | _Failure] = queue.SimpleQueue()
    arguments = (Path(root), address, bundle, keys, messages.put)
    # a generator yields from one thread alone; the stage sends events from any of its own
    runner = threading.Thread(target=_run_versioned, args=arguments)
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
    except BaseException:  # the driver must know of any failure
        send(_Failure(None, traceback.format_exc()))
    finally:
        _return_freed_memory()


def _bring_up_to_date(root: Path, address: str, bundle: StageBundle | None) -> StageResult:
    from cohobate.dvc_bridge import storage, versioning
    from tasks.__main__ import run_stage as body

    body_seconds = [0.0]

    def timed(which: str) -> None:
        start = time.monotonic()
        body(which)
        body_seconds[0] = time.monotonic() - start

    started = time.monotonic()
    if bundle:
        root = workspaces.open_workspace(bundle, _CODE, address)
    os.chdir(root)  # a worker runs one stage at a time
    if bundle:
        for one in workspaces.stages_with_its_inputs(root, address):
            storage.pull_inputs(root, one)
    outcome = versioning.reproduce(root, address, timed, outputs_elsewhere=bundle is not None)
    # an unchanged stage was pushed by the round that ran it
    pushed = storage.push(root, [address]) if outcome != "unchanged" else 0
    seconds = time.monotonic() - started
    changes = workspaces.collect_changes(root, address, bundle) if bundle else None
    figures = versioning.summary(root, address)
    return StageResult(outcome, seconds, body_seconds[0], pushed, os.getpid(), figures, changes)


def _return_freed_memory() -> None:
    """Return freed memory to the system: the worker process stays, and the next stage needs it."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # only glibc has it, and needs it
        ctypes.CDLL("libc.so.6").malloc_trim(0)


@contextmanager
def _warnings_to(send: Callable[[Say], None]) -> Iterator[None]:
    """Send warnings that libraries log during a stage as events."""

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
"""The current folder of a worker before its first stage: the code that Ray copied to the node."""
_live: list[Any] = []
