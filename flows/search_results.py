"""Results of a search: figures of a trial, the test scores of the best, a table and a picture."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from cohobate import params
from cohobate.backends.cost_log import COST_LOG
from cohobate.evaluation.bootstrap import Bootstrap
from flows import pictures
from flows.placement import StageResult
from flows.search_folders import SearchFolders
from flows.search_space import Search, Settings
from flows.search_study import SearchStudy, TrialResult

_TEST = "test.json"
_CONTEXT = 64
"""Context length at which FLOPs are counted, as in the guards of a promotion."""


def figures_of(worktree: Path, results: Mapping[str, StageResult]) -> dict[str, Any]:
    """Return stages by outcome, the student's size and what its teachers' ledgers came to."""
    outcomes = Counter(result.outcome for result in results.values())
    costs = [json.loads(note.read_text()) for note in (worktree / COST_LOG).glob("*.json")]
    return {
        "stages": dict(sorted(outcomes.items())),
        "ledgers": {one["ledger"]: [one["before"], one["after"]] for one in costs},
        **_size(_student(worktree)),
    }


def _student(worktree: Path) -> Path:
    """Return the checkpoint of the student that is evaluated, of the first seed."""
    document = params.load(worktree / params.PARAMS)
    student: str = document["evaluate"]["student"]
    return worktree / "models/train" / student / f"seed-{document['seeds'][0]}"


def _size(folder: Path) -> dict[str, int]:
    if not (folder / "config.json").exists():
        return {}
    from cohobate.evaluation.footprint import footprint
    from cohobate.evaluation.model_under_test import open_model

    counted = footprint(open_model(folder, "float32").model, folder, _CONTEXT)
    return {
        "parameters": counted.parameters,
        "flops_per_token": counted.flops_per_token,
        "bytes": counted.bytes,
    }


def compare(best: Path, default: Path) -> dict[str, Any]:
    """Return test scores of two rounds over the same rows, and the interval of their difference."""
    reports = {
        name: json.loads((worktree / "reports/metrics.json").read_text())
        for name, worktree in (("best", best), ("default", default))
    }
    test = {name: report["student"] for name, report in reports.items()}
    test["teacher"] = reports["best"]["teacher"]
    scores = {"best": _row_scores(best), "default": _row_scores(default)}
    if all(len(one) for one in scores.values()):
        test["gain"] = Bootstrap(scores, 10_000, 0).difference("best", "default").rounded()
    return test


def _row_scores(worktree: Path) -> Any:
    """Return the scores of the test rows, (Z, R): Z seeds; (0,) where a likelihood decides."""
    import numpy as np

    document = params.load(worktree / params.PARAMS)
    metric = document["evaluate"]["metrics"][0]["type"]
    folder = worktree / "data/evaluate/predictions" / document["evaluate"]["student"]
    by_seed = []
    for path in sorted(folder.glob("*.jsonl")):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        if lines and metric in lines[0]["scores"]:
            lines.sort(key=lambda line: line["id"])  # the same rows in the same order
            by_seed.append([line["scores"][metric] for line in lines])
    return np.array(by_seed)


def write_test(folder: Path, number: int, test: Mapping[str, Any]) -> None:
    """Keep the test scores of trial `number` beside the trials."""
    (folder / _TEST).write_text(json.dumps({"trial": number, **test}, indent=2) + "\n")


def tested_trial(folder: Path) -> int | None:
    """Return the trial whose test scores are beside the trials; None where there are none."""
    path = folder / _TEST
    return json.loads(path.read_text())["trial"] if path.exists() else None


def as_values(study: SearchStudy, search: Search, folders: SearchFolders) -> dict[str, Any]:
    """Return a search as JSON values: trials, the best, its test scores, the curve."""
    results, best = study.results(), study.best()
    test = folders.folder / _TEST
    stages: Counter[str] = Counter()
    for one in results:
        stages.update(one.figures.get("stages", {}))
    return {
        "trials": [_trial(one, search) for one in results],
        "best": best.number if best else None,
        "front": [one.number for one in front(results, lower_is_better=study.lower_is_better)],
        "stages": dict(sorted(stages.items())),
        "spent": study.spent(),
        "test": json.loads(test.read_text()) if test.exists() else None,
    }


def _trial(result: TrialResult, search: Search) -> dict[str, Any]:
    return {
        "trial": result.number,
        "dev": result.dev,
        "label": search.label(result.drawn),
        **result.figures,
    }


def front(results: Iterable[TrialResult], *, lower_is_better: bool) -> list[TrialResult]:
    """Return the trials that no smaller student beats on the dev rows, smallest first."""
    sign = -1 if lower_is_better else 1
    sized = [one for one in results if one.dev is not None and "parameters" in one.figures]
    # the best of a size comes first
    sized.sort(key=lambda one: (one.figures["parameters"], -sign * (one.dev or 0.0)))
    kept: list[TrialResult] = []
    for one in sized:
        if not kept or sign * (one.dev or 0.0) > sign * (kept[-1].dev or 0.0):
            kept.append(one)
    return kept


def write_picture(values: Mapping[str, Any], root: Path, name: str) -> Path | None:
    """Draw score against size into reports/searches/<name>.svg; None where nothing has a size."""
    front_trials = set(values["front"])
    marks = [
        pictures.Mark(
            one["parameters"] / 1e6,
            one["dev"],
            f"{one['trial']:04d} {one['label']}",
            one["trial"] in front_trials,
        )
        for one in values["trials"]
        if one["dev"] is not None and "parameters" in one
    ]
    if not marks:
        return None
    marks.sort()
    path = root / "reports/searches" / f"{name}.svg"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(pictures.trade_off(marks, "million parameters", "dev score"))
    return path


def settings_of(study: SearchStudy, search: Search, which: str) -> Settings:
    """Return the settings of the trial `which`, a number or `best`.

    Raises:
        KeyError: there is no such trial.
    """
    best = study.best()
    number = best.number if which == "best" and best else int(which) if which.isdigit() else -1
    by_number = {one.number: one for one in study.results()}
    return search.settings_of(by_number[number].drawn)
