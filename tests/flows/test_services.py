"""The two commands of a fresh clone: services on loopback alone, and a round through them."""

from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from flows.round_history import History
from flows.services import Services
from tests.flows import quick_project
from tests.flows.quick_project import start

pytestmark = [pytest.mark.round, pytest.mark.slow]


def listening(group: int) -> set[str]:
    """Return the addresses on which a process and those below it listen."""
    leader = psutil.Process(group)
    return {
        socket.laddr.ip
        for process in (leader, *leader.children(recursive=True))
        for socket in process.net_connections("tcp")
        if socket.status == psutil.CONN_LISTEN
    }


def runs(pid: int) -> bool:
    """Say whether a process is there, and is no zombie that waits to be reaped."""
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    project = quick_project.build(tmp_path)
    yield project
    start(project, "cohobate", "down").wait(timeout=60)


def test_up_listens_on_loopback_alone_runs_a_round_and_goes_down(root: Path) -> None:
    for words in (["up"], ["trigger", "nightly", "--wait"]):
        process = start(root, "cohobate", *words)
        output = process.communicate(timeout=600)[0]
        assert process.returncode == 0, output
        if words == ["up"]:
            text = (root / ".cohobate/services.json").read_text()
            services = Services.model_validate_json(text)
            heard = {name: listening(pid) for name, pid in services.pids.items()}
            token = root / ".cohobate/ray-token"
            assert heard["prefect"] == {"127.0.0.1"}
            assert heard["ray"] <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
            assert token.stat().st_mode & 0o777 == 0o600
    assert History(root).numbers() == [1]
    start(root, "cohobate", "down").wait(timeout=60)
    assert not any(runs(pid) for pid in services.pids.values())
