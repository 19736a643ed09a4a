"""What a stage's files are worth: skip, restore or run, and where copies lie. Imports dvc alone.

The seam: DVC's own `Repo.reproduce` of one stage, with its shell command replaced by a call of the
stage's function in this process. Every rule of skipping, run-cache, restoring and locking stays
DVC's, and dvc.lock comes out byte for byte as from `dvc repro`. `dvc.stage.run.cmd_run` is a
private name: tests/cohobate/dvc_bridge/test_versioning.py is its contract.
"""

import json
import logging
import os
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

from cohobate.dvc_bridge.damaged_files import damaged_files, drop_damaged
from cohobate.dvc_bridge.dvc_errors import explained, missing
from cohobate.dvc_bridge.lock_file import place, unreadable
from cohobate.errors import UserError

Outcome = Literal["unchanged", "restored", "ran"]
DOOR = ["python", "-m", "tasks"]
BUSY_SECONDS = 60.0
"""How long a stage waits for another process that is at its files, before it gives up."""

ASKING = 0.3
"""Seconds in which DVC asks six times for a lock that is taken. Its own 3 are long beside the
moments for which the stages of a round hold it."""

ATTEMPTS = "2"
"""Times that botocore asks S3, below s3fs, which asks five times: twenty seconds without a server
are outlived, and one that is gone is told after forty, not four minutes."""
PATIENCE = 30.0
"""Seconds in which downloads that failed are asked for again: DVC gives each up at once."""


@dataclass(frozen=True)
class StageNode:
    """One stage of dvc.yaml with the stages it waits for."""

    address: str
    """`filter`, `train@kd`."""
    description: str
    upstream: tuple[str, ...]
    outs: tuple[str, ...]
    """Output paths, relative to the project's root."""

    @property
    def name(self) -> str:
        """The stage without its item: `train` of `train@kd`."""
        return self.address.partition("@")[0]


def stages(root: Path) -> list[StageNode]:
    """Return the graph of dvc.yaml, each stage after those it waits for, in `dvc repro`'s order.

    Raises:
        UserError: dvc.yaml, params.yaml or dvc.lock cannot be read.
    """
    from dvc.repo.reproduce import plan_repro

    with locked_repo(root) as repo:
        graph = repo.index.graph
        return [_node(stage, graph) for stage in plan_repro(graph) if _is_stage(stage)]


def reproduce(
    root: Path, address: str, body: Callable[[str], None], *, outputs_elsewhere: bool = False
) -> Outcome:
    """Bring one stage up to date by DVC's rules, calling `body(address)` where it must run.

    The stages it waits for must be up to date. Safe to call for different stages at once, from
    several processes; the current folder must be `root`.

    Args:
        root: The workspace.
        address: The stage.
        body: Runs the stage's function.
        outputs_elsewhere: Outputs of an unchanged stage need not lie here: the remote has them.

    Raises:
        UserError: DVC refuses; whatever `body` raises passes through unchanged.
    """
    from dvc.exceptions import ReproductionError
    from dvc.lock import LockError
    from dvc.repo import lock_repo
    from dvc.stage import run as dvc_run

    ran: list[str] = []

    def in_process(stage: Any, dry: bool = False, run_env: Any = None) -> None:
        for outs, below in around.inputs:
            _mend(repo, outs, below)
        ran.append(stage.addressing)
        command = shlex.split(stage.cmd) if isinstance(stage.cmd, str) else []
        if command[:3] == DOOR:
            body(command[3])
        else:  # a stage of the user's own that is a shell command
            shell(stage, dry=dry, run_env=run_env)

    shell = dvc_run.cmd_run
    deadline = time.monotonic() + BUSY_SECONDS
    with open_repo(root) as repo, patch.object(dvc_run, "cmd_run", in_process):
        with lock_repo(repo):  # else dvc.lock could be read while another stage writes it
            around = _surroundings(repo, address)
        absent = [out for out in around.outs if not out.exists and not outputs_elsewhere]
        # What is merely missing DVC pulls, and says that nothing changed; not what git keeps.
        pull = has_remote(repo) and all(out.use_cache for out in absent)
        while True:
            try:
                options = {"pull": pull, "allow_missing": outputs_elsewhere}
                changed = repo.reproduce([address], single_item=True, **options)
                restored = not ran and (changed or absent)
                with lock_repo(repo):
                    if around.new:
                        place(root, address, around.later)
                    stages = repo.stage.collect(address) if restored else []
                _mend(repo, [out for stage in stages for out in stage.outs])
                return "ran" if ran else "restored" if restored else "unchanged"
            except ReproductionError as error:
                cause = error.__cause__ or error
                if isinstance(cause, FileNotFoundError) and not ran:
                    raise missing(root, address, cause) from None
                if ran or not isinstance(cause, LockError) or time.monotonic() > deadline:
                    raise cause from None
                time.sleep(0.5)  # what a killed round left behind still has its files


