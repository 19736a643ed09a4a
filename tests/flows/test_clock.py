"""Fault 17: a clock that is set back and forward, and summer time: one round a slot."""

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from tests.flows import quick_project
from tests.flows.quick_project import start
from tests.prefect_server import Server, api

FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1")
BERLIN = ZoneInfo("Europe/Berlin")
HALF_A_DAY = timedelta(hours=12)

pytestmark = [
    pytest.mark.round,
    pytest.mark.faults,
    pytest.mark.skipif(not FAKETIME.exists(), reason="needs libfaketime (Debian: faketime)"),
]


class Clock:
    """What a process started in `environment` takes for the time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.environment = {
            "LD_PRELOAD": str(FAKETIME),
            "FAKETIME_TIMESTAMP_FILE": str(path),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }

    def set(self, now: datetime) -> None:
        self.path.write_text(f"{(now - datetime.now(UTC)).total_seconds():+.0f}\n")


def slots(server: str, after: datetime) -> list[datetime]:
    """Return when the runs of `nightly` that its schedule made are to start, from `after` on."""
    query = {
        "deployments": {"name": {"any_": ["nightly"]}},
        "flow_runs": {"expected_start_time": {"after_": after.isoformat()}},
        "sort": "EXPECTED_START_TIME_ASC",
    }
    runs: list[dict[str, Any]] = api(server, "flow_runs/filter", query)
    made = [run for run in runs if run["auto_scheduled"]]
    return [datetime.fromisoformat(run["expected_start_time"]) for run in made]


@pytest.mark.parametrize(
    "day", [datetime(2026, 10, 25, tzinfo=UTC), datetime(2027, 3, 28, tzinfo=UTC)],
    ids=["the hour that comes twice", "the hour that is missing"],
)  # fmt: skip
def test_one_round_a_slot_whatever_the_clock_does(tmp_path: Path, day: datetime) -> None:
    root, clock = quick_project.build(tmp_path), Clock(tmp_path / "clock")
    deployments = root / "infra/prefect.yaml"
    nightly = '{cron: "0 2 * * *", timezone: UTC, active: true}'
    at_half_past = nightly.replace('"0 2', '"30 2').replace("UTC", "Europe/Berlin")
    assert nightly in deployments.read_text()
    deployments.write_text(deployments.read_text().replace(nightly, at_half_past))
    clock.set(day - HALF_A_DAY)
    often = {
        "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "1",
        "PREFECT_SERVER_SERVICES_SCHEDULER_RECENT_DEPLOYMENTS_LOOP_SECONDS": "1",
    }
    with Server(tmp_path / "prefect", clock.environment | often) as server:
        for words in (["prefect", "work-pool", "create", "cohobate", "--type", "process"],
                      ["cohobate", "deploy"]):  # fmt: skip
            doing = start(root, *words, PREFECT_API_URL=server.url)
            output = doing.communicate(timeout=300)[0]
            assert doing.returncode == 0, output
        for minutes in (25, 65, 20, 100, 40, 24 * 60, 2 * 24 * 60):  # since midnight, UTC
            clock.set(day + timedelta(minutes=minutes))
            time.sleep(4)  # the scheduler looks every second
        for _ in range(180):  # a busy machine takes its time; what is made is what counts
            times = [slot.astimezone(BERLIN) for slot in slots(server.url, day - HALF_A_DAY)]
            if len(times) >= 5:  # the third day's three ahead
                break
            time.sleep(1)
    days = [slot.date() for slot in times]
    print(f"{len(days)} slots: {[slot.isoformat() for slot in times]}")
    assert len(days) >= 5
    assert days == [days[0] + timedelta(days=n) for n in range(len(days))]  # none twice, none lost
    assert day.date() in days
