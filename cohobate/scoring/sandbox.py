"""Sandbox: runs the code of an answer with unit tests, without network, home folder or environment.

On Linux the program has namespaces of its own (mounts, processes, network, users), which need no
superuser: it sees the interpreter, read-only, and an empty folder in memory. When it ends, or its
time is over, every process that it started ends too. Resource limits hold besides. Where a system
has no such namespaces (macOS, and containers that forbid `unshare`) nothing runs, unless
`isolation: limits` permits it.
"""

import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
from functools import lru_cache
from pathlib import Path
from typing import Literal

from pydantic import Field

from cohobate.errors import UserError
from cohobate.params import Section
from cohobate.scoring import sandbox_child

_MB = 1024 * 1024
_PASSED = "passed"
_GRACE = 10.0
_OUTPUT = 4096
"""Bytes of the output that are read: a verdict takes fewer."""


class Sandbox(Section):
    """Limits of a program."""

    seconds: int = Field(5, ge=1)
    """Seconds of processor time. A busy machine changes no verdict."""
    wait_seconds: float = Field(30.0, gt=0)
    """Seconds until a program that sleeps is stopped."""
    memory_mb: int = Field(512, ge=64)
    """Address space of each process, in MiB."""
    processes: int = Field(8, ge=1)
    """Most processes and threads at a time, the program's own included."""
    file_mb: int = Field(16, ge=1)
    """Largest file, and most that all files take together, in MiB."""
    isolation: Literal["required", "limits"] = "required"
    """`required`: without namespaces nothing runs. `limits`: then the program runs all the same, as
    the user who runs the round, with an empty environment, resource limits and a folder of its own,
    but can read files and reach the network: for code that is trusted."""

    def run(self, code: str, tests: str) -> str:
        """Run `code`, then `tests` with its names; return `passed`, or why it did not pass.

        The reason is the name of the exception, `stopped` where a limit of time or memory ended the
        process, or `no verdict` where it ended itself.

        Raises:
            UserError: there is no isolation on this machine, and `isolation` requires it.
        """
        return _run(self, code, tests)

    def check(self, where: str) -> None:
        """Run a program that passes.

        Raises:
            UserError: it cannot be run, or not isolated.
        """
        verdict = self.run("def one():\n    return 1", "assert one() == 1")
        if verdict != _PASSED:
            raise UserError(
                f"the sandbox of the verifier `code` cannot run a program: {verdict}",
                where=where,
                fix="cohobate run --set task.verifier.sandbox.memory_mb=1024",
            )

    def _settings(self, *, isolated: bool) -> str:
        python = os.path.realpath(sys.executable)
        return json.dumps(
            {
                "isolated": isolated,
                "python": python,
                "prefix": os.path.realpath(sys.base_prefix),
                "seconds": self.seconds,
                "wait_seconds": self.wait_seconds,
                "memory": self.memory_mb * _MB,
                "processes": self.processes,
                "file": self.file_mb * _MB,
                "disk": self.file_mb * _MB,
            }
        )


@lru_cache(maxsize=1 << 16)
def _run(sandbox: Sandbox, code: str, tests: str) -> str:
    """Run a program; the same answer to the same tests is run once."""
    isolated = sys.platform == "linux"
    if isolated:
        try:
            return _started(sandbox, code, tests, isolated=True)
        except OSError as error:
            reason = str(error)
    else:
        reason = f"{sys.platform} has no namespaces"
    if sandbox.isolation == "required":
        raise UserError(
            f"code of a model cannot be isolated on this machine: {reason}",
            where="params.yaml, task.verifier.sandbox",
            fix="a Linux machine or container that allows user namespaces (docker run "
            "--security-opt seccomp=unconfined); or, for code that you trust, cohobate run --set "
            "task.verifier.sandbox.isolation=limits",
        )
    return _started(sandbox, code, tests, isolated=False)


def _started(sandbox: Sandbox, code: str, tests: str, *, isolated: bool) -> str:
    """Run a program in a process of its own.

    Raises:
        OSError: the isolation failed.
    """
    nonce = secrets.token_hex(16)
    with (
        tempfile.TemporaryDirectory(prefix="sandbox-") as folder,
        # files, not pipes: the limit of a file's size holds for them, and nothing has to be read
        tempfile.TemporaryFile() as given,
        tempfile.TemporaryFile() as written,
        tempfile.TemporaryFile() as errors,
    ):
        given.write(json.dumps({"nonce": nonce, "code": code, "tests": tests}).encode())
        given.seek(0)
        process = subprocess.Popen(
            [
                os.path.realpath(sys.executable),
                *("-I", "-S", "-B", str(Path(sandbox_child.__file__).resolve())),
                sandbox._settings(isolated=isolated),
            ],
            stdin=given,
            stdout=written,
            stderr=errors,
            env={},
            cwd=folder,
            start_new_session=True,
        )
        # an isolated process ends by itself in time; the other one is ended here
        late = sandbox.wait_seconds + (_GRACE if isolated else 0.0)
        timer = threading.Timer(late, _kill, [process.pid])
        timer.start()
        try:
            code_of_end = process.wait()
        finally:
            timer.cancel()
            # what is left of its session; in namespaces nothing is
            _kill(process.pid)
        if code_of_end == sandbox_child.FAILED:
            errors.seek(0)
            if reason := errors.read(_OUTPUT).decode(errors="replace"):
                raise OSError(reason)
        written.seek(0)
        return _verdict(written.read(_OUTPUT), nonce, code_of_end)


def _kill(session: int) -> None:
    try:
        os.killpg(session, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):  # macOS says so of a process that has ended
        return


def _verdict(output: bytes, nonce: str, code_of_end: int) -> str:
    try:
        # the first verdict: a program that forks gives several. One that writes a verdict itself
        # does not know the nonce
        (given, verdict), _ = json.JSONDecoder().raw_decode(output.decode())
        if given == nonce and isinstance(verdict, str):
            return verdict
    except (ValueError, TypeError):
        pass
    return "stopped" if code_of_end else "no verdict"
