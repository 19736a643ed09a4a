"""Remove DVC's list of locks (`.dvc/tmp/rwlock`) where a killed process left it behind.

The list names the processes that read or write each file. A process killed while it writes the list
leaves half of it, which stops every later command. A list may also name processes that have ended
and whose numbers belong to others by now: DVC would wait for those. That is usual after a restart
of a container, where process numbers are small.
"""

import contextlib
import json
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import psutil

from cohobate.dvc_bridge.versioning import BUSY_SECONDS

_LIST = Path(".dvc/tmp/rwlock")
_COMMANDS = {"dvc", "cohobate"}
_CLOCK_SECONDS = 1.0
"""Difference that the clocks of process starts and of file times may have."""


def drop_stale_lock(root: Path) -> None:
    """Delete DVC's list of locks if no living process holds one, or if the list is incomplete.

    Workers of a killed round end within seconds: this waits for them, as they may be writing
    dvc.lock. An incomplete list does not say who holds a lock, so this waits for every process that
    works in `root`. Where one goes on, the list stays, and DVC's next call names the process.
    """
    path = root / _LIST
    deadline = time.monotonic() + BUSY_SECONDS
    while (
        ((held := holders(root)) is None and _working_in(root.resolve(), _COMMANDS))
        or _orphaned(held)
        or _working_in(root.resolve())
    ):
        if time.monotonic() > deadline:
            return
        time.sleep(0.5)
    if held is None or (held and not any(holder.alive for holder in held)):
        path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Holder:
    """A process in DVC's list of locks, with the file that it holds."""

    pid: int
    command: str
    path: str
    """The file or folder that it reads or writes."""
    alive: bool


def holders(root: Path) -> list[Holder] | None:
    """Return the processes in DVC's list (`dvc.rwlock.SCHEMA`); None where it is incomplete."""
    path = root / _LIST
    try:
        content = json.loads(path.read_text())
        entries = [(file, entry) for file, readers in content.get("read", {}).items()
                   for entry in readers]  # fmt: skip
        entries += [(file, writer) for file, writer in content.get("write", {}).items() if writer]
        return [
            Holder(int(entry["pid"]), entry["cmd"], file, _lives(int(entry["pid"]), path))
            for file, entry in entries
        ]
    except FileNotFoundError:
        return []
    except (ValueError, AttributeError, TypeError, KeyError):
        return None


def _lives(pid: int, path: Path) -> bool:
    """Return whether the process that wrote itself into the list still lives."""
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:  # a container without init keeps its number
            return False
        # a process younger than the list has the number of one that ended
        return process.create_time() <= path.stat().st_mtime + _CLOCK_SECONDS
    except (psutil.NoSuchProcess, FileNotFoundError):
        return False
    except psutil.Error:  # another user's process: DVC counts it as living
        return True


def _orphaned(held: list[Holder] | None) -> bool:
    """Return whether a holder is a Ray worker whose node was killed: it ends by itself."""
    for holder in (holder for holder in held or [] if holder.alive):
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(holder.pid)
            node = process.parent()
            # the raylet of a node is the parent of its workers; without it they end by themselves
            ray = any(
                "ray" in Path(word).parts or word.startswith("ray::")
                for word in process.cmdline()[:3]
            )
            if ray and (node is None or node.name() != "raylet"):
                return True
    return False


def _working_in(root: Path, commands: Collection[str] = ()) -> list[int]:
    """Return the other processes that run a stage on Ray, or a command, in or below `root`."""
    own = psutil.Process()
    # the parents too: this command may run under `dvc` or in a worker
    mine = {own.pid, *(parent.pid for parent in own.parents())}
    pids = []
    for process in psutil.process_iter(["name", "cmdline"]):
        name, words = process.info["name"], process.info["cmdline"] or []
        stage = name.startswith("ray::") and name != "ray::IDLE"
        if process.pid in mine or not (
            stage or {*commands} & {Path(word).name for word in words[:3]}
        ):
            continue
        try:
            if Path(process.cwd()).is_relative_to(root):
                pids.append(process.pid)
        except psutil.Error:  # ended meanwhile, or another user's
            continue
    return pids
