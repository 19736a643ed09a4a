"""Two Ray nodes without a shared disk, and an S3 server: all here, with the real protocols."""

import contextlib
import os
import secrets
import select
import shlex
import shutil
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.prefect_server import free_port
from tests.tiny_project import BIN

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
}


def moto_server() -> Path:
    """Return moto's S3 server, in an environment of its own: its botocore is not DVC's."""
    cache = Path(os.environ.get("COHOBATE_CACHE", Path.home() / ".cache/cohobate"))
    venv = cache / "moto-server"
    server = venv / "bin/moto_server"
    if not server.exists():
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
        install = [str(venv / "bin/pip"), "install", "--quiet", "moto[server]"]
        subprocess.run(install, check=True)
    return server


class S3(socketserver.ThreadingTCPServer):
    """The way to an S3 server with one bucket; it can be cut, as when the server is gone."""

    daemon_threads = True

    def __init__(self, host: str, behind: int) -> None:
        super().__init__((host, 0), _Relay)
        self.behind, self.refused = behind, 0
        self.there = threading.Event()
        self.url = f"http://{host}:{self.server_address[1]}"

    def vanish(self) -> None:
        """Break what is open, and refuse what comes."""
        self.there.clear()

    def come_back(self) -> None:
        self.there.set()


class _Relay(socketserver.BaseRequestHandler):
    server: S3

    def handle(self) -> None:
        if not self.server.there.is_set():
            self.server.refused += 1
            return
        with socket.create_connection(("127.0.0.1", self.server.behind)) as upstream:
            ends = {self.request: upstream, upstream: self.request}
            while self.server.there.is_set():
                for ready in select.select(list(ends), [], [], 0.2)[0]:
                    if not (data := ready.recv(2**16)):
                        return
                    ends[ready].sendall(data)


@contextlib.contextmanager
def s3(host: str) -> Iterator[S3]:
    """Serve a bucket at an address of this machine."""
    port = free_port()
    command = [str(moto_server()), "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(200):
            with contextlib.suppress(OSError):
                put = urllib.request.Request(f"http://127.0.0.1:{port}/bucket", method="PUT")
                urllib.request.urlopen(put, timeout=5)
                break
            time.sleep(0.2)
        with S3(host, port) as way:
            threading.Thread(target=way.serve_forever, daemon=True).start()
            way.come_back()
            yield way
            way.shutdown()
    finally:
        process.kill()
        process.wait()


class Machines(NamedTuple):
    """Addresses of the two, and what a command of the second starts with."""

    first: str
    second: str
    on_second: tuple[str, ...]


THIS_MACHINE = Machines("127.0.0.1", "127.0.0.1", ())


@contextlib.contextmanager
def two_machines() -> Iterator[Machines]:
    """Make of this machine two that share a cable alone, where that is allowed (root, Linux).

    The second has a network namespace of its own, so that its loopback is not ours, and mounts of
    its own, so that folders can be hidden from it. Elsewhere both are this machine.
    """
    name = f"cohobate-{os.getpid()}"
    net = f"10.{os.getpid() % 200 + 20}.{os.getpid() // 200 % 250}"
    ours, theirs, ends = f"{net}.1", f"{net}.2", (f"co{os.getpid()}a", f"co{os.getpid()}b")
    lines = [
        f"ip netns add {name}",
        f"ip link add {ends[0]} type veth peer name {ends[1]} netns {name}",
        f"ip addr add {ours}/30 dev {ends[0]}",
        f"ip link set {ends[0]} up",
        f"ip -n {name} addr add {theirs}/30 dev {ends[1]}",
        f"ip -n {name} link set {ends[1]} up",
        f"ip -n {name} link set lo up",
    ]
    try:
        possible = shutil.which("ip") and shutil.which("unshare")
        if possible and all(_done(line) for line in lines):
            inside = ("ip", "netns", "exec", name, "unshare", "--mount")
            yield Machines(ours, theirs, inside)
        else:
            yield THIS_MACHINE
    finally:
        if shutil.which("ip"):
            _done(f"ip link del {ends[0]}")
            _done(f"ip netns del {name}")


def _done(line: str) -> bool:
    return subprocess.run(line.split(), capture_output=True, check=False).returncode == 0


@contextlib.contextmanager
def two_nodes(machines: Machines, folder: Path, hidden: list[Path]) -> Iterator[dict[str, str]]:
    """Start a head and a worker node whose folders are apart; yield what a driver needs to know.

    Custom resources say which is which: `head` and `second`. Ray asks for a token. On a machine of
    its own the second sees nothing of the folders in `hidden`, nor of Ray's own on the first.
    """
    port = free_port()
    address = f"{machines.first}:{port}"
    token = folder / "ray-token"
    token.write_text(secrets.token_hex(32))
    known = CREDENTIALS | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    common = ["--num-cpus=1", "--object-store-memory=100000000", "--disable-usage-stats", "--block"]
    head = ["--head", f"--port={port}", "--include-dashboard=false", '--resources={"head":9}']
    head += [f"--ray-client-server-port={free_port()}", f"--node-ip-address={machines.first}"]
    second = [f"--address={address}", f"--node-ip-address={machines.second}"]
    ray = str(BIN / "ray")
    commands = {
        "head": [ray, "start", *head, *common],
        "second": [ray, "start", *second, '--resources={"second":9}', *common],
    }
    if machines.on_second:
        covers = [f"mkdir -p {path} && mount -t tmpfs none {path}" for path in hidden]
        start = " && ".join([*covers, shlex.join(["exec", *commands["second"]])])
        commands["second"] = [*machines.on_second, "sh", "-c", start]
    started = []
    try:
        for name, command in commands.items():
            environment = os.environ | known | {"COHOBATE_WORKSPACES": str(folder / name)}
            log = folder / f"{name}.log"
            process = subprocess.Popen(
                command,
                env=environment,
                stdout=log.open("wb"),
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            started.append(process)
            deadline = time.monotonic() + 120
            while "Ray runtime started" not in log.read_text():
                assert process.poll() is None and time.monotonic() < deadline, log.read_text()
                time.sleep(0.1)
        yield known | {"RAY_ADDRESS": address}
    finally:
        for process in reversed(started):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        for process in started:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
