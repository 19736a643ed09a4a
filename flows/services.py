"""`cohobate up`: a Prefect server, a Ray node and a Prefect worker, all on loopback.

The services are recorded in `.cohobate/services.json`; while they run, every command of this
project uses them. They listen on 127.0.0.1 only, and Ray requires a token that only the user can
read: whoever can submit work to Ray or Prefect can run code on this machine.
"""

import contextlib
import importlib.util
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from pydantic import BaseModel

from cohobate.errors import UserError
from flows import auth_check, local_ray, prefect_server, ray_address
from flows.local_ray import LOOPBACK, OBJECT_STORE
from flows.prefect_home import STATE, use_project_server

POOL = "cohobate"
SERVICES = STATE / "services.json"
_LOGS = STATE / "logs"
_RAY_LOG = _LOGS / "ray.log"
_TOKEN = STATE / "ray-token"
_TRIES = 3
_ALL = ("prefect", "ray", "worker")


class Services(BaseModel):
    """The services that `cohobate up` started."""

    prefect_url: str
    ray_address: str
    pids: dict[str, int]
    """Process groups, by name."""

    def alive(self) -> bool:
        """Return whether all processes are running."""
        return all(name in self.pids and _alive(self.pids[name]) for name in _ALL)

    def environment(self, root: Path) -> dict[str, str]:
        """Return the variables that point Prefect and Ray at these services."""
        return {
            "PREFECT_API_URL": self.prefect_url,
            "RAY_ADDRESS": self.ray_address,
            **local_ray.environment(),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str((root / _TOKEN).absolute()),
        }


def running_services(root: Path) -> Services | None:
    """Return the services of a project; None unless all are running."""
    path = root / SERVICES
    if not path.exists():
        return None
    services = Services.model_validate_json(path.read_text())
    return services if services.alive() else None


def use_services(root: Path) -> None:
    """Make this process use the project's services where they run, else an ephemeral server.

    Raises:
        UserError: a server that others can reach is used without authentication, or that of
            PREFECT_API_URL or RAY_ADDRESS cannot be used.
    """
    if "PREFECT_API_URL" not in os.environ and (services := running_services(root)):
        os.environ.pop("RAY_AUTH_TOKEN", None)  # Ray prefers it to the file
        os.environ.update(services.environment(root))
    auth_check.check()
    use_project_server(root)
    prefect_server.check()
    ray_address.check()


def up(root: Path, say: Callable[[str], None]) -> Services:
    """Start the services that do not run yet, wait until each is ready, and return all.

    Running services are not restarted: a server may still have to react to a crashed round.

    Raises:
        UserError: one of them did not start; the others are stopped again. Or PREFECT_API_URL
            names another server, which every later command of this shell would use.
    """
    services = _remaining(root)
    if (other := os.environ.get("PREFECT_API_URL", "")) not in ("", services.prefect_url):
        raise UserError(
            "PREFECT_API_URL names another server than the one that `cohobate up` starts",
            where=f"PREFECT_API_URL={prefect_server.public(other)}",
            fix="unset PREFECT_API_URL, then cohobate up; or cohobate deploy, to use that server",
        )
    if services.alive():
        return services
    use_project_server(root)
    try:
        say(f"Prefect   {services.prefect_url.removesuffix('/api')}")
        if "prefect" not in services.pids:
            port = int(services.prefect_url.removesuffix("/api").rpartition(":")[2])
            _start(root, services, "prefect", _prefect_command(port))
            _wait(root, services, "prefect", lambda: _answers(f"{services.prefect_url}/health"))
        say(f"Ray       {services.ray_address}")
        if "ray" not in services.pids:
            _write_token(root)
            _start_ray(root, services, say)
        pool = ["work-pool", "create", POOL, "--type", "process", "--overwrite"]
        prefect_command(root, services, *pool)
        # rounds of one project take turns: they share its lock of rounds
        prefect_command(root, services, "work-pool", "set-concurrency-limit", POOL, "1")
        say(f"worker    of the pool {POOL}, one round at a time")
        _start(root, services, "worker", _worker_command())
        _wait(root, services, "worker", lambda: "READY" in _pool_status(root, services))
    except BaseException:
        down(root)
        raise
    return services


def _remaining(root: Path) -> Services:
    """Return the services that still run, with new addresses for the others.

    The worker got the addresses of the other two at its start: it is stopped when one has died.
    """
    services = Services(
        prefect_url=f"http://{LOOPBACK}:{_free_port()}/api",
        ray_address=f"{LOOPBACK}:{_free_port()}",
        pids={},
    )
    path = root / SERVICES
    if not path.exists():
        return services
    known = Services.model_validate_json(path.read_text())
    lost = {name for name in _ALL if name not in known.pids or not _alive(known.pids[name])}
    lost |= {"worker"} if lost else set()
    for name in lost & known.pids.keys():
        _signal(known.pids[name], signal.SIGKILL)
    # what still runs keeps its address; what is started anew gets a free port
    if "prefect" not in lost:
        services.prefect_url = known.prefect_url
    if "ray" not in lost:
        services.ray_address = known.ray_address
    services.pids = {name: pid for name, pid in known.pids.items() if name not in lost}
    return services


