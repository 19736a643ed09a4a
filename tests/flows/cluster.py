"""Two Ray nodes without a shared disk, and an S3 server: all here, with the real protocols."""

import contextlib
import os
import signal
import subprocess
import sys
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


class S3:
    """A server with one bucket; it can be frozen, as a network that is gone."""

    def __init__(self, port: int, process: subprocess.Popen) -> None:
        self.url, self._process = f"http://127.0.0.1:{port}", process

    def freeze(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._process.send_signal(signal.SIGCONT)


@contextlib.contextmanager
def s3() -> Iterator[S3]:
    port = free_port()
    command = [str(moto_server()), "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    server = S3(port, process)
    try:
        for _ in range(200):
            with contextlib.suppress(OSError):
                put = urllib.request.Request(f"{server.url}/bucket", method="PUT")
                urllib.request.urlopen(put, timeout=5)
                break
            time.sleep(0.2)
        yield server
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def two_nodes(folder: Path) -> Iterator[str]:
    """Start a head and a worker node whose folders are apart; yield the address.

    Custom resources say which is which: `head` and `second`.
    """
    port = free_port()
    address = f"127.0.0.1:{port}"
    common = ["--num-cpus=2", "--disable-usage-stats", "--block", "--include-dashboard=false"]
    head = ["--head", f"--port={port}", "--node-ip-address=127.0.0.1", '--resources={"head":9}']
    second = [f"--address={address}", '--resources={"second":9}']
    started = []
    for name, where in (("head", head), ("second", second)):
        environment = os.environ | CREDENTIALS | {"COHOBATE_WORKSPACES": str(folder / name)}
        keep = common if name == "head" else common[:-1]
        process = subprocess.Popen(
            [str(BIN / "ray"), "start", *where, *keep, "--object-store-memory=100000000"],
            env=environment,
            stdout=(folder / f"{name}.log").open("wb"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        started.append(process)
        time.sleep(8)
    try:
        yield address
    finally:
        for process in reversed(started):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        for process in started:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
