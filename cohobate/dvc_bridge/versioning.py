"""Skip, restore or run a stage by DVC's own rules.

`reproduce` is DVC's own `Repo.reproduce` of one stage, with the stage's shell command replaced by a
call of its function in this process. Every rule of skipping, restoring, run-cache and locking stays
DVC's, and dvc.lock comes out byte for byte as from `dvc repro`, once `sort_lock` was called at the
end of the round. What is private in DVC stands in `private_calls.py`.
"""

import json
import logging
import os
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from cohobate.dvc_bridge import private_calls
from cohobate.dvc_bridge.damaged_files import damaged_files, drop_damaged
from cohobate.dvc_bridge.dvc_errors import as_user_error, missing_dependency
from cohobate.dvc_bridge.lock_file import sort_entries, unreadable
from cohobate.errors import UserError

Outcome = Literal["unchanged", "restored", "ran"]
STAGE_COMMAND = ["python", "-m", "tasks"]
"""How dvc.yaml starts the commands of stages that are functions of `tasks`."""
BUSY_SECONDS = 60.0
"""How long a stage waits for another process that uses its files before it fails."""
S3_ATTEMPTS = "2"
"""Attempts of botocore for one S3 request. s3fs above it tries five times, so that an outage of
twenty seconds is survived, and a server that is gone is reported after forty seconds instead of
four minutes."""
DOWNLOAD_SECONDS = 30.0
"""For how long failed downloads are retried; DVC itself tries once."""


@dataclass(frozen=True)
class StageNode:
    """One stage of dvc.yaml, with the stages whose outputs it reads."""

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
    """Return the graph of dvc.yaml in the order in which `dvc repro` runs it.

    Raises:
        UserError: dvc.yaml, params.yaml or dvc.lock cannot be read.
    """
    with locked_repo(root) as repo:
        graph = repo.index.graph
        return [_node(stage, graph) for stage in private_calls.run_order(graph) if _is_stage(stage)]


def reproduce(
    root: Path, address: str, body: Callable[[str], None], *, outputs_elsewhere: bool = False
) -> Outcome:
    """Bring one stage up to date by DVC's rules; call `body(address)` where it must run.

    The stages that it depends on must be up to date. Safe to call for different stages at once,
    from several processes; the current folder must be `root`.

    Args:
        root: The workspace.
        address: The stage.
        body: Runs the stage's function.
        outputs_elsewhere: Outputs of an unchanged stage need not be in `root`: the remote has them.

    Raises:
        UserError: DVC refuses; whatever `body` raises passes through unchanged.
    """
    ran: list[str] = []

    def run_in_process(stage: Any, dry: bool = False, run_env: Any = None) -> None:
        for written, path in inputs:
            _repair(repo, written, path)
        ran.append(stage.addressing)
        command = shlex.split(stage.cmd) if isinstance(stage.cmd, str) else []
        if command[:3] == STAGE_COMMAND:
            body(command[3])
        else:  # a stage of the user's own that is a shell command
            run_shell(stage, dry=dry, run_env=run_env)

    errors, deadline = private_calls.errors(), time.monotonic() + BUSY_SECONDS
    with open_repo(root) as repo, private_calls.command_replaced_by(run_in_process) as run_shell:
        with private_calls.locked(repo):  # another stage may be writing dvc.lock
            # The graph is read once for all: dvc.yaml and dvc.lock are most of DVC's time.
            (node,) = (n for n in repo.index.stages if _is_stage(n) and n.name == address)
            # else DVC pulls them, and where the remote has none it refuses, or pushes none
            cached_again = [out for out in node.outs if _cache_again(out)]
            inputs = [(outputs_at(repo, dep), dep.fs_path) for dep in node.deps]
        absent = [out for out in node.outs if not out.exists and not outputs_elsewhere]
        # DVC pulls missing outputs and reports "unchanged"; it cannot pull those that git tracks.
        pull = has_remote(repo) and all(out.use_cache for out in absent)
        while True:
            try:
                options = {"pull": pull, "allow_missing": outputs_elsewhere}
                changed = repo.reproduce([address], single_item=True, **options)
                if ran:
                    return "ran"
                if not (changed or absent or cached_again):
                    return "unchanged"
                with private_calls.locked(repo):
                    outs = _collect(repo, address).outs
                _repair(repo, outs)
                return "restored"
            except errors.reproduction as error:
                cause = error.__cause__ or error
                if isinstance(cause, FileNotFoundError) and not ran:
                    raise missing_dependency(root, address, cause) from None
                # a body that ran is not run twice: its error is the stage's own
                if ran or not isinstance(cause, errors.lock) or time.monotonic() > deadline:
                    raise cause from None
                time.sleep(0.5)  # the worker of a killed round may still hold the stage's files