def reasons(root: Path) -> dict[str, list[str]]:
    """Return why each changed stage is out of date, as DVC sees it now, without running anything.

    A stage that is merely downstream of a changed one is not listed.
    """
    with open_repo(root) as repo:
        status: dict[str, list[Any]] = repo.status()
    return {address: [*_explain(entries)] for address, entries in status.items()}


def lock_entry(root: Path, address: str) -> Any:
    """Return what dvc.lock says of a stage, as plain values; None where it says nothing."""
    with locked_repo(root):
        return _entries(root).get(address)


def summary(root: Path, address: str) -> dict[str, Any]:
    """Return the key figures that a stage wrote beside its outputs."""
    for out in (lock_entry(root, address) or {}).get("outs", []):
        path = root / out["path"] / "summary.json"
        if path.exists():
            figures: dict[str, Any] = json.loads(path.read_text())
            return figures
    return {}


def locked_stages(root: Path) -> list[str]:
    """Return the stages that dvc.lock knows, in its order."""
    with locked_repo(root):
        return [*_entries(root)]


def merge_into_lock(root: Path, address: str, entry: Any) -> None:
    """Write a stage's entry, made in another workspace, where `dvc repro` would have written it."""
    from dvc.utils.serialize import modify_yaml

    with locked_repo(root) as repo:
        around = _surroundings(repo, address)
        with modify_yaml(str(root / "dvc.lock")) as document:
            document.setdefault("schema", "2.0")
            document.setdefault("stages", {})[address] = entry
        if around.new:
            place(root, address, around.later)


def _entries(root: Path) -> dict[str, Any]:
    from dvc.utils.serialize import load_yaml

    lock = root / "dvc.lock"
    found: dict[str, Any] = load_yaml(str(lock)).get("stages", {}) if lock.exists() else {}
    return found


@dataclass(frozen=True)
class _Surroundings:
    """A stage in the graph, read once: to read dvc.yaml and dvc.lock is most of what DVC does."""

    outs: list[Any]
    inputs: list[tuple[list[Any], str]]
    """Outputs that it reads, each with the path below which it reads them."""
    later: set[str]
    """The stages that one `dvc repro` would run after it."""
    new: bool
    """Whether dvc.lock says nothing of it yet."""


def _surroundings(repo: Any, address: str) -> _Surroundings:
    from dvc.repo.reproduce import plan_repro

    order = [stage for stage in plan_repro(repo.index.graph) if _is_stage(stage)]
    (here,) = (at for at, stage in enumerate(order) if stage.name == address)
    inputs = [(outs, dep.fs_path) for dep in order[here].deps if (outs := writers(repo, dep))]
    later = {stage.name for stage in order[here + 1 :]}
    new = address not in _entries(Path(repo.root_dir))
    return _Surroundings(order[here].outs, inputs, later, new)


def _mend(repo: Any, outs: list[Any], below: str = "") -> None:
    """Fetch files again whose bytes are not those that they were saved as.

    DVC trusts its cache, and files that it took from there: a flipped bit would go unnoticed.

    Raises:
        UserError: a file is damaged, and so is every copy of it, or there is none.
    """
    for out in outs:
        if not (wrong := [path for path in damaged_files(out) if path.startswith(below)]):
            continue
        logging.getLogger(__name__).warning("damaged, fetched again: %s", ", ".join(wrong))
        drop_damaged(out, wrong)
        if has_remote(repo):
            patiently(partial(repo.fetch, targets=[out.fs_path]))
        try:
            out.checkout(force=True)
            wrong = damaged_files(out)
        except Exception as error:  # whatever DVC makes of an object that is nowhere
            raise _lost(wrong, str(error)) from error
        if wrong:
            raise _lost(wrong, "its bytes are not what dvc.lock says")


