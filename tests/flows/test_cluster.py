"""A round on two nodes without a shared disk, its worker killed and its store gone for a while.

It ends in the dvc.lock of one machine, byte for byte.
"""

import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests import tiny_project
from tests.flows import cluster
from tests.prefect_server import api
from tests.tiny_project import BIN, outcomes, run

pytestmark = pytest.mark.cluster

SECOND = {name: {"custom": {"second": 1}} for name in ("generate", "train@kd", "evaluate")}
HEAD = {name: {"custom": {"head": 1}} for name in ("preflight", "collect", "adapt", "filter")}
SLOW = {"train.kd.updates": 300, "train.kd.checkpoint_every": 20}
DOWN_SECONDS = 20


@pytest.fixture(scope="module")
def exclusive(tmp_path_factory: pytest.TempPathFactory, prefect_server: str) -> Path:
    """A project that one machine has run."""
    folder = tmp_path_factory.mktemp("alone")
    teacher = tiny_project.build_teacher(folder / "teacher")
    root = tiny_project.build(folder / "project", teacher, SLOW)
    assert set(outcomes(root, PREFECT_API_URL=prefect_server).values()) == {"ran"}
    return root


@pytest.fixture
def machines() -> Iterator[cluster.Machines]:
    with cluster.two_machines() as nodes:
        yield nodes


@pytest.fixture
def store(machines: cluster.Machines) -> Iterator[cluster.S3]:
    with cluster.s3(machines.first) as server:
        yield server


@pytest.fixture
def nodes(
    machines: cluster.Machines, tmp_path: Path, alone: Path
) -> Iterator[tuple[dict[str, str], Path]]:
    hidden = [tmp_path / "project", tmp_path / "head", alone.parent, Path("/tmp/ray")]
    with cluster.two_nodes(machines, tmp_path, hidden) as known:
        yield known, tmp_path


def apart(alone: Path, folder: Path, store: cluster.S3) -> Path:
    """Copy what a person wrote of a project, and give it a remote that both nodes reach."""
    root = folder / "project"
    made = {alone: {"data", "models", "reports", ".cohobate", "dvc.lock"}}
    made[alone / ".dvc"] = {"cache", "tmp"}
    shutil.copytree(
        alone, root, ignore=lambda folder, _: made.get(Path(folder), set()), dirs_exist_ok=True
    )
    yaml = tiny_project.YAML()
    document = yaml.load(root / "params.yaml")
    document["resources"] = SECOND | HEAD
    yaml.dump(document, root / "params.yaml")
    for words in (
        ["add", "--default", "s3", "s3://bucket/rounds"],
        ["modify", "s3", "endpointurl", store.url],
    ):
        assert run(root, "dvc", "remote", *words).returncode == 0
    return root


def kill_in_training(node: Path, driver: subprocess.Popen[bytes]) -> None:
    """Kill -9 the worker that trains on a node, once it has a checkpoint."""
    while not list(node.glob("*/train@kd/.cohobate/training/kd/**/update-*/manifest.json")):
        assert driver.poll() is None, (node.parent / "round.log").read_text()
        time.sleep(0.02)
    called = (p for p in psutil.process_iter(["name"]) if p.info["name"] == "ray::train@kd")
    (worker,) = (p for p in called if Path(p.cwd()).is_relative_to(node))
    worker.send_signal(signal.SIGKILL)


def test_a_round_on_two_nodes_writes_the_lock_of_one_machine_whatever_befalls_it(
    tmp_path: Path,
    alone: Path,
    store: cluster.S3,
    nodes: tuple[dict[str, str], Path],
    prefect_server: str,
) -> None:
    known, folder = nodes
    root = apart(alone, tmp_path, store)
    where = {**known, "PREFECT_API_URL": prefect_server}
    command = [str(BIN / "cohobate"), "run", "--json", "--workspace", "isolated"]
    with (tmp_path / "round.log").open("w+") as log:
        process = subprocess.Popen(
            command, cwd=root, env=os.environ | where, stdout=log, stderr=log
        )
        try:
            kill_in_training(folder / "second", process)
            store.vanish()
            threading.Timer(DOWN_SECONDS, store.come_back).start()
            assert process.wait(300) in (0, 3), (tmp_path / "round.log").read_text()
        finally:
            process.kill()
    assert store.refused  # the outage was felt
    assert (root / "dvc.lock").read_bytes() == (alone / "dvc.lock").read_bytes()
    assert not (root / "models/train").exists()  # the driver never had the weights
    for node, other, stage in (("head", "second", "filter"), ("second", "head", "train@kd")):
        assert list((folder / node).glob(f"*/{stage}"))
        assert not list((folder / other).glob(f"*/{stage}"))
    (newest,) = api(prefect_server, "flow_runs/filter", {"sort": "START_TIME_DESC", "limit": 1})
    of_it = {"flow_runs": {"id": {"any_": [newest["id"]]}}}
    states = {task["name"]: task for task in api(prefect_server, "task_runs/filter", of_it)}
    assert {task["state_type"] for task in states.values()} == {"COMPLETED"}
    assert states["train kd"]["run_count"] == 2  # killed, and run again by Prefect alone
    assert {task["run_count"] for name, task in states.items() if name != "train kd"} == {1}
    again = outcomes(root, "--workspace", "isolated", **where)
    assert set(again.values()) == {"unchanged"}
