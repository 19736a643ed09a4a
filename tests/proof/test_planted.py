"""A gate is worth something if it opens for a win and stays shut for a null, through real stages.

The teacher knows every word of each class; the labels show few of them. A student that learns what
the teacher says of unlabelled rows must win; one that learns the same of shuffled rows must not.
"""

import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import plants
import pytest
from ruamel.yaml import YAML

from cohobate.data.records import CAPTURE, FILTER, LABELLED, Row, read_rows, write_rows
from tasks.__main__ import run_stage
from tests import tiny_project

SYLLABLES = [consonant + vowel for consonant in "bdgkl" for vowel in "aeio"]
WORDS = [a + b for a in SYLLABLES for b in SYLLABLES]
KINDS = {"animal": WORDS[0:30], "plant": WORDS[30:60], "person": WORDS[60:90]}
FEW = Path("data/collect/few.jsonl")
CHANGES: dict[str, Any] = {
    "collect.split": {"seed": 0, "labelled": 300, "unlabelled": 300, "dev": 20, "test": 120},
    "adapt": {"type": "sft", "epochs": 8, "batch_size": 32, "learning_rate": 0.01},
    "train.baseline.rows": str(FEW),
    "train.baseline.targets": str(FEW),
    "train.kd.terms": [{"type": "forward_kl"}],
    "evaluate.gate": {"min_gain": 0.0, "min_retention": 0.6},
    **{
        f"train.{phase}.{key}": value
        for phase in ("baseline", "kd")
        for key, value in {"updates": 80, "batch_size": 32, "learning_rate": 0.01}.items()
    },
}


def rows() -> list[dict[str, str]]:
    """One telling word of a class among words that say nothing."""
    rng = random.Random(0)
    drawn = {}
    while len(drawn) < 760:
        kind = rng.choice(sorted(KINDS))
        words = [rng.choice(KINDS[kind]), *rng.sample(WORDS[100:], 3)]
        drawn[" ".join(words)] = kind
    return [{"text": text, "answer": kind} for text, kind in drawn.items()]


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A round up to the student's training; the baseline sees 24 labels."""
    base = tmp_path_factory.mktemp("planted")
    teacher = tiny_project.build_teacher(base / "teacher")
    folder = tiny_project.build(base / "project", teacher)
    lines = tiny_project.json.dumps
    (folder / "rows.jsonl").write_text("".join(lines(row) + "\n" for row in rows()))
    yaml = YAML()
    document = yaml.load(folder / "params.yaml")
    for key, value in CHANGES.items():
        tiny_project.put(document, key, value)
    yaml.dump(document, folder / "params.yaml")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("COHOBATE_CACHE", str(base / "cache"))
        for stage in (
            "preflight",
            "collect",
            "adapt@main",
            "generate@main",
            "filter",
            "curriculum",
        ):
            run_stage(stage)
        write_rows(FEW, list(read_rows(LABELLED, Row))[:24])
        for stage in ("capture@main", "init_student", "train@baseline"):
            run_stage(stage)
    return folder


@pytest.fixture
def planted(taught: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of that round to plant something in."""
    folder = shutil.copytree(taught, tmp_path / "project")
    monkeypatch.chdir(folder)
    return folder


def judged() -> dict[str, Any]:
    run_stage("train@kd")
    run_stage("evaluate")
    return plants.verdict()


def test_a_planted_win_passes_the_gate(planted: Path) -> None:
    verdict = judged()
    assert verdict["teacher"]["score"] > 0.9
    assert verdict["verdict"] == "yes" and verdict["gain_over_baseline"]["low"] > 0
    assert verdict["gate"]["passed"] is True


def test_a_teacher_that_says_nothing_fails_the_gate(planted: Path) -> None:
    assert plants.shuffle_signals(CAPTURE / "main") > 0.9
    verdict = judged()
    assert verdict["verdict"] != "yes" and verdict["gate"]["passed"] is False
    assert verdict["student"]["score"] < verdict["teacher"]["score"] - 0.3
    assert "Gate not passed" in Path("reports/report.md").read_text()


def test_a_leaked_test_row_is_found_and_told(planted: Path) -> None:
    leaked = plants.leak_test_rows("main", 3)
    run_stage("filter")
    dropped = (FILTER / "dropped.jsonl").read_text().splitlines()
    contaminated = [line for line in dropped if '"filter":"contaminated"' in line]
    assert all(any(row in line for line in contaminated) for row in leaked)
    assert not any(row in (FILTER / "kept.jsonl").read_text() for row in leaked)
    for stage in ("curriculum", "capture@main"):
        run_stage(stage)
    judged()
    [line] = [
        line
        for line in Path("reports/report.md").read_text().splitlines()
        if line.startswith("| contaminated |")
    ]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert int(cells[2]) == len(contaminated) >= 3 and cells[3]
