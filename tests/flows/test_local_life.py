"""A round is a DVC project like any other: experiments, and how two of them differ."""

import json
from pathlib import Path
from typing import Any

import pytest

from flows.git import git
from tests import tiny_project
from tests.tiny_project import run

pytestmark = [pytest.mark.round, pytest.mark.slow]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, prefect_server: str) -> Path:
    """A project whose first round is committed, with an experiment of another learning rate."""
    folder = tmp_path_factory.mktemp("experiments")
    root = tiny_project.build(folder / "project", tiny_project.build_teacher(folder / "teacher"))
    tiny_project.outcomes(root, PREFECT_API_URL=prefect_server)
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message", "a round")
    dvc(root, "exp", "run", "--name", "hotter", "-S", "train.kd.learning_rate=0.05", "evaluate")
    return root


def dvc(root: Path, *words: str) -> Any:
    done = run(root, "dvc", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_an_experiment_runs_what_its_params_touch_and_is_listed_beside_the_round(
    project: Path,
) -> None:
    experiments = json.loads(dvc(project, "exp", "show", "--json", "--no-pager"))
    revisions = [
        revision
        for line in experiments
        for revision in [line, *((e["revs"][0]) for e in line["experiments"] or [])]
    ]
    params_of = {r["name"] or r["rev"]: r["data"]["params"]["params.yaml"] for r in revisions}
    rates = {name: p["data"]["train"]["kd"]["learning_rate"] for name, p in params_of.items()}
    assert rates["hotter"] == 0.05 != rates[git(project, "rev-parse", "--abbrev-ref", "HEAD")]


def test_metrics_and_params_of_two_rounds_are_compared(project: Path) -> None:
    changes = json.loads(dvc(project, "metrics", "diff", "--json", "HEAD", "hotter"))
    assert any(name.startswith("retention") for name in changes["reports/metrics.json"])
    changed = json.loads(dvc(project, "params", "diff", "--json", "HEAD", "hotter"))
    assert changed["params.yaml"]["train.kd.learning_rate"]["new"] == 0.05


def test_plots_of_two_rounds_are_compared(project: Path) -> None:
    dvc(project, "plots", "diff", "HEAD", "hotter", "--out", "plots")
    page = (project / "plots/index.html").read_text()
    for plot in ("losses", "scores", "router"):
        assert plot in page
    assert "hotter" in page
