"""A Prefect server on loopback with a database of its own."""

import json
import os
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tests.tiny_project import BIN


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Server:
    """A server that can be killed and started again, at the same address and with what it knew."""

    def __init__(self, home: Path, environment: Mapping[str, str] = MappingProxyType({})) -> None:
        self.home, self.port, self.environment = home, free_port(), environment
        self.url = f"http://127.0.0.1:{self.port}/api"

    def __enter__(self) -> "Server":
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.process.terminate()
        self.process.wait(30)

    def start(self) -> None:
        """Start it, and return once it answers."""
        command = [str(BIN / "prefect"), "server", "start", "--host", "127.0.0.1"]
        quiet = {"PREFECT_HOME": str(self.home), "PREFECT_UI_ENABLED": "false"}
        quiet |= {"DO_NOT_TRACK": "1", "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
        self.process = subprocess.Popen(
            [*command, f"--port={self.port}"],
            env={**os.environ, **quiet, **self.environment},
            stdout=subprocess.DEVNULL,
        )
        for _ in range(240):
            try:
                urllib.request.urlopen(f"{self.url}/health", timeout=5)
                break
            except OSError:
                time.sleep(0.5)

    def kill(self) -> None:
        """Kill it as -9 does: it says goodbye to nobody."""
        self.process.kill()
        self.process.wait(30)


@contextmanager
def prefect_server(home: Path) -> Iterator[str]:
    """Start a server; yield the address of its API once it answers."""
    with Server(home) as server:
        yield server.url


def api(server: str, route: str, query: dict[str, Any]) -> Any:
    """Ask the server's API."""
    request = urllib.request.Request(
        f"{server}/{route}",
        data=json.dumps(query).encode(),
        headers={"Content-Type": "application/json"},
    )
    return json.load(urllib.request.urlopen(request, timeout=30))