def _write_token(root: Path) -> None:
    token = root / _TOKEN
    token.parent.mkdir(exist_ok=True)
    token.unlink(missing_ok=True)
    # created with its mode: at no moment can another user read it
    with os.fdopen(os.open(token, os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
        file.write(secrets.token_hex(32))


def down(root: Path) -> list[str]:
    """Stop the services; return the names of those that were running."""
    path = root / SERVICES
    if not path.exists():
        return []
    services = Services.model_validate_json(path.read_text())
    stopped = [name for name, pid in services.pids.items() if _alive(pid)]
    for number, patience in ((signal.SIGTERM, 15.0), (signal.SIGKILL, 5.0)):
        # the worker first, while the server can still record its end
        for name in reversed(stopped):
            _signal(services.pids[name], number)
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline and any(_alive(p) for p in services.pids.values()):
            time.sleep(0.1)
    path.unlink()
    return stopped


def prefect_command(root: Path, services: Services, *words: str) -> str:
    """Run a Prefect command against the services; return its output.

    Raises:
        UserError: it failed.
    """
    command = [sys.executable, "-m", "prefect", "--no-prompt", *words]
    environment = os.environ | services.environment(root)
    done = subprocess.run(
        command, cwd=root, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:]
        raise UserError(f"prefect {words[0]} failed: {' '.join(last)}", fix="cohobate doctor")
    return done.stdout


def _prefect_command(port: int) -> list[str]:
    where = ["--host", LOOPBACK, f"--port={port}"]
    return [sys.executable, "-m", "prefect", "server", "start", *where]


def _ray_command(port: int) -> list[str]:
    here = ["--head", "--block", f"--node-ip-address={LOOPBACK}", f"--port={port}"]
    if importlib.util.find_spec("grpc"):  # Ray then starts its client server in any case
        here += [f"--ray-client-server-port={_free_port()}"]
    sizes = [f"--object-store-memory={OBJECT_STORE}", f"--num-cpus={os.cpu_count() or 1}"]
    ray = str(Path(sys.executable).with_name("ray"))
    return [ray, "start", *here, "--include-dashboard=false", *sizes]


def _start_ray(root: Path, services: Services, say: Callable[[str], None]) -> None:
    """Start Ray; repeat where a busy machine made one of its parts time out."""
    command = _ray_command(int(services.ray_address.rpartition(":")[2]))
    for left in reversed(range(_TRIES)):
        # an earlier try may have left the line that `_ray_runs` looks for
        (root / _RAY_LOG).unlink(missing_ok=True)
        _start(root, services, "ray", command)
        try:
            _wait(root, services, "ray", lambda: _ray_runs(root, services))
            return
        except UserError:
            if not left:
                raise
            say("Ray timed out and is started again")
            _signal(services.pids["ray"], signal.SIGKILL)


def _worker_command() -> list[str]:
    return [sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL, "--limit", "1"]


def _start(root: Path, services: Services, name: str, command: list[str]) -> None:
    log = root / _LOGS / f"{name}.log"
    log.parent.mkdir(exist_ok=True)
    port = services.prefect_url.removesuffix("/api")
    quiet = {"PREFECT_UI_API_URL": f"{port}/api", "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30"}
    environment = os.environ | services.environment(root) | quiet
    environment.pop("RAY_AUTH_TOKEN", None)  # Ray prefers it to the file
    with log.open("ab") as out:
        process = subprocess.Popen(
            command,
            cwd=root,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    services.pids[name] = process.pid
    # after each start: `down` finds what runs, also when a later one fails
    (root / SERVICES).write_text(services.model_dump_json(indent=2) + "\n")


def _wait(root: Path, services: Services, name: str, ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 180
    while not ready():
        if not _alive(services.pids[name]) or time.monotonic() > deadline:
            log = _LOGS / f"{name}.log"
            last = (root / log).read_text(errors="replace").strip().splitlines()[-1:]
            raise UserError(
                f"{name} did not start: {' '.join(last)}", where=str(log), fix="cohobate doctor"
            )
        time.sleep(0.5)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _ray_runs(root: Path, services: Services) -> bool:
    """Return whether Ray is healthy; the command is slow, so the log is read first."""
    if b"Ray runtime started" not in (root / _RAY_LOG).read_bytes():
        return False
    ray = str(Path(sys.executable).with_name("ray"))
    command = [ray, "health-check", "--address", services.ray_address]
    environment = os.environ | services.environment(root)
    done = subprocess.run(command, env=environment, capture_output=True, check=False)
    return done.returncode == 0


def _pool_status(root: Path, services: Services) -> str:
    pool: Any = json.loads(
        prefect_command(root, services, "work-pool", "inspect", POOL, "--output", "json")
    )
    return str(pool.get("status"))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        # free now; another process may take it before the service does
        port: int = probe.getsockname()[1]
        return port


def _alive(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    return False


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, number)
