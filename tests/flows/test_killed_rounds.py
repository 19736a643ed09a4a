"""Faults 1 and 2: kill -9 of a round in each of its stages, and of its driver alone.

The stages are the real ones, over tiny rows and weights, and end with the bytes of a clean run.
"""

import os
import random
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from cohobate.dvc_bridge import versioning
from tests import tiny_project
from tests.tiny_project import BIN, outcomes, run

pytestmark = [pytest.mark.round, pytest.mark.faults]


SEALED = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child", "--mount-proc"]
"""Runs a command among processes of its own, of which none outlives it: as if its machine died."""


def started_in(folder: Path, stage: str, *around: str, **env: str) -> subprocess.Popen[str]:
    """Start a round in a process group of its own; return once `stage` is at work."""
    process = subprocess.Popen(
        [*around, str(BIN / "cohobate"), "run"],
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


def workers(folder: Path) -> list[str]:
    """Return what each of Ray's workers that is in this folder has in hand: a stage, or `IDLE`."""
    processes = []
    for process in psutil.process_iter(["name"]):
        name = process.info["name"]
        try:
            if name.startswith("ray::") and process.cwd() == str(folder):
                processes.append(name.removeprefix("ray::"))
        except psutil.Error:
            continue
    return processes


def killed_in(folder: Path, stage: str, saved: list[Path], rng: random.Random, **env: str) -> int:
    """Kill all of a round in the midst of `stage`; return how many kills it took to come in time.

    Where it has ended already, beside other stages or before the kill came, all is put back to what
    was saved before that, and killed sooner.
    """
    for kills in range(1, 9):
        while versioning.lock_entry(folder, stage) is not None:
            shutil.rmtree(folder)
            saved.pop().rename(folder)
        saved.append(folder.with_name(f"{len(saved)}-{stage}"))
        shutil.copytree(folder, saved[-1], symlinks=True)
        process = started_in(folder, stage, *SEALED, **env)
        time.sleep(rng.uniform(0, 2 ** (1 - kills)))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        while workers(folder):
            time.sleep(0.1)
        if versioning.lock_entry(folder, stage) is None:
            return kills
    raise AssertionError(f"{stage} always ends before it is killed")


@pytest.mark.skipif(
    not shutil.which("unshare") or subprocess.run([*SEALED, "true"], check=False).returncode != 0,
    reason="no namespace of processes here",
)
def test_killed_in_every_stage_a_round_ends_with_the_same_lock(
    tmp_path: Path, prefect_server: str
) -> None:
    server = {"PREFECT_API_URL": prefect_server}
    teacher = tiny_project.build_teacher(tmp_path / "teacher")
    clean = tiny_project.build(tmp_path / "clean" / "project", teacher)
    folder = tiny_project.build(tmp_path / "killed" / "project", teacher)
    assert set(outcomes(clean, **server).values()) == {"ran"}
    saved: list[Path] = []
    rng = random.Random(1)
    names = [stage.address for stage in versioning.stages(folder)]
    kills = {name: killed_in(folder, name, saved, rng, **server) for name in names}
    print(f"killed -9 in each of {len(names)} stages; kills until one came in time: {kills}")
    by_stage = outcomes(folder, **server)
    assert set(by_stage) == set(names)
    assert (folder / "dvc.lock").read_bytes() == (clean / "dvc.lock").read_bytes()


@pytest.fixture
def clean_and_up(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """A project of real stages, and another whose Ray outlives the round that uses it."""
    teacher = tiny_project.build_teacher(tmp_path / "teacher")
    slow = {"train.kd.updates": 1500, "train.baseline.updates": 4}
    clean, folder = (tiny_project.build(tmp_path / n / "project", teacher, slow) for n in "cu")
    (folder / "infra").mkdir()
    shutil.copy(tiny_project.ROOT / "infra/prefect.yaml", folder / "infra")
    done = run(folder, "cohobate", "up")
    assert done.returncode == 0, done.stderr
    yield clean, folder
    run(folder, "cohobate", "down")


@contextmanager
def watching(folder: Path) -> Iterator[list[list[str]]]:
    """Note, ten times a second, which stages are at work."""
    seen: list[list[str]] = []
    stop = threading.Event()

    def look() -> None:
        while not stop.wait(0.1):
            seen.append(workers(folder))

    event_handler = threading.Thread(target=look)
    event_handler.start()
    try:
        yield seen
    finally:
        stop.set()
        event_handler.join()


def test_what_a_killed_driver_leaves_running_is_never_there_twice(
    clean_and_up: tuple[Path, Path], prefect_server: str
) -> None:
    clean, up = clean_and_up
    rng = random.Random(2)
    with watching(up) as seen:
        for _ in range(3):
            driver = started_in(up, "train@kd")
            time.sleep(rng.uniform(0.5, 3))
            assert "train@kd" in workers(up)
            os.kill(driver.pid, signal.SIGKILL)  # its node, its workers: all go on
            driver.wait()
        by_stage = outcomes(up)
    most = max(working.count("train@kd") for working in seen)
    print(f"3 drivers killed -9: train@kd at work {most} times at once at most")
    assert most == 1
    assert by_stage["train@kd"] == "ran" and by_stage["collect"] == "unchanged"
    outcomes(clean, PREFECT_API_URL=prefect_server)
    assert (up / "dvc.lock").read_bytes() == (clean / "dvc.lock").read_bytes()
