"""`dvc repro` and the flow run a round in the same way: same skips, and the same dvc.lock."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests import tiny_project
from tests.flows import quick_project
from tests.prefect_server import api
from tests.tiny_project import BIN, ROOT, outcomes, run

pytestmark = pytest.mark.round


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_project.build_teacher(tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="module")
def by_dvc(tmp_path_factory: pytest.TempPathFactory, teacher: Path) -> Path:
    """A project that `dvc repro` has run, with nothing but DVC."""
    folder = tiny_project.build(tmp_path_factory.mktemp("dvc") / "project", teacher)
    done = run(folder, "dvc", "repro")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def by_flow(tmp_path_factory: pytest.TempPathFactory, teacher: Path, prefect_server: str) -> Path:
    """A project that the flow has run from nothing, and a tracker followed."""
    settings = {"track": ["tensorboard"]}
    folder = tiny_project.build(tmp_path_factory.mktemp("flow") / "project", teacher, settings)
    first = outcomes(folder, PREFECT_API_URL=prefect_server)
    assert first.pop("code") == "unchanged"  # it runs before the flow starts
    assert set(first.values()) == {"ran"}
    return folder


@pytest.fixture
def flow(by_flow: Path, prefect_server: str) -> Any:
    return lambda *options: outcomes(by_flow, *options, PREFECT_API_URL=prefect_server)


def lock(folder: Path) -> bytes:
    return (folder / "dvc.lock").read_bytes()


def idle(results: dict[str, str]) -> bool:
    return set(results.values()) == {"unchanged"}


def test_dvc_repro_and_the_flow_write_the_same_lock(by_dvc: Path, by_flow: Path) -> None:
    assert lock(by_dvc) == lock(by_flow)


def test_the_tracker_has_the_curves_and_the_figures(by_flow: Path) -> None:
    rounds = by_flow / "reports/trackers/tensorboard"
    # the figures lie at the top of the round's folder, each training run below it
    events = {path.parent.name: path.read_bytes() for path in rounds.rglob("events*")}
    assert {"round", "kd-seed-1", "baseline-seed-1", "adapt@main"} <= {*events}
    assert b"terms/forward_kl" in events["kd-seed-1"]
    for name in (b"filter/kept", b"train.kd/seconds", b"scores/student.score", b"models/train/kd"):
        assert name in events["round"], name


def test_after_the_flow_dvc_has_nothing_to_do(by_flow: Path) -> None:
    done = run(by_flow, "dvc", "repro")
    assert "Running stage" not in done.stdout and "up to date" in done.stdout


def test_after_dvc_the_flow_has_nothing_to_do(by_dvc: Path, prefect_server: str) -> None:
    before = lock(by_dvc)
    assert idle(outcomes(by_dvc, PREFECT_API_URL=prefect_server))
    assert lock(by_dvc) == before


def test_a_changed_param_runs_what_it_touches_and_changed_back_is_restored(
    by_flow: Path, flow: Any
) -> None:
    before = lock(by_flow)
    document = (by_flow / "params.yaml").read_text()
    changed = flow("--set", "train.kd.learning_rate=0.0001")
    ran = {address for address, outcome in changed.items() if outcome == "ran"}
    assert ran == {
        "preflight",
        "dev_checks",
        "train@kd",
        "evaluate",
        "challenge",
        "hard_examples",
        "export",
    }
    assert {changed[a] for a in changed if a not in ran} == {"unchanged"}
    (by_flow / "params.yaml").write_text(document)
    back = flow()
    assert {a for a, outcome in back.items() if outcome == "restored"} == ran
    assert "ran" not in back.values()
    assert lock(by_flow) == before


def test_deleted_outputs_are_restored(by_flow: Path, flow: Any) -> None:
    before = lock(by_flow)
    shutil.rmtree(by_flow / "models/train/kd")
    shutil.rmtree(by_flow / "data/filter")
    results = flow()
    assert {a for a, o in results.items() if o == "restored"} == {"filter", "train@kd"}
    assert "ran" not in results.values()
    assert lock(by_flow) == before


def test_killed_in_the_middle_a_round_ends_with_the_same_lock(
    tmp_path: Path, teacher: Path, prefect_server: str, by_dvc: Path
) -> None:
    folder = tiny_project.build(tmp_path / "project", teacher)
    environment = os.environ | {"PREFECT_API_URL": prefect_server}
    command = [str(BIN / "cohobate"), "run"]
    process = subprocess.Popen(
        command, cwd=folder, env=environment, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    wait_for(folder / "data/generate/main/responses.jsonl", process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    results = outcomes(folder, PREFECT_API_URL=prefect_server)
    assert results["collect"] == "unchanged" and results["evaluate"] == "ran"
    assert lock(folder) == lock(by_dvc)


def wait_for(path: Path, process: subprocess.Popen) -> None:
    for _ in range(1200):
        if path.exists():
            return
        assert process.poll() is None, "the round ended before it could be killed"
        time.sleep(0.1)
    raise AssertionError(f"{path} never came")


def test_a_failing_stage_is_reported_as_failed(
    tmp_path: Path, teacher: Path, prefect_server: str
) -> None:
    folder = tiny_project.build(tmp_path / "project", teacher)
    (folder / "rows.jsonl").write_text('{"text": "only one row", "answer": "animal"}\n')
    done = run(folder, "cohobate", "run", PREFECT_API_URL=prefect_server)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "collect" in done.stderr and "fix:" in done.stderr
    assert not (folder / "data/filter").exists()
    newest = api(prefect_server, "flow_runs/filter", {"sort": "START_TIME_DESC", "limit": 1})[0]
    assert newest["state_type"] == "FAILED"
    tasks = api(prefect_server, "task_runs/filter", {"flow_runs": {"id": {"any_": [newest["id"]]}}})
    states = {task["name"]: task["state_type"] for task in tasks}
    assert states["collect"] == "FAILED"
    assert states["filter"] == "PENDING"  # NotReady: it never ran


def quickstart() -> list[list[str]]:
    """Return the commands of docs/quickstart.md, in order."""
    page = (ROOT / "docs/quickstart.md").read_text()
    blocks = re.findall(r"^```bash\n(.*?)^```", page, re.M | re.S)
    return [shlex.split(line) for block in blocks for line in block.splitlines()]


@pytest.mark.slow
def test_the_commands_of_the_quickstart_run_as_written(
    by_dvc: Path, tmp_path: Path, prefect_server: str
) -> None:
    shutil.copytree(ROOT / "recipes", by_dvc / "recipes")
    (by_dvc / "questions.jsonl").write_text('{"question": "1 + 1", "answer": "2"}\n' * 20)
    rounds = quick_project.build(tmp_path)  # of stages that only write a file
    first, *commands = quickstart()
    assert first == ["make", "distill"]  # here `dvc repro` has made what it makes
    for command in commands:
        folder = rounds if command[1] in ("iterate", "rounds") else by_dvc
        done = run(folder, *command, typed="beast a b c\n", PREFECT_API_URL=prefect_server)
        assert done.returncode in (0, 3), (command, done.stderr)  # tiny models may fail the gate
    assert (by_dvc / "params.yaml").read_text().count("1.0e-3") == 2  # the baseline's, and now kd's
