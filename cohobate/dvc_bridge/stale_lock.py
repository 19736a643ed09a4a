"""DVC's list of who is at which files, as a kill -9 can leave it: dropped when safe.

Torn in its writing, it stops every later command. Or it names processes that are gone, whose
numbers others have been given since: DVC would wait for those. That is the rule after a restart of
a container, where numbers are small.
"""

import contextlib
import json
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from cohobate.dvc_bridge.versioning import BUSY_SECONDS

_LIST = Path(".dvc/tmp/rwlock")
_COMMANDS = {"dvc", "cohobate"}
_CLOCK_SECONDS = 1.0
"""How far a process's start and a file's time may be apart in their clocks."""


def drop_stale_lock(root: Path) -> None:
    """Delete DVC's lock file if no living process holds a lock in it, or if it is torn.

    Workers that a killed round left behind end within seconds, and are waited for. A torn file does
    not say who holds a lock, so every process that works in `root` is waited for. Where one stays,
    the file stays too, and DVC's next call names it.
    """
    path = root / _LIST
    deadline = time.monotonic() + BUSY_SECONDS
    while ((found := holders(root)) is None and _at_work(root.resolve())) or _left_behind(found):
        if time.monotonic() > deadline:
            return
        time.sleep(0.5)
    if found is None or (found and not any(holder.alive for holder in found)):
        path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Holder:
    """A process in DVC's list, with what it holds."""

    pid: int
    command: str
    path: str
    """The file or folder that it reads or writes."""
    alive: bool


def holders(root: Path) -> list[Holder] | None:
    """Return the processes in DVC's list (`dvc.rwlock.SCHEMA`); None where the file is torn."""
    path = root / _LIST
    try:
        listed = json.loads(path.read_text())
        held = [(name, one) for name, some in listed.get("read", {}).items() for one in some]
        held += [(name, one) for name, one in listed.get("write", {}).items() if one]
        return [
            Holder(int(one["pid"]), one["cmd"], name, _held(int(one["pid"]), path))
            for name, one in held
        ]
    except FileNotFoundError:
        return []
    except (ValueError, AttributeError, TypeError, KeyError):
        return None


def _held(pid: int, path: Path) -> bool:
    """Whether the process that wrote itself into the list still lives."""
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:  # a container without init keeps its number
            return False
        return process.create_time() <= path.stat().st_mtime + _CLOCK_SECONDS
    except (psutil.NoSuchProcess, FileNotFoundError):
        return False
    except psutil.Error:  # someone else's: as DVC takes it
        return True


def _left_behind(found: list[Holder] | None) -> bool:
    """Return whether a holder is a Ray worker whose node was killed: it ends on its own."""
    for holder in (one for one in found or [] if one.alive):
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(holder.pid)
            node = process.parent()
            ray = any(
                "ray" in Path(word).parts or word.startswith("ray::")
                for word in process.cmdline()[:3]
            )
            if ray and (node is None or node.name() != "raylet"):
                return True
    return False


def _at_work(root: Path) -> list[int]:
    """Return the processes of others that run a stage, `dvc` or `cohobate` in or below `root`."""
    own = psutil.Process()
    mine = {own.pid, *(parent.pid for parent in own.parents())}
    found = []
    for process in psutil.process_iter(["name", "cmdline"]):
        name, words = process.info["name"], process.info["cmdline"] or []
        stage = name.startswith("ray::") and name != "ray::IDLE"
        if process.pid in mine or not (
            stage or _COMMANDS & {Path(word).name for word in words[:3]}
        ):
            continue
        try:
            if Path(process.cwd()).is_relative_to(root):
                found.append(process.pid)
        except psutil.Error:  # gone meanwhile, or someone else's
            continue
    return found
