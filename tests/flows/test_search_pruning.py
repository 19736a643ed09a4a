"""Trials of a search that end early, by their scores on dev rows."""

import shutil
from contextvars import copy_context
from pathlib import Path
from typing import Any

import pytest

from cohobate import params
from cohobate.params import ParamsError
from cohobate.progress import DevScore
from flows import search_space
from flows.placement import StagePrunedError
from flows.search_pruning import TrialPruning
from flows.search_study import SearchStudy
from tests.tiny_project import ROOT

DOCUMENT = {"evaluate": {"student": "kd"}, "seeds": [3, 4]}
SPACE = "space: {train.kd.learning_rate: {low: 0.001, high: 0.002}}\n"


def read(folder: Path, text: str) -> search_space.Search:
    (folder / "s.yaml").write_text(SPACE + text)
    return search_space.read(folder / "s.yaml")


def run(study: SearchStudy, scores: list[float]) -> dict[str, Any]:
    """Run a trial with these checks, each a quarter of the training; return its figures."""
    return copy_context().run(_run, study, scores)  # of its own, as the search gives it


def _run(study: SearchStudy, scores: list[float]) -> dict[str, Any]:
    trial = study.next()
    pruning = TrialPruning(trial)
    pruning.follow(DOCUMENT)
    figures: dict[str, Any] = {}
    dev: float | None = None
    try:
        for n, score in enumerate(scores, start=1):
            for stage, seed, seen in (("baseline", 3, 0.0), ("kd", 4, 0.0), ("kd", 3, score)):
                event = DevScore(f"train {stage}, seed {seed}", 50 * n, 200, seen, "")
                pruning._on_event(f"train@{stage}", event)
        dev = scores[-1]
    except StagePrunedError as error:
        assert "pruned at" in error.what
        figures["pruned"] = pruning.last
    study.conclude(trial, dev, figures)
    return figures


@pytest.mark.parametrize("pruning", ["{type: median, trials: 2}", "{type: halving, begin: 0.25}"])
def test_a_poor_trial_ends_and_is_no_failure(tmp_path: Path, pruning: str) -> None:
    search = read(tmp_path, f"prune: {pruning}\n")
    study = SearchStudy(tmp_path, search, lower_is_better=False)
    for scores in ([0.4, 0.5, 0.6, 0.7], [0.5, 0.6, 0.7, 0.8]):
        assert run(study, scores) == {}
    assert run(study, [0.2, 0.5, 0.6, 0.9])["pruned"] == {"dev": 0.2, "per_cent": 25}
    assert run(study, [0.6, 0.7, 0.8, 0.9]) == {}
    states = [(one.dev, one.failed) for one in study.results()]
    assert states == [(0.7, False), (0.8, False), (None, False), (0.9, False)]
    best = study.best()
    assert best is not None and best.number == 3


def test_a_trial_without_pruning_runs_to_its_end(tmp_path: Path) -> None:
    study = SearchStudy(tmp_path, read(tmp_path, ""), lower_is_better=False)
    for scores in ([0.4, 0.5, 0.6, 0.7], [0.5, 0.6, 0.7, 0.8], [0.1, 0.1, 0.1, 0.1]):
        assert run(study, scores) == {}


def test_pruning_needs_scores_of_the_student(tmp_path: Path) -> None:
    shutil.copy(ROOT / params.PARAMS, tmp_path)
    path = tmp_path / "s.yaml"
    search = read(tmp_path, "prune: {type: median}\n")
    with pytest.raises(ParamsError, match="the phase kd has no dev") as refused:
        search_space.check(search, tmp_path, path)
    assert refused.value.fix == "settings: {train.kd.dev: {every: 20}} in the search's file"
    by_loss = "settings: {train.kd.dev: {every: 20, by: loss}}\n"
    with pytest.raises(ParamsError, match="checked by its loss"):
        search_space.check(read(tmp_path, "prune: {type: median}\n" + by_loss), tmp_path, path)
    settings = "settings: {train.kd.dev: {every: 20}}\n"
    search_space.check(read(tmp_path, "prune: {type: halving}\n" + settings), tmp_path, path)
