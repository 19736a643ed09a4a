"""The planted null and the honest student on the default task, at a quarter of its updates.

Stands on a finished round of the default task: that of this project, or of $COHOBATE_ROUND.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import plants
import pytest
from ruamel.yaml import YAML

from cohobate.data.records import CAPTURE
from tasks.__main__ import run_stage
from tests.tiny_project import ROOT, put

ROUND = Path(os.environ.get("COHOBATE_ROUND", ROOT))
PARTS = (
    "data/collect",
    "data/filter",
    "data/curriculum",
    "data/capture",
    "models/adapt",
    "models/init_student",
)
SMALLER = {
    "train.baseline.updates": 60,
    "train.kd.updates": 60,
    "evaluate.timing": {"seconds": 0.2},
}
TEST_ROWS = 1000

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (ROUND / CAPTURE).exists(), reason="no finished round to stand on"),
]


@pytest.fixture(scope="module")
def smaller(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The round before training, with a smaller test; its baseline is trained."""
    folder = tmp_path_factory.mktemp("default")
    for part in PARTS:
        shutil.copytree(ROUND / part, folder / part)
    test = folder / "data/collect/test.jsonl"
    test.write_text("".join(test.read_text().splitlines(keepends=True)[:TEST_ROWS]))
    yaml = YAML()
    document = yaml.load(ROOT / "params.yaml")
    for key, value in SMALLER.items():
        put(document, key, value)
    yaml.dump(document, folder / "params.yaml")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run_stage("train@baseline")
    return folder


@pytest.fixture
def judged(smaller: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], dict[str, Any]]:
    """Train the student, evaluate, and return the metrics."""
    monkeypatch.chdir(smaller)

    def judge() -> dict[str, Any]:
        run_stage("train@kd")
        run_stage("evaluate")
        verdict = plants.verdict()
        print({role: verdict[role]["score"] for role in ("teacher", "baseline", "student")})
        print(verdict["gain_over_baseline"], verdict["verdict"], verdict["gate"])
        return verdict

    return judge


def test_the_gate_sees_through_shuffled_signals(judged: Callable[[], dict[str, Any]]) -> None:
    honest = judged()
    assert plants.shuffle_signals(CAPTURE / "main") > 0.9
    null = judged()
    assert null["gate"]["passed"] is False and null["verdict"] == "no"
    assert null["student"]["score"] < honest["student"]["score"] - 0.3
