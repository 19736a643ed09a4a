"""`cohobate search`: its file, its trials through Prefect and Ray, killed and resumed."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cohobate.params import ParamsError
from flows import search_results, search_space
from flows.git import git
from flows.search_study import TrialResult
from tests.flows import quick_project
from tests.tiny_project import ROOT

pytestmark = pytest.mark.round

SEARCH = """\
space:
  train.kd.learning_rate: {low: 1.0e-3, high: 4.0e-3, log: true}
  train.kd.freeze: {any_of: [{embeddings: true}, {layers: 1}]}
budget: {trials: 3}
at_once: 2
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    root = quick_project.build(tmp_path)
    (root / "search.yaml").write_text(SEARCH)
    return root


def searched(root: Path, command: str = "run") -> dict:
    process = quick_project.start(root, "cohobate", "search", command, "search.yaml", "--json")
    printed, _ = process.communicate(timeout=900)
    assert process.returncode == 0, printed
    return json.loads(printed[printed.index("{\n") :])


def test_a_killed_search_goes_on_and_ends_with_the_best_on_dev(project: Path) -> None:
    process = quick_project.start(project, "cohobate", "search", "run", "search.yaml")
    folder = project / ".cohobate/searches/search"
    wait_for((folder / "0001").exists)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    values = searched(project)
    trials = {one["trial"]: one for one in values["trials"]}
    assert sorted(trials) == [0, 1, 2]
    assert trials[0]["label"] == "params.yaml as it is" and trials[0]["dev"] == 0.5
    rates = {n: one["settings"].get("train.kd.learning_rate", 2e-3) for n, one in trials.items()}
    assert {n: one["dev"] for n, one in trials.items()} == {
        n: round(0.5 + 10 * (rate - 2e-3), 6) for n, rate in rates.items()
    }
    assert values["best"] == max(rates, key=lambda n: (rates[n], -n))
    # `collect` reads nothing that varies: it ran once
    assert quick_project.ran(project).count("collect") == 1
    assert values["test"]["trial"] == values["best"] and values["spent"]["hours"] > 0
    experiments = git(project, "for-each-ref", "--format=%(refname:lstrip=4)", "refs/exps")
    assert [*map(Path, experiments.split())] == [
        *(Path(f"search-{n:04d}") for n in range(3)),
        Path("search-best"),
        Path("search-default"),
    ]
    assert git(project, "worktree", "list").count("\n") == 0
    assert git(project, "status", "--porcelain") == "?? search.yaml"
    apply_and_read(project, rates[values["best"]])
    again = searched(project)
    assert again["trials"] == values["trials"]


def apply_and_read(root: Path, rate: float) -> None:
    process = quick_project.start(root, "cohobate", "search", "apply", "search.yaml", "best")
    printed, _ = process.communicate(timeout=240)
    assert process.returncode == 0, printed
    text = (root / "params.yaml").read_text()
    assert f"learning_rate: {rate}" in text
    git(root, "checkout", "--quiet", "params.yaml")


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 600
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def read(tmp_path: Path, text: str) -> search_space.Search:
    (tmp_path / "s.yaml").write_text(text)
    return search_space.read(tmp_path / "s.yaml")


def test_a_misspelt_key_is_refused_with_the_nearest(tmp_path: Path, project: Path) -> None:
    with pytest.raises(ParamsError, match="spaces is not a known key; did you mean 'space'"):
        read(tmp_path, "spaces: {}")
    for key, near in (("train.kd.lerning_rate", "learning_rate"), ("trian.kd.updates", "train")):
        search = read(tmp_path, f"space: {{{key}: {{low: 0.1, high: 0.2}}}}")
        with pytest.raises(ParamsError, match=near) as refused:
            search_space.check(search, project, tmp_path / "s.yaml")
        assert key in refused.value.where
    search = read(tmp_path, "space: {train.kd.updates: {any_of: [10, many]}}")
    with pytest.raises(ParamsError, match=r"train.kd.updates.*many"):
        search_space.check(search, project, tmp_path / "s.yaml")
    assert (project / "params.yaml").read_bytes() == (ROOT / "params.yaml").read_bytes()


def test_the_example_of_the_docs_is_accepted(tmp_path: Path, project: Path) -> None:
    text = (ROOT / "docs/search.md").read_text().split("```yaml\n")[1].split("```")[0]
    search_space.check(read(tmp_path, text), project, tmp_path / "s.yaml")


def test_variants_set_several_keys(tmp_path: Path) -> None:
    search = read(
        tmp_path,
        "space: {method: {settings: {soft: {}, hard: {train.kd.updates: 10, seeds: [2]}}},"
        " train.kd.learning_rate: {low: 1.0e-3, high: 2.0e-3}}",
    )
    drawn = {"method": "hard", "train.kd.learning_rate": 0.00123456}
    assert search.settings_of(drawn) == {
        "train.kd.updates": 10,
        "seeds": [2],
        "train.kd.learning_rate": 0.00123,
    }
    assert search.label(drawn) == "method=hard learning_rate=0.00123"


def test_no_smaller_student_beats_one_of_the_front() -> None:
    sizes_and_scores = [(10, 0.5), (5, 0.4), (10, 0.6), (20, 0.55), (30, 0.7), (5, None)]
    trials = [
        TrialResult(n, {}, dev, {"parameters": size})
        for n, (size, dev) in enumerate(sizes_and_scores)
    ]
    chosen = search_results.front(trials, lower_is_better=False)
    assert [one.number for one in chosen] == [1, 2, 4]
    assert [one.number for one in search_results.front(trials, lower_is_better=True)] == [1]