def _lost(paths: list[str], why: str) -> UserError:
    return UserError(
        f"damaged, and there is no good copy: {', '.join(Path(path).name for path in paths)}",
        where=f"{paths[0]} ({why})",
        fix="delete it, and run the stage again that writes it: dvc repro --force <stage>",
    )


def patiently(download: Callable[[], object]) -> None:
    """Call what downloads from a remote, and again while it is out of reach.

    Raises:
        DownloadError: it stayed so; what the remote does not have is another error, told at once.
    """
    from dvc.exceptions import DownloadError
    from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

    again, end = retry_if_exception_type(DownloadError), stop_after_delay(PATIENCE)
    Retrying(retry=again, stop=end, wait=wait_fixed(2), reraise=True)(download)


def writers(repo: Any, dep: Any) -> list[Any]:
    """Return the outputs, of stages or tracked, that a dependency is, is part of, or holds."""
    try:
        found: list[Any] = repo.find_outs_by_path(dep.fs_path, strict=False, recursive=True)
    except Exception:  # DVC has an error of its own for: it is no output
        return []
    return [out for out in found if out.use_cache]


@contextmanager
def open_repo(root: Path) -> Iterator[Any]:
    """Open the DVC repository; its errors become errors for people."""
    from dvc import lock
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from dvc.rwlock import RWLockFileCorruptedError
    from dvc.utils.strictyaml import YAMLSyntaxError, YAMLValidationError

    logging.getLogger("dvc").setLevel(logging.WARNING)
    os.environ.setdefault("AWS_MAX_ATTEMPTS", ATTEMPTS)
    lock.DEFAULT_TIMEOUT = ASKING
    try:
        # Waiting for the lock: parallel stages of one round share it for moments at a time.
        repo = Repo(str(root), _wait_for_lock=True)
        try:
            yield repo
        finally:
            repo.close()
    except RWLockFileCorruptedError as error:  # a process was killed while it wrote the file
        fix = "when no other dvc or cohobate runs here: rm .dvc/tmp/rwlock"
        raise UserError("DVC's lock file is torn", where=".dvc/tmp/rwlock", fix=fix) from error
    except (YAMLSyntaxError, YAMLValidationError) as error:
        raise unreadable(root / error.path, _root_cause(error)) from error
    except DvcException as error:
        raise explained(root, error) from error


@contextmanager
def locked_repo(root: Path) -> Iterator[Any]:
    """Open the DVC repository for what reads dvc.lock: other stages may be writing it."""
    from dvc.repo import lock_repo

    with open_repo(root) as repo, lock_repo(repo):
        yield repo


def configuration(folder: Path) -> Any:
    """Return DVC's configuration of a folder, which need not be a repository yet."""
    from dvc.config import Config

    return Config(str(folder / ".dvc"))


def _is_stage(stage: Any) -> bool:
    """Say whether dvc.yaml names it: DVC's graph holds tracked files (`<path>.dvc`) as well."""
    return hasattr(stage, "name")


def _node(stage: Any, graph: Any) -> StageNode:
    # `addressing` has the path of dvc.yaml in it when the current folder is another
    upstream = sorted(other.name for other in graph.successors(stage) if _is_stage(other))
    outs = tuple(out.def_path for out in stage.outs)
    return StageNode(stage.name, stage.desc or "", tuple(upstream), outs)


def has_remote(repo: Any) -> bool:
    """Say whether `push` has somewhere to go."""
    return bool(repo.config["core"].get("remote"))


def _explain(entries: list[Any]) -> Iterator[str]:
    for entry in entries:
        if isinstance(entry, str):  # "changed command", "always changed"
            yield entry
            continue
        for kind, things in entry.items():
            for thing, state in things.items():
                if isinstance(state, dict):  # params.yaml: {train.kd.updates: modified}
                    yield from (f"{name} {how}" for name, how in state.items())
                else:
                    yield f"{thing} {'is ' if 'outs' in kind else ''}{state}"


def _root_cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error)
