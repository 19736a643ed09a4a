"""Two Ray nodes without a shared disk, and an S3 server: all here, with the real protocols."""

import contextlib
import os
import secrets
import select
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

    def __init__(self, behind: int) -> None:
        super().__init__(("127.0.0.1", 0), _Relay)
        self.behind, self.refused = behind, 0
        self.there = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

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
def s3() -> Iterator[S3]:
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
        with S3(port) as way:
            threading.Thread(target=way.serve_forever, daemon=True).start()
            way.come_back()
            yield way
            way.shutdown()
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def two_nodes(folder: Path) -> Iterator[dict[str, str]]:
    """Start a head and a worker node whose folders are apart; yield what a driver needs to know.

    Custom resources say which is which: `head` and `second`. Ray asks for a token.
    """
    port = free_port()
    address = f"127.0.0.1:{port}"
    token = folder / "ray-token"
    token.write_text(secrets.token_hex(32))
    known = CREDENTIALS | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
    }
    common = ["--num-cpus=1", "--object-store-memory=100000000", "--disable-usage-stats", "--block"]
    head = ["--head", f"--port={port}", "--include-dashboard=false", '--resources={"head":9}']
    head += [f"--ray-client-server-port={free_port()}"]
    second = [f"--address={address}", '--resources={"second":9}']
    started = []
    try:
        for name, where in (("head", head), ("second", second)):
            environment = os.environ | known | {"COHOBATE_WORKSPACES": str(folder / name)}
            log = folder / f"{name}.log"
            process = subprocess.Popen(
                [str(BIN / "ray"), "start", *where, *common],
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
