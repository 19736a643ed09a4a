"""A Prefect server for the tests that run rounds."""

import os
import subprocess
import time
import urllib.request
from collections.abc import Iterator

import pytest

from tests.tiny_project import BIN


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Prefect server of its own, so that each round need not start one."""
    home = tmp_path_factory.mktemp("prefect")
    url = "http://127.0.0.1:4299/api"
    command = [str(BIN / "prefect"), "server", "start", "--host", "127.0.0.1", "--port", "4299"]
    quiet = {"PREFECT_HOME": str(home), "DO_NOT_TRACK": "1", "PREFECT_UI_ENABLED": "false"}
    process = subprocess.Popen(command, env=os.environ | quiet, stdout=subprocess.DEVNULL)
    for _ in range(240):
        try:
            urllib.request.urlopen(f"{url}/health", timeout=5)
            break
        except OSError:
            time.sleep(0.5)
    yield url
    process.terminate()
    process.wait(30)