def sort_lock(root: Path, nodes: Sequence[StageNode]) -> None:
    """Sort dvc.lock as one `dvc repro` would have written it: call it at the end of a round."""
    with locked_repo(root):
        sort_entries(root, [node.address for node in nodes])


def reasons(root: Path) -> dict[str, list[str]]:
    """Return why each changed stage is out of date, as DVC sees it now, without running anything.

    A stage that is merely downstream of a changed one is not listed.
    """
    with open_repo(root) as repo:
        status: dict[str, list[Any]] = repo.status()
    return {address: [*_changes(entries)] for address, entries in status.items()}


def lock_entry(root: Path, address: str) -> Any:
    """Return the entry of a stage in dvc.lock as plain values; None where there is none."""
    with locked_repo(root):
        return _entries(root).get(address)


def summary(root: Path, address: str) -> dict[str, Any]:
    """Return the `summary.json` that a stage wrote among its outputs; empty where there is none."""
    for out in (lock_entry(root, address) or {}).get("outs", []):
        path = root / out["path"] / "summary.json"
        if path.exists():
            figures: dict[str, Any] = json.loads(path.read_text())
            return figures
    return {}


def locked_stages(root: Path) -> list[str]:
    """Return the addresses of the stages in dvc.lock, in its order."""
    with locked_repo(root):
        return [*_entries(root)]


def merge_into_lock(root: Path, address: str, entry: Any) -> None:
    """Write the entry of a stage that ran in another workspace into dvc.lock."""
    with locked_repo(root), private_calls.edit_yaml(root / "dvc.lock") as document:
        document.setdefault("schema", "2.0")
        document.setdefault("stages", {})[address] = entry


def _entries(root: Path) -> dict[str, Any]:
    lock = root / "dvc.lock"
    content = private_calls.load_yaml(lock) if lock.exists() else {}
    entries: dict[str, Any] = content.get("stages", {})
    return entries


def _collect(repo: Any, address: str) -> Any:
    (stage,) = repo.stage.collect(address)
    return stage


def _cache_again(out: Any) -> bool:
    """Put an output that the cache has lost back into it from the workspace; say if it was so."""
    if not (out.use_cache and out.hash_info and out.exists and out.changed_cache()):
        return False
    if out.changed_checksum():  # the workspace has other bytes
        return False
    out.commit()
    return True


def _repair(repo: Any, outs: list[Any], below: str = "") -> None:
    """Fetch files again whose bytes differ from those that DVC saved.

    DVC trusts its cache and the files that it took from there: a flipped bit would go unnoticed.

    Raises:
        UserError: a file is damaged, and so is every copy of it, or there is none.
    """
    for out in outs:
        if not (damaged := [path for path in damaged_files(out) if path.startswith(below)]):
            continue
        logging.getLogger(__name__).warning("damaged, fetched again: %s", ", ".join(damaged))
        # the cache may have the same damage: what stays there is good, and is not fetched
        drop_damaged(out, damaged)
        if has_remote(repo):
            retry_download(partial(repo.fetch, targets=[out.fs_path]))
        try:
            out.checkout(force=True)
            damaged = damaged_files(out)
        except Exception as error:  # DVC raises many kinds where an object is nowhere
            raise _no_good_copy(damaged, str(error)) from error
        if damaged:
            raise _no_good_copy(damaged, "its bytes are not what dvc.lock says")


