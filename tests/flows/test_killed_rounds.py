"""Faults 1 and 2: kill -9 of a round in each of its stages, and of its driver alone.

The stages are the real ones, over tiny rows and weights, and end with the bytes of a clean run.
"""

import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tasks.lineage import versioning
from tests import tiny_project
from tests.tiny_project import BIN, outcomes, run

pytestmark = [pytest.mark.round, pytest.mark.faults]


def started_in(folder: Path, stage: str, **env: str) -> subprocess.Popen[str]:
    """Start a round in a process group of its own; return once `stage` is at work."""
    process = subprocess.Popen(
        [str(BIN / "cohobate"), "run"],
        cwd=folder,
        env=os.environ | {"COHOBATE_CACHE": str(folder.parent / "cache")} | env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stderr
    for line in process.stderr:
        if line.split()[:2] == [stage, "started"]:
            return process
    raise AssertionError(f"{stage} never started: exit code {process.wait()}")


def stages_at_work(folder: Path) -> list[str]:
    """Return the stages that Ray's workers have in hand in this folder, one for each process."""
    found = []
    for process in psutil.process_iter(["name"]):
        name = process.info["name"]
        try:
            if name.startswith("ray::") and name != "ray::IDLE" and process.cwd() == str(folder):
                found.append(name.removeprefix("ray::"))
        except psutil.Error:
            continue
    return found


def test_1_killed_in_every_stage_a_round_ends_with_the_same_lock(
    tmp_path: Path, prefect_server: str
) -> None:
    server = {"PREFECT_API_URL": prefect_server}
    teacher = tiny_project.build_teacher(tmp_path / "teacher")
    clean = tiny_project.build(tmp_path / "clean" / "project", teacher)
    assert set(outcomes(clean, **server).values()) == {"ran"}

    folder = tiny_project.build(tmp_path / "killed" / "project", teacher)
    dice, landed = random.Random(1), []
    names = [stage.address for stage in versioning.stages(folder)]
    for name in names:
        process = started_in(folder, name, **server)
        time.sleep(dice.uniform(0, 1))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        while stages_at_work(folder):  # a worker that its node outlives goes when it notices
            time.sleep(0.1)
        if name in versioning.reasons(folder):
            landed.append(name)
    found = outcomes(folder, **server)
    assert set(found) == set(names)
    assert (folder / "dvc.lock").read_bytes() == (clean / "dvc.lock").read_bytes()
    print(f"{len(landed)} of {len(names)} kills landed before their stage ended: {landed}")
    assert len(landed) >= len(names) // 2


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Path]:
    """A project of real stages whose Ray outlives the round that uses it."""
    teacher = tiny_project.build_teacher(tmp_path / "teacher")
    slow = {"train.kd.updates": 1500, "train.baseline.updates": 4}
    folder = tiny_project.build(tmp_path / "up" / "project", teacher, slow)
    done = run(folder, "cohobate", "up")
    assert done.returncode == 0, done.stderr
    yield folder
    run(folder, "cohobate", "down")


@contextmanager
def watching(folder: Path) -> Iterator[list[list[str]]]:
    """Note, ten times a second, which stages are at work."""
    seen: list[list[str]] = []
    stop = threading.Event()

    def look() -> None:
        while not stop.wait(0.1):
            seen.append(stages_at_work(folder))

    watcher = threading.Thread(target=look)
    watcher.start()
    yield seen
    stop.set()
    watcher.join()


def test_2_what_a_killed_driver_leaves_at_work_is_never_there_twice(
    tmp_path: Path, up: Path, prefect_server: str
) -> None:
    dice = random.Random(2)
    with watching(up) as seen:
        for _ in range(3):
            driver = started_in(up, "train@kd")
            time.sleep(dice.uniform(0.5, 3))
            assert "train@kd" in stages_at_work(up)
            os.kill(driver.pid, signal.SIGKILL)  # its node, its workers: all go on
            driver.wait()
        found = outcomes(up)
    most = max(at_work.count("train@kd") for at_work in seen)
    print(f"3 drivers killed -9: train@kd at work {most} times at once at most")
    assert most == 1
    assert found["train@kd"] == "ran" and found["collect"] == "unchanged"
    clean = tiny_project.build(tmp_path / "clean" / "project", up / "teacher")
    (clean / "params.yaml").write_text((up / "params.yaml").read_text())
    outcomes(clean, PREFECT_API_URL=prefect_server)
    assert (up / "dvc.lock").read_bytes() == (clean / "dvc.lock").read_bytes()
