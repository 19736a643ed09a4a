"""DVC's list of who is at which files, torn by a kill -9 in its writing: dropped when safe."""

import json
import time
from pathlib import Path

import psutil

from tasks.lineage.versioning import BUSY_SECONDS

_COMMANDS = {"dvc", "cohobate"}


def drop_torn_lock(root: Path) -> None:
    """Delete the list where it is torn and nobody is left who may stand in it.

    Who stood in it cannot be known any more, so whoever is at work in `root` is waited for: the
    workers that a killed round left behind go within seconds. If one stays, the list stays too, and
    DVC's next call says so.
    """
    path = root / ".dvc/tmp/rwlock"
    deadline = time.monotonic() + BUSY_SECONDS
    while _torn(path) and time.monotonic() < deadline:
        if not _at_work(root.resolve()):
            path.unlink(missing_ok=True)
            return
        time.sleep(0.5)


def _torn(path: Path) -> bool:
    try:
        json.loads(path.read_text())
    except FileNotFoundError:
        return False
    except ValueError:
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