def _no_good_copy(paths: list[str], reason: str) -> UserError:
    return UserError(
        f"damaged, and there is no good copy: {', '.join(Path(path).name for path in paths)}",
        where=f"{paths[0]} ({reason})",
        fix="delete it, and run the stage that writes it: dvc repro --force <stage>",
    )


def retry_download(download: Callable[[], object]) -> None:
    """Call `download`, and again while the remote cannot be reached.

    Raises:
        DownloadError: the remote stayed out of reach. An object that the remote does not have is
            another error, raised at once.
    """
    from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

    retry = retry_if_exception_type(private_calls.errors().download)
    end = stop_after_delay(DOWNLOAD_SECONDS)
    Retrying(retry=retry, stop=end, wait=wait_fixed(2), reraise=True)(download)


def outputs_at(repo: Any, dep: Any) -> list[Any]:
    """Return the cached outputs, of stages or tracked, that lie at, above or below a dependency."""
    try:
        outs: list[Any] = repo.find_outs_by_path(dep.fs_path, strict=False, recursive=True)
    except Exception:  # DVC raises where the path belongs to no output
        return []
    return [out for out in outs if out.use_cache]


@contextmanager
def open_repo(root: Path) -> Iterator[Any]:
    """Open the DVC repository; DVC's errors become `UserError`."""
    logging.getLogger("dvc").setLevel(logging.WARNING)
    # it warns for each file of each killed process, and takes them off its list
    logging.getLogger("dvc.rwlock").setLevel(logging.ERROR)
    os.environ.setdefault("AWS_MAX_ATTEMPTS", S3_ATTEMPTS)
    errors = private_calls.errors()
    try:
        repo = private_calls.open_repository(root)
        try:
            yield repo
        finally:
            repo.close()
    except errors.torn_lock_list as error:  # a process was killed while it wrote the file
        fix = "when no other dvc or cohobate process runs in this project: rm .dvc/tmp/rwlock"
        where = ".dvc/tmp/rwlock"
        raise UserError("DVC's list of locks is incomplete", where=where, fix=fix) from error
    except (errors.yaml_syntax, errors.yaml_schema) as error:
        raise unreadable(root / error.path, _root_cause(error)) from error  # type: ignore[attr-defined]
    except errors.any as error:
        raise as_user_error(root, error) from error


@contextmanager
def locked_repo(root: Path) -> Iterator[Any]:
    """Open the DVC repository and hold its lock: other stages may be writing dvc.lock."""
    with open_repo(root) as repo, private_calls.locked(repo):
        yield repo


def _is_stage(stage: Any) -> bool:
    """Return whether dvc.yaml names it: DVC's graph also holds tracked files (`<path>.dvc`)."""
    return hasattr(stage, "name")


def _node(stage: Any, graph: Any) -> StageNode:
    # not `stage.addressing`: outside `root` it starts with the path of dvc.yaml
    upstream = sorted(other.name for other in graph.successors(stage) if _is_stage(other))
    outs = tuple(out.def_path for out in stage.outs)
    return StageNode(stage.name, stage.desc or "", tuple(upstream), outs)


def has_remote(repo: Any) -> bool:
    """Return whether there is a default remote to push to."""
    return bool(repo.config["core"].get("remote"))


def _changes(entries: list[Any]) -> Iterator[str]:
    """Yield a line for each change in a stage's entry of `dvc status`."""
    for entry in entries:
        if isinstance(entry, str):  # "changed command", "always changed"
            yield entry
            continue
        for kind, items in entry.items():
            for path, state in items.items():
                if isinstance(state, dict):  # params.yaml: {train.kd.updates: modified}
                    yield from (f"{name} {change}" for name, change in state.items())
                else:
                    yield f"{path} {'is ' if 'outs' in kind else ''}{state}"


def _root_cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error)
