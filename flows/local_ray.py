"""Environment and limits of the local Ray node, which `cohobate up` and each round start."""

import contextlib
import os
import secrets
import sys
from collections.abc import Mapping
from pathlib import Path

from cohobate.errors import UserError

LOOPBACK = "127.0.0.1"
OBJECT_STORE = 128 * 2**20
_SOCKET = "ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"
"""The longest socket's path below Ray's temporary folder."""
_SOCKET_BYTES = 103 if sys.platform == "darwin" else 107
"""The operating system's limit on the path of a socket."""
_PACKAGE = f"{os.sep}site-packages{os.sep}ray{os.sep}"
_SHORT_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")


def use_loopback() -> None:
    """Prepare this process to start a Ray node that only this machine and this user can reach.

    Call before `import ray`, which reads the first variable then.

    Raises:
        UserError: no temporary folder is short enough for Ray's sockets.
    """
    os.environ.update(environment())
    os.environ.setdefault(
        "RAY_AUTH_TOKEN", secrets.token_hex(32)
    )  # else it would be a file in HOME


def environment(variables: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the variables of a Ray node on loopback and of its clients.

    Raises:
        UserError: no temporary folder is short enough for Ray's sockets.
    """
    return {
        # without this Ray takes 127.0.0.1 for the machine's own address, and listens on every one
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        # Ray's 15 gives a stage a thirtieth of a core that any other program wants
        "RAY_worker_niceness": variables.get("RAY_worker_niceness", "0"),
        "RAY_TMPDIR": _temporary_folder(variables),
    }


def kill_remaining() -> None:
    """Kill the processes of a Ray node whose start failed: Ray does so only at this process's exit.

    They would slow a second attempt down.
    """
    import psutil

    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            words = process.cmdline()[:4]
            if any(word.startswith("ray::") or _PACKAGE in word for word in words):
                process.kill()


def _temporary_folder(variables: Mapping[str, str]) -> str:
    """Return the folder for Ray's sockets and logs: `RAY_TMPDIR`, `TMPDIR`, or a short one."""
    chosen = variables.get("RAY_TMPDIR")
    if chosen and not _fits(chosen):
        raise UserError(
            f"RAY_TMPDIR is too long for Ray's sockets, or not writable "
            f"({len(os.fsencode(chosen))} bytes, at most {_longest()})",
            where=f"RAY_TMPDIR={chosen}",
            fix="export RAY_TMPDIR=/tmp",
        )
    candidates = [chosen, variables.get("TMPDIR"), *_SHORT_FOLDERS]
    for folder in filter(None, candidates):
        if _fits(folder):
            return folder
    raise UserError(
        f"no temporary folder is writable and at most {_longest()} bytes long, as Ray's sockets "
        "require",
        where=", ".join(filter(None, candidates)),
        fix="export RAY_TMPDIR=<a short folder on a local disk that you can write to>",
    )


def _fits(folder: str) -> bool:
    path = Path(folder)
    with contextlib.suppress(OSError):
        path.mkdir(parents=True, exist_ok=True)
    return os.access(path, os.W_OK | os.X_OK) and len(os.fsencode(folder)) <= _longest()


def _longest() -> int:
    return _SOCKET_BYTES - len(f"/{_SOCKET}")
