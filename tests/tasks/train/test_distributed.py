"""Two workers learn what one does, and a lost one is replaced; with a real local Ray."""

import csv
import hashlib
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from pydantic import TypeAdapter

from tasks import checkpoints, resuming
from tasks.capture.stage import CaptureParams
from tasks.capture.stage import run as capture
from tasks.errors import UserError
from tasks.progress import Say, reporting_to
from tasks.records import ADAPT, FILTER, LABELLED, SHAPE, TRAIN, Response, Row, row_id, write_rows
from tasks.teachers import Teacher
from tasks.train.stage import Method, run

KD = {
    "method": "kd",
    "from": "shape",
    "rows": str(FILTER / "kept.jsonl"),
    "targets": "data/capture/main",
    "terms": [{"type": "forward_kl", "weight": 0.7}, {"type": "hard", "weight": 0.3}],
    "updates": 12,
    "batch_size": 8,
    "micro_batch_size": 3,
    "learning_rate": 0.01,
    "checkpoint_every": 3,
    "threads": 1,
    "precision": "float32",
    "save_precision": "float32",
}
CURVE_TOLERANCE = 2e-4
"""Relative: float32 sums in another order, grown over the updates."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    from tasks.train.distributed import _cluster

    with _cluster(2):
        yield


@pytest.fixture
def start(project: Path, make_model: Callable[..., Any], tokenizer: Any) -> None:
    prompts = [f"Definition: a small thing {n}\nCategory:" for n in range(20)]
    rows = [Row(id=row_id(p), prompt=p, answer=f" animal {n % 3}") for n, p in enumerate(prompts)]
    write_rows(LABELLED, rows)
    kept = [Response(**row.model_dump(), teacher="main", finish="stop") for row in rows]
    write_rows(FILTER / "kept.jsonl", kept)
    checkpoints.save(make_model(tokenizer, seed=1), tokenizer, ADAPT / "main", {})
    checkpoints.save(make_model(tokenizer, seed=2, layers=2), tokenizer, SHAPE, {})
    signals = {"type": "top_k", "k": 64}
    capture(
        "main",
        Teacher(model="tiny"),
        CaptureParams(signals=signals, precision="float32", threads=1),
    )


def train(sink: Callable[..., None] = lambda event: None, **changes: Any) -> list[dict[str, str]]:
    shutil.rmtree(TRAIN, ignore_errors=True)
    with reporting_to(sink):
        run("kd", TypeAdapter(Method).validate_python(KD | changes), seeds=[1])
    with (TRAIN / "kd/seed-1/history.csv").open(newline="") as lines:
        return list(csv.DictReader(lines))


def weights() -> str:
    return hashlib.sha256((TRAIN / "kd/seed-1/model.safetensors").read_bytes()).hexdigest()


def difference(one: list[dict[str, str]], two: list[dict[str, str]], column: str) -> float:
    pairs = [(float(a[column]), float(b[column])) for a, b in zip(one, two, strict=True)]
    return max(abs(a - b) / max(abs(a), 1e-9) for a, b in pairs)


def test_two_workers_learn_what_one_does(start: None, cluster: None) -> None:
    one = train()
    said: list[Any] = []
    two = train(said.append, workers=2)
    for column in ("loss", "forward_kl", "hard"):
        assert difference(one, two, column) < CURVE_TOLERANCE, column
    assert [line["tokens"] for line in one] == [line["tokens"] for line in two]
    assert said[-1].done == KD["updates"] if not isinstance(said[-1], Say) else said[-1].text
    assert not (resuming.TRAINING / "kd").exists()


def test_what_is_not_finite_stops_all_workers_and_names_its_rows(
    start: None, cluster: None, make_model: Callable[..., Any], tokenizer: Any
) -> None:
    model = make_model(tokenizer, seed=2, layers=2)
    model.model.norm.weight.data[0] = float("nan")
    checkpoints.save(model, tokenizer, SHAPE, {})
    with pytest.raises(UserError, match="loss is not finite") as caught:
        train(workers=2)
    assert "update 1, rows" in caught.value.where and caught.value.where.count("/main/0") == 8
    assert not (TRAIN / "kd/seed-1").exists()


def test_more_workers_than_slots_are_refused(start: None, cluster: None) -> None:
    with pytest.raises(UserError, match="4 workers need as many CPU slots: the cluster has 2"):
        train(workers=4)


@pytest.mark.faults
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_worker_is_replaced_and_nothing_changes(
    start: None, cluster: None, victim: int
) -> None:
    many = {"updates": 400, "checkpoint_every": 20, "workers": 2}
    train(**many)
    clean = weights()
    killed: list[int] = []

    def kill() -> None:
        while len(list(resuming.TRAINING.rglob("update-*"))) < 2:
            time.sleep(0.02)
        found = [p for p in psutil.process_iter(["name"]) if "RayTrainWorker" in p.info["name"]]
        mine = sorted(p.pid for p in found if p.username() == psutil.Process().username())
        os.kill(mine[victim], signal.SIGKILL)
        killed.append(mine[victim])

    killer = threading.Thread(target=kill)
    killer.start()
    said: list[Any] = []
    began = time.monotonic()
    train(said.append, **many)
    killer.join()
    assert killed
    assert any(isinstance(e, Say) and "goes on after update" in e.text for e in said)
    assert weights() == clean
    assert time.monotonic() - began < 120
