"""Whole rounds on tiny models: every recipe, and every variant that the README names.

Each is what a user types: `cohobate run`, with `--recipe` or `--set`. The test suite runs them in
one process (`in_process`), `make recipes-tiny` through the flow (`python -m tests.tiny_rounds`).
"""

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flows import overrides, recipes
from tasks import params
from tests import tiny_models, tiny_project
from tests.tiny_project import ROOT

LAYERS = 30
"""Of the teacher: as many as the packaged one has, so that a recipe's layers are there."""

SMALL: dict[str, Any] = {
    "adapt.epochs": 2,
    "adapt.batch_size": 8,
    "adapt.freeze": {"embeddings": True, "layers": 12},
    "adapt.dev_rows": 8,
    "collect.split": {"seed": 0, "labelled": 24, "unlabelled": 48, "dev": 12, "test": 12},
    "shape.layers": [0, 1, 2, 3, 29],
    "evaluate.robustness.rows": 4,
    "evaluate.reading_rows": 8,
    "evaluate.timing": {"seconds": 0.05},
    "export.dev_rows": 8,
    "mine.rows": 4,  # of the default's 0 nothing would be computed
}
UPDATES = 2


@dataclass(frozen=True)
class Round:
    """What a user types, and what must come out of it."""

    name: str
    recipe: str = ""
    settings: tuple[str, ...] = ()
    forms: tuple[str, ...] = ("safetensors",)
    """Folders of models/export."""
    needs: str = ""
    """A module without which the round cannot run."""
    environment: Mapping[str, str] = field(default_factory=dict)


RECIPES = [
    Round(Path(recipe).stem, recipe)
    for recipe in recipes.listed(ROOT)
]  # fmt: skip


class Models:
    """The models that a round may name, each a folder beside params.yaml."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        tokenizer = tiny_models.make_tokenizer()
        self._save("teacher", tokenizer, layers=LAYERS)
        self._save("second-teacher", tokenizer, layers=4, seed=1)
        self._save("small", tokenizer, layers=2, seed=2)
        other = tiny_models.make_tokenizer(vocabulary=280, special=tiny_models.SPECIAL[::-1])
        self._save("another-tokenizer", other, layers=2, seed=3)

    def _save(self, name: str, tokenizer: Any, **options: Any) -> None:
        tiny_models.make_model(tokenizer, **options).save_pretrained(self.folder / name)
        tokenizer.save_pretrained(self.folder / name)


def build(folder: Path, models: Models) -> Path:
    """Lay out a fresh project with its recipes and the tiny models, as a clone would have it."""
    tiny_project.build(folder, models.folder / "teacher", SMALL)
    shutil.copytree(ROOT / "recipes", folder / "recipes")
    for model in models.folder.iterdir():
        if model.name != "teacher":
            shutil.copytree(model, folder / model.name)
    subprocess.run(["git", "add", "--all"], cwd=folder, check=True)
    subprocess.run(["git", "commit", "--quiet", "--message", "a project"], cwd=folder, check=True)
    return folder


def smaller(folder: Path, what: Round) -> list[str]:
    """Return the settings that make a round's phases short, beside those of its own."""
    with overrides.for_now(folder, list(what.settings), what.recipe or None):
        phases = params.load(folder / params.PARAMS)["train"]
    found = []
    for name, phase in phases.items():
        found += [f"train.{name}.updates={UPDATES}", f"train.{name}.batch_size=8"]
        if phase.get("student_text", {}).get("held_out"):
            found.append(f"train.{name}.student_text.held_out=8")
    return [*what.settings, *found]


def in_process(folder: Path, what: Round) -> dict[str, str]:
    """Run a round in this process, stage by stage as `dvc repro` would; return the outcomes."""
    from tasks.__main__ import run_stage
    from tasks.evaluate.report import render
    from tasks.lineage import versioning

    overrides.apply(folder, smaller(folder, what), what.recipe or None)
    with contextlib.chdir(folder), _environment(what.environment):
        nodes = versioning.stages(folder)
        found = {n.address: versioning.reproduce(folder, n.address, run_stage) for n in nodes}
        render(folder)
    return found


def check(folder: Path, what: Round) -> None:
    """Hold that the round's report, challenge, mined rows and export are of the same student."""
    from ruamel.yaml import YAML

    document = params.load(folder / params.PARAMS)
    student = document["evaluate"]["student"]
    lock = YAML(typ="safe").load(folder / "dvc.lock")["stages"]
    trained = f"models/train/{student}"
    for stage in ("challenge", "mine"):
        assert trained in {dep["path"] for dep in lock[stage]["deps"]}, stage
    metrics = json.loads((folder / "reports/metrics.json").read_text())
    assert metrics["student"]["score"] >= 0
    assert student in (folder / "reports/report.html").read_text()
    export = json.loads((folder / "models/export/summary.json").read_text())
    assert export["phase"] == student
    challenge = json.loads((folder / "reports/challenge.json").read_text())
    assert challenge["seed"] in document["seeds"]
    assert (folder / "data/mine/hardest.jsonl").stat().st_size
    for form in what.forms:
        record = json.loads((folder / "models/export" / form / "provenance.json").read_text())
        assert record["source"]["provenance"]["phase"] == student
        assert record["rescored"]["dev_rows"]
    for name in document["train"]:
        assert (folder / "models/train" / name / "summary.json").is_file(), name


@contextlib.contextmanager
def _environment(more: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in more}
    os.environ.update(more)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def clean(folder: Path) -> None:
    """Make a project again what was committed; DVC's cache stays."""
    for name in ("data", "models", "reports", "dvc.lock"):
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    subprocess.run(["git", "checkout", "--quiet", "."], cwd=folder, check=True)
