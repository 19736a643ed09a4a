"""What a round survives, and what it says where it cannot: a real server, Ray and kill -9.

Without the marker `faults` are those that take a minute, so that every run of the tests has some.
"""

import random
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from flows.round_history import History
from flows.services import Services
from tests.flows import quick_project
from tests.flows.quick_project import ran, start
from tests.prefect_server import Server, api

pytestmark = pytest.mark.round


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return quick_project.build(tmp_path)


def finished(process: subprocess.Popen[str]) -> tuple[int, str]:
    output = process.communicate(timeout=600)[0]
    return process.returncode, output


def newest_flow(server: str) -> dict[str, Any]:
    query = {"sort": "START_TIME_DESC", "limit": 10}
    return next(
        f for f in api(server, "flow_runs/filter", query) if f["parent_task_run_id"] is None
    )


def task_states(server: str) -> dict[str, dict[str, Any]]:
    """Return the newest tasks of stages, by name."""
    runs = api(server, "task_runs/filter", {"sort": "EXPECTED_START_TIME_DESC", "limit": 6})
    return {task["name"]: task for task in reversed(runs)}


def test_a_stage_that_always_crashes_ends_in_a_terminal_state(
    root: Path, prefect_server: str
) -> None:
    (root.parent / "mode").write_text("crash train")
    code, output = finished(start(root, "cohobate", "run", PREFECT_API_URL=prefect_server))
    assert code == 1
    assert "its worker died" in output and "Traceback" not in output
    assert ran(root).count("train") == 4  # two phases, each retried once
    states = task_states(prefect_server)
    assert {states[f"train {phase}"]["state_type"] for phase in ("kd", "baseline")} == {"FAILED"}
    assert states["collect"]["state_type"] == "COMPLETED"
    assert newest_flow(prefect_server)["state_type"] == "FAILED"


@pytest.mark.faults
def test_a_stage_out_of_memory_is_run_again_by_prefect_alone(
    root: Path, prefect_server: str
) -> None:
    (root.parent / "mode").write_text("hog collect")
    most = psutil.virtual_memory().percent / 100 + 0.15  # a quarter is going to be asked for
    known = {"PREFECT_API_URL": prefect_server, "RAY_memory_usage_threshold": str(most)}
    code, output = finished(start(root, "cohobate", "run", **known))
    print(output)
    assert code == 0
    assert "OutOfMemoryError" in output
    assert ran(root).count("collect") == 2
    collect = task_states(prefect_server)["collect"]
    assert (collect["state_type"], collect["run_count"]) == ("COMPLETED", 2)


def test_two_at_once_make_two_rounds_one_after_the_other(root: Path, prefect_server: str) -> None:
    (root.parent / "mode").write_text("slow 5")
    two = [start(root, "cohobate", "iterate", PREFECT_API_URL=prefect_server) for _ in range(2)]
    ends = sorted(finished(process) for process in two)
    assert [code for code, _ in ends] == [0, 1]
    assert "another process is running rounds here" in ends[1][1]
    assert History(root).numbers() == [1]
    assert ran(root).count("train") == 2
    assert History(root).unfinished() == []


