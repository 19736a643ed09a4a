"""Workers that train together also score the dev rows together: each its share."""

import csv
import shutil
from pathlib import Path
from typing import Any

import pytest

from cohobate.data.records import TRAIN, Row, row_id
from cohobate.evaluation.dev_scores import DevRows
from cohobate.generation.requests import Decoding
from cohobate.methods.train import _train
from cohobate.models import checkpoints
from cohobate.scoring.metrics import VerifierAccuracy
from cohobate.scoring.verifiers import Label, Task
from cohobate.training import checkpointing
from tests.cohobate.training.test_processes import SFT, start
from tests.cohobate.training.workers import phase, together

__all__ = ["start"]  # a fixture
PROMPTS = [f"Definition: a thing {n}\nCategory:" for n in range(5)]
ROWS = DevRows(
    rows=tuple(Row(id=row_id(p), prompt=p, answer=" animal") for p in PROMPTS),
    metric=VerifierAccuracy(),
    task=Task(verifier=Label(type="label")),
    decoding=Decoding(max_tokens=4),
)
# losses of two workers are those of one up to rounding
CHECKED = SFT | {"dev": {"every": 2, "by": "loss", "keep": "both"}}


def checks() -> list[dict[str, float]]:
    with (TRAIN / "it/seed-1/dev.csv").open(newline="") as lines:
        return [{k: float(v) for k, v in line.items() if v} for line in csv.DictReader(lines)]


@pytest.mark.parametrize("sharding", ["off", "on"])
def test_two_workers_score_what_one_does(start: None, sharding: str) -> None:
    _train(TRAIN / "it", phase(CHECKED), 1, ROWS)
    one, best = checks(), checkpoints.updates(TRAIN / "it/best/seed-1")
    shutil.rmtree(TRAIN)
    shutil.rmtree(checkpointing.TRAINING)
    fields: dict[str, Any] = CHECKED | {"sharding": sharding}
    assert together(fields, scorer=ROWS) == ["", ""]
    two = checks()
    assert [line["update"] for line in two] == [line["update"] for line in one] == [2, 4, 6, 8]
    assert [line["loss"] for line in two] == pytest.approx([line["loss"] for line in one], abs=1e-3)
    assert checkpoints.updates(TRAIN / "it/best/seed-1") == best
    for folder in ("it/seed-1", "it/best/seed-1"):
        assert Path(TRAIN / folder / "model.safetensors").exists()
