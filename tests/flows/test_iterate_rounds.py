"""Rounds that follow each other: promotion, a death in the middle, rollback, and a fresh clone."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from flows.git import git
from flows.round_history import History
from tests import tiny_project
from tests.tiny_project import BIN, run

pytestmark = pytest.mark.round

LEARNS = {
    "train.kd.updates": 60,
    "train.kd.learning_rate": 0.01,
    "train.kd.freeze": {"embeddings": False},
    "rounds": {"replay": 20, "stop": {}},
}


GROWS = {
    "init_student.layers": [0, 1, 2, 3],
    "train.kd.updates": 60,
    "challenge.guards": {"parameters": 2, "flops_per_token": 2, "blocks": 2, "bits_per_byte": 10},
    "challenge.latency": {"growth": 1.0},
}
"""A student twice as deep, which every guard but the clock would let pass."""


def committed(folder: Path, settings: dict[str, Any]) -> Path:
    teacher = tiny_project.build_teacher(folder / "teacher")
    root = tiny_project.build(folder / "project", teacher, settings)
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message", "a project")
    return root


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return committed(tmp_path_factory.mktemp("rounds"), LEARNS)


def iterate(root: Path, command: str = "iterate", **env: str) -> list[dict]:
    done = run(root, "cohobate", command, "--json", **env)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def kill_in(root: Path, stage: str, **env: str) -> None:
    """Start a round, and kill all of it with -9 while it is in a stage."""
    process = subprocess.Popen(
        [str(BIN / "cohobate"), "iterate"],
        cwd=root,
        env=os.environ | {"COHOBATE_CACHE": str(root.parent / "cache")} | env,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stderr
    deadline = time.monotonic() + 600
    for line in process.stderr:
        if line.split()[:2] == [stage, "started"]:
            break
        assert time.monotonic() < deadline
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_rounds_follow_each_other(project: Path, prefect_server: str) -> None:
    server = {"PREFECT_API_URL": prefect_server}
    (first,) = iterate(project, **server)
    assert first["promoted"], first["why"]
    assert first["champion"] == "models/champion/round-0001"

    kill_in(project, "train@kd", **server)
    history = History(project)
    assert history.unfinished() == [2]
    (second,) = iterate(project, "resume", **server)
    assert second["number"] == 2
    params = history.file(2, "params.yaml")
    assert "from: champion/round-0001" in params
    assert "champion: models/champion/round-0001" in params
    assert f"updates: {60 + 60}" in params  # the baseline's: as many as lie behind the student
    assert "not equal" not in history.file(2, "reports/report.md")
    assert git(project, "status", "--porcelain") == ""

    clone = project.parent / "clone"
    subprocess.run(["git", "clone", "-q", str(project), str(clone)], check=True)
    git(clone, "fetch", "--quiet", "--tags")
    git(clone, "checkout", "--quiet", "round-0002")
    store = str(project / ".cohobate/dvc-remote")
    run(clone, "dvc", "remote", "modify", "--local", "local", "url", store)
    pulled = run(clone, "dvc", "pull")
    assert pulled.returncode == 0, pulled.stderr
    again = run(clone, "dvc", "repro")
    assert again.returncode == 0, again.stderr
    assert "Running stage" not in again.stdout
    assert git(clone, "status", "--porcelain") == ""


@pytest.mark.slow
def test_a_student_of_another_shape_begins_anew_and_must_not_be_slower(
    tmp_path: Path, prefect_server: str
) -> None:
    weak = LEARNS | {"train.kd.updates": 12, "collect.split.dev": 60}
    root, server = committed(tmp_path, weak), {"PREFECT_API_URL": prefect_server}
    (first,) = iterate(root, **server)
    assert first["promoted"], first["why"]

    yaml = YAML()
    document = yaml.load(root / "params.yaml")
    for key, value in GROWS.items():
        tiny_project.put(document, key, value)
    yaml.dump(document, root / "params.yaml")
    git(root, "commit", "--quiet", "--all", "--message", "twice as deep")
    (second,) = iterate(root, **server)

    params = YAML(typ="safe").load(History(root).file(2, "params.yaml"))
    assert params["train"]["kd"]["from"] == "init_student"
    assert params["train"]["baseline"]["updates"] == 4
    assert params["challenge"]["champion"] == first["champion"]
    assert second["dev"]["gain"]["low"] > 0, second["why"]
    assert "latency: " in second["why"]
    assert not second["promoted"]
    assert (second["champion"], second["updates"]) == (first["champion"], first["updates"])