@pytest.fixture
def interrupts_count() -> Iterator[None]:
    """Undo what a shell does that starts the tests in the background: SIGINT would be ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interrupts_count")
@pytest.mark.parametrize(
    "signal_", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.faults)]
)
def test_a_round_that_is_asked_to_stop_leaves_no_process_behind(
    root: Path, signal_: signal.Signals
) -> None:
    (root.parent / "mode").write_text("slow 600")
    process = start(root, "cohobate", "run")  # with a server and a Ray of its own
    wait_for(lambda: "train" in ran(root), 300)
    its_own = psutil.Process(process.pid).children(recursive=True)
    assert any("prefect.server" in " ".join(child.cmdline()) for child in its_own)
    process.send_signal(signal_)
    code, output = finished(process)
    assert code == 130
    assert "stopped; finished stages are kept" in output and "Traceback" not in output
    assert psutil.wait_procs(its_own, timeout=20)[1] == []
    (root.parent / "mode").write_text("")
    code, output = finished(start(root, "cohobate", "run"))
    assert code == 0, output
    assert ran(root).count("collect") == 1


def outage(root: Path, server: Server, after: float) -> None:
    """Kill the server -9 while a round runs, and start it again; the round must end well."""
    (root.parent / "mode").write_text("slow 6")
    process = start(root, "cohobate", "run", "--json", PREFECT_API_URL=server.url)
    deadline = time.monotonic() + 600
    while "train" not in ran(root):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(after)
    server.kill()
    time.sleep(4)
    server.start()
    code, output = finished(process)
    assert code == 0, output


def settled(server: str) -> dict[str, str]:
    """Return the state of each task of the newest round once the server has heard all."""
    for _ in range(60):
        flow = newest_flow(server)
        of_it = {"flow_runs": {"id": {"any_": [flow["id"]]}}}
        states = {t["name"]: t["state_type"] for t in api(server, "task_runs/filter", of_it)}
        if {flow["state_type"], *states.values()} == {"COMPLETED"}:
            break
        time.sleep(0.5)
    return states | {"the flow": flow["state_type"]}


@pytest.mark.faults
def test_the_server_is_killed_in_mid_flow_and_every_state_is_right_in_the_end(
    tmp_path: Path,
) -> None:
    rng, landed = random.Random(14), 0
    with Server(tmp_path / "prefect") as server:
        for number in range(3):
            root = quick_project.build(tmp_path / str(number))
            outage(root, server, rng.uniform(0, 5))
            landed += 1
            assert settled(server.url) == dict.fromkeys(
                ("collect", "train baseline", "train kd", "challenge", "hard_examples", "the flow"),
                "COMPLETED",
            )
            assert sorted(ran(root)) == ["challenge", "collect", "hard_examples", "train", "train"]
    print(f"{landed} servers killed in mid-flow, all states right")


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Path]:
    """A project with its own Prefect server, Ray, worker, deployments and automations."""
    root = quick_project.build(tmp_path)
    code, output = finished(start(root, "cohobate", "up"))
    assert code == 0, output
    yield root
    finished(start(root, "cohobate", "down"))


def services(root: Path) -> Services:
    return Services.model_validate_json((root / ".cohobate/services.json").read_text())


def wait_for(ready: Any, seconds: float) -> float:
    """Wait until `ready()` is true; return the seconds that it took."""
    began = time.monotonic()
    while not ready():
        assert time.monotonic() - began < seconds
        time.sleep(0.5)
    return time.monotonic() - began


def asked_for(root: Path) -> list[dict[str, Any]]:
    """Return all runs of rounds that no schedule made, the newest first."""
    query = {"sort": "EXPECTED_START_TIME_DESC", "flows": {"name": {"any_": ["iterate-rounds"]}}}
    runs = api(services(root).prefect_url, "flow_runs/filter", query)
    return [run for run in runs if not run["auto_scheduled"]]


def flow_states(root: Path) -> list[str]:
    """Return their states."""
    return [run["state_type"] for run in asked_for(root)]


@pytest.mark.faults
def test_a_round_killed_with_its_runner_is_noticed_and_resumed(up: Path) -> None:
    (up.parent / "mode").write_text("slow 600")
    assert finished(start(up, "cohobate", "trigger", "on-demand"))[0] == 0
    wait_for(lambda: "train" in ran(up), 300)
    runner = psutil.Process(services(up).pids["worker"])
    for process in [runner, *runner.children(recursive=True)]:
        process.kill()
    seen = wait_for(lambda: "CRASHED" in flow_states(up), 120)
    (up.parent / "mode").write_text("")
    assert finished(start(up, "cohobate", "up"))[0] == 0  # a runner again
    wait_for(lambda: History(up).numbers() == [1], 180)  # the automation asked for it
    assert finished(start(up, "cohobate", "trigger", "on-demand", "--wait"))[0] == 0
    assert History(up).numbers() == [1, 2]
    assert History(up).unfinished() == []
    print(f"1 runner and flow killed: seen after {seen:.0f} s, taken up, the next round ran")


@pytest.mark.faults
@pytest.mark.parametrize("name", ["nightly", "on-demand"])
def test_two_runs_of_a_deployment_at_once(up: Path, name: str) -> None:
    (up.parent / "mode").write_text("slow 10")
    for _ in range(2):
        assert finished(start(up, "cohobate", "trigger", name))[0] == 0
    terminal = {"COMPLETED", "CANCELLED", "FAILED", "CRASHED"}
    wait_for(lambda: len(flow_states(up)) == 2 and set(flow_states(up)) <= terminal, 200)
    states = flow_states(up)
    done = states.count("COMPLETED")
    assert done >= 1 and set(states) <= {"COMPLETED", "CANCELLED"}
    assert History(up).numbers() == [*range(1, done + 1)]  # none lost
    assert ran(up).count("collect") == done  # none twice
    assert History(up).unfinished() == []
    print(f"2 runs of {name} at once: {states}")


def stages_on_ray() -> list[psutil.Process]:
    """Return the processes in which a stage that trains is at work."""
    return [p for p in psutil.process_iter(["name"]) if p.info["name"].startswith("ray::train")]


@pytest.mark.faults
def test_a_round_that_is_cancelled_stops_its_work_and_is_not_taken_up(up: Path) -> None:
    (up.parent / "mode").write_text("slow 600")
    assert finished(start(up, "cohobate", "trigger", "on-demand"))[0] == 0
    wait_for(lambda: len(stages_on_ray()) == 2, 300)
    server = services(up).prefect_url
    (flow,) = asked_for(up)
    wish = {"state": {"type": "CANCELLING", "name": "Cancelling"}}  # what the UI's button asks for
    api(server, f"flow_runs/{flow['id']}/set_state", wish)
    gone = wait_for(lambda: not stages_on_ray(), 10)
    wait_for(lambda: flow_states(up) == ["CANCELLED"], 30)
    everything = api(server, "flow_runs/filter", {"flow_runs": {"state": {"type": {"not_any_": [
        "SCHEDULED"]}}}})  # fmt: skip
    assert {run["state_type"] for run in everything} == {"CANCELLED"}  # the subflow too
    time.sleep(20)
    assert flow_states(up) == ["CANCELLED"]  # no automation took it for a crash
    print(f"cancelled: the work on Ray was gone after {gone:.1f} s")
