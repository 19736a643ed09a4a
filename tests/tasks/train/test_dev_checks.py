"""Phases that are scored on dev rows as they train: bytes, best checkpoint, early end, kills."""

import csv
import json
from typing import Any

import pytest
from pydantic import TypeAdapter

from cohobate.data.records import DEV, TRAIN, Row, row_id, write_rows
from cohobate.errors import UserError
from cohobate.evaluation.deciding_metric import DecidingMetric
from cohobate.evaluation.dev_scores import DevRows, dev_file
from cohobate.generation.requests import Decoding
from cohobate.methods.train import Method
from cohobate.models import checkpoints
from cohobate.params import validated
from cohobate.progress import DevScore, Say
from cohobate.scoring.verifiers import Task
from cohobate.training import checkpointing
from cohobate.training.dev_checks import DevFigures
from tasks.dev_checks.stage import run as choose
from tests.cohobate.methods.test_resume import (
    RUN,
    SFT,
    UPDATES,
    at_update,
    every_update_tells,
    killed,
    resumed_after,
    start,
    train,
)
from tests.cohobate.methods.test_resume_methods import METHODS, ready

__all__ = ["every_update_tells", "ready", "start"]  # fixtures
CHECKS = {"every": 2, "rows": 6}
WEIGHTS = "sft/seed-1/model.safetensors"


