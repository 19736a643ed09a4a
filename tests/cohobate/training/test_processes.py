"""Two workers, joined by gloo alone, learn what one does."""

import csv
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cohobate import sealed_folder
from cohobate.data.records import (
    ADAPT,
    FILTER,
    INIT_STUDENT,
    LABELLED,
    TRAIN,
    Pair,
    Response,
    Row,
    row_id,
    write_rows,
)
from cohobate.methods.train import Method
from cohobate.models import checkpoints
from cohobate.params import ParamsError, validated
from cohobate.teachers.signal_store.settings import CaptureParams
from cohobate.teachers.teacher import Teacher
from cohobate.training import checkpointing
from tasks.capture.stage import run as capture
from tasks.train.stage import run
from tests.cohobate.training.workers import phase, together

SFT = {
    "method": "sft",
    "from": "init_student",
    "rows": str(FILTER / "kept.jsonl"),
    "targets": str(FILTER / "kept.jsonl"),
    "updates": 8,
    "batch_size": 8,
    "micro_batch_size": 3,
    "learning_rate": 0.01,
    "checkpoint_every": 3,
    "threads": 1,
    "precision": "float32",
    "save_precision": "float32",
}
KD = SFT | {
    "method": "kd",
    "targets": "data/capture/main",
    "terms": [{"type": "forward_kl", "weight": 0.7}, {"type": "hard", "weight": 0.3}],
}
LIVE = KD | {"targets": str(ADAPT / "main"), "teacher_precision": "float32"}
PAIRS = "data/preferences/pairs.jsonl"
DPO = SFT | {"method": "dpo", "rows": PAIRS, "targets": PAIRS, "micro_batch_size": 2}
ON_POLICY = LIVE | {
    "method": "on_policy",
    "terms": [{"type": "reverse_kl"}],
    "student_text": {
        "type": "adaptive", "start": 0.7, "step": 0.2, "tolerance": 0.0, "every": 2, "held_out": 3
    },
    "sampling": {"decoding": {"max_tokens": 5, "temperature": 1.0}, "replay": 8},
}  # fmt: skip
ON_POLICY.pop("teacher_precision")
MUTUAL = SFT | {
    "method": "mutual",
    "peers": [{}, {"jitter": 0.1}, {"keep_layers": [0], "imitates": False}],
    "keep_peers": True,
}
METHODS = {
    "sft": SFT,
    "kd": KD,
    "live teacher": LIVE,
    "dpo": DPO,
    "on_policy": ON_POLICY,
    "mutual": MUTUAL,
}
CURVE_TOLERANCE = 2e-4
"""Relative: float32 sums in another order, grown over the updates."""


@pytest.fixture
def start(project: Path, make_model: Callable[..., Any], tokenizer: Any) -> None:
    prompts = [f"Definition: a small thing {n}\nCategory:" for n in range(20)]
    rows = [Row(id=row_id(p), prompt=p, answer=f" animal {n % 3}") for n, p in enumerate(prompts)]
    write_rows(LABELLED, rows)
    kept = [Response(**row.model_dump(), teacher="main", finish="stop") for row in rows]
    write_rows(FILTER / "kept.jsonl", kept)
    write_rows(Path(PAIRS), [pair(row) for row in rows])
    checkpoints.save(make_model(tokenizer, seed=1), tokenizer, ADAPT / "main", {})
    checkpoints.save(make_model(tokenizer, seed=2, layers=2), tokenizer, INIT_STUDENT, {})
    signals = CaptureParams(signals={"type": "top_k", "k": 64}, precision="float32", threads=1)
    capture("main", Teacher(model="tiny"), signals)


def pair(row: Row) -> Pair:
    sides = {"chosen": row.answer, "rejected": " plant of a long name"}
    origins = {"chosen_origin": "teacher", "rejected_origin": "student"}
    return Pair(id=row.id, prompt=row.prompt, margin=1.0, **sides, **origins)


def history(name: str = "it/seed-1") -> list[dict[str, str]]:
    with (TRAIN / name / "history.csv").open(newline="") as lines:
        return list(csv.DictReader(lines))


def difference(one: list[dict[str, str]], two: list[dict[str, str]], column: str) -> float:
    pairs = [(float(a[column]), float(b[column])) for a, b in zip(one, two, strict=True)]
    return max(abs(a - b) / max(abs(a), 1e-9) for a, b in pairs)


@pytest.mark.parametrize("fields", METHODS.values(), ids=METHODS)
def test_two_workers_learn_what_one_does(start: None, fields: dict[str, Any]) -> None:
    run("it", phase(fields), seeds=[1])
    one = history()
    shutil.rmtree(TRAIN)
    assert together(fields) == ["", ""]
    two = history()
    for column in ["loss", "gradient_norm", *(t["type"] for t in fields.get("terms", []))]:
        assert difference(one, two, column) < CURVE_TOLERANCE, column
    for column in ("tokens", "learning_rate", "stage", "step"):
        assert [line[column] for line in one] == [line[column] for line in two]
    sealed_folder.verify(TRAIN / "it/seed-1")


def test_two_workers_go_on_where_they_were(start: None, make_model: Any, tokenizer: Any) -> None:
    model = make_model(tokenizer, seed=2, layers=2, attention_dropout=0.2)
    checkpoints.save(model, tokenizer, INIT_STUDENT, {})
    assert together(KD) == ["", ""]
    clean = (TRAIN / "it/seed-1/model.safetensors").read_bytes()
    shutil.rmtree(TRAIN)
    newest = sorted(checkpointing.TRAINING.rglob("update-*"))
    assert [folder.name for folder in newest] == ["update-000006", "update-000008"]
    shutil.rmtree(newest[-1])
    assert together(KD) == ["", ""]
    assert (TRAIN / "it/seed-1/model.safetensors").read_bytes() == clean


def test_what_is_not_finite_stops_both_and_names_the_rows_of_both(
    start: None, make_model: Callable[..., Any], tokenizer: Any
) -> None:
    model = make_model(tokenizer, seed=2, layers=2)
    model.model.norm.weight.data[0] = float("nan")
    checkpoints.save(model, tokenizer, INIT_STUDENT, {})
    for message in together(SFT):
        assert message.startswith("UserError: the loss is not finite")
        assert "update 1, rows" in message and message.count("/main/0") == 8
    assert not (TRAIN / "it").exists()


def test_shares_must_be_equal() -> None:
    with pytest.raises(ParamsError, match="multiple of workers"):
        validated(Method, SFT | {"workers": 3}, "train.it")