def write_dev_rows(
    checks: dict[str, Any], metric: str = "verifier", answer: str = " animal"
) -> None:
    """Run the stage that chooses the rows."""
    prompts = [f"Definition: a thing {n}\nCategory:" for n in range(8)]
    write_rows(
        DEV,
        [Row(id=row_id(p), prompt=p, answer=f"{answer} {n % 3}") for n, p in enumerate(prompts)],
    )
    phase = TypeAdapter(Method).validate_python(SFT | {"dev": checks})
    other = TypeAdapter(Method).validate_python(SFT)
    choose(
        {"sft": phase, "other": other},
        {},
        task=Task.model_validate({"verifier": {"type": "label"}}),
        metric=validated(DecidingMetric, {"type": metric}, "evaluate.metrics.0"),
        decoding=Decoding(max_tokens=6),
    )


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Scores of the checks, in place of those of a model too small to learn; 0 from the end on."""
    planted = [0.1, 0.4, 0.3, 0.2]
    real = DevRows.figures

    def planned(self: DevRows, trained: Any, checks: Any, update: int) -> DevFigures:
        score = planted[(update - 1) // 2] if update <= 2 * len(planted) else 0.0
        return real(self, trained, checks, update)._replace(score=score)

    monkeypatch.setattr(DevRows, "figures", planned)
    return planted


def published(folder: str = "sft/seed-1") -> dict[str, Any]:
    return checkpoints.provenance(TRAIN / folder)


@pytest.mark.parametrize("method", ["sft", "dpo, low-rank", "mutual"])
def test_a_check_changes_no_update(ready: None, method: str) -> None:
    """Dropout draws the same numbers, and rows come in the same order."""
    fields = METHODS.get(method, {})
    plain = train(threads=2, **fields)
    write_dev_rows(CHECKS)
    events: list[Any] = []
    checked = train(events.append, threads=2, dev=CHECKS, **fields)
    for path in (WEIGHTS, "sft/seed-1/history.csv"):
        assert checked[path] == plain[path]
    assert "sft/seed-1/dev.csv" in checked and "sft/seed-1/dev.csv" not in plain
    updates = [event.update for event in events if isinstance(event, DevScore)]
    assert updates == [2, 4, 6, UPDATES]


def test_a_phase_without_checks_depends_on_no_dev_row(start: None) -> None:
    write_dev_rows(CHECKS)
    assert json.loads(dev_file("train", "other").read_text()) == {}
    assert len(DevRows.of_phase("train", "sft").rows) == 6


def test_the_best_is_published_and_training_ends_early(start: None, figures: list[float]) -> None:
    checks = CHECKS | {"keep": "best", "patience": 1}
    write_dev_rows(checks)
    events: list[Any] = []
    bytes_of = train(events.append, dev=checks)
    at_four = train(updates=4, schedule="constant", warmup=0)
    constant = train(dev=checks, schedule="constant", warmup=0)
    assert constant[WEIGHTS] == at_four[WEIGHTS] != bytes_of[WEIGHTS]
    assert published()["updates"] == 4
    with (TRAIN / "sft/seed-1/dev.csv").open() as lines:
        checked = [*csv.DictReader(lines)]
    assert [(one["update"], one["score"]) for one in checked] == [
        ("2", "0.1"),
        ("4", "0.4"),
        ("6", "0.3"),
    ]
    assert all(float(one["loss"]) > 0 and float(one["length"]) > 0 for one in checked)
    summary = json.loads((TRAIN / "sft/summary.json").read_text())
    assert summary["updates saved, seed 1"] == 1 and summary["update of the best, seed 1"] == 4
    assert "1 updates saved" in " ".join(event.text for event in events if isinstance(event, Say))
    assert not RUN.exists()


@pytest.mark.parametrize("adapter", [{"type": "full"}, {"type": "lora", "rank": 2}])
def test_both_are_published(start: None, figures: list[float], adapter: dict[str, Any]) -> None:
    fields = {"schedule": "constant", "warmup": 0, "adapter": adapter}
    plain, at_four = train(**fields), train(updates=4, **fields)
    checks = CHECKS | {"keep": "both"}
    write_dev_rows(checks)
    both = train(dev=checks, **fields)
    assert both[WEIGHTS] == plain[WEIGHTS]
    assert both["sft/best/seed-1/model.safetensors"] == at_four[WEIGHTS]
    assert published("sft/best/seed-1")["updates"] == 4 and published()["updates"] == UPDATES


@pytest.mark.parametrize("keep", ["best", "both"])
def test_killed_it_ends_with_the_same_bytes(
    start: None, every_update_tells: None, figures: list[float], keep: str
) -> None:
    """Also where the best weights are newer than the checkpoint that it resumes from."""
    checks = {"every": 1, "rows": 2, "keep": keep, "patience": 3}
    figures[:] = [0.1, 0.2, 0.5, 0.3]
    write_dev_rows(checks)
    clean = train(checkpoint_every=0, dev=checks)
    events: list[Any] = []
    for update in (3, 5, 6):
        killed(at_update(update), dev=checks)
    assert train(events.append, dev=checks) == clean
    assert resumed_after(events) >= 4


def test_damaged_best_weights_are_not_resumed_from(
    start: None, every_update_tells: None, figures: list[float]
) -> None:
    checks = {"every": 2, "rows": 2, "keep": "best"}
    write_dev_rows(checks)
    clean = train(checkpoint_every=0, dev=checks)
    killed(at_update(6), dev=checks)
    (best,) = RUN.rglob("best-0/update-000004")
    (best / checkpointing.WEIGHTS).write_bytes(b"")
    events: list[Any] = []
    assert train(events.append, dev=checks) == clean
    assert resumed_after(events) == 2
    assert any("best weights" in event.text for event in events if isinstance(event, Say))


def test_the_loss_can_decide(start: None) -> None:
    checks = CHECKS | {"by": "loss", "keep": "best"}
    write_dev_rows(checks)
    train(dev=checks)
    with (TRAIN / "sft/seed-1/dev.csv").open() as lines:
        checked = [*csv.DictReader(lines)]
    best = min(checked, key=lambda one: float(one["loss"]))
    assert published()["updates"] == int(best["update"])
    assert {one["score"] + one["length"] for one in checked} == {""}


def test_a_perplexity_can_decide(start: None) -> None:
    write_dev_rows(CHECKS, metric="perplexity")
    train(dev=CHECKS | {"keep": "best"})
    with (TRAIN / "sft/seed-1/dev.csv").open() as lines:
        best = min(csv.DictReader(lines), key=lambda one: float(one["score"]))
    assert published()["updates"] == int(best["update"])


def test_without_dev_rows_it_is_refused(start: None) -> None:
    write_rows(DEV, [Row(id="0", prompt="a")])
    phase = TypeAdapter(Method).validate_python(SFT | {"dev": CHECKS})
    with pytest.raises(UserError, match="no dev row has an answer") as refused:
        choose(
            {"sft": phase},
            {},
            task=Task.model_validate({"verifier": {"type": "label"}}),
            metric=validated(DecidingMetric, {"type": "verifier"}, "evaluate.metrics.0"),
            decoding=Decoding(),
        )
    assert "collect.split.dev" in (refused.value.fix or "")


def test_params_without_checks_are_those_of_earlier_versions() -> None:
    assert "dev" not in TypeAdapter(Method).validate_python(SFT).params()
