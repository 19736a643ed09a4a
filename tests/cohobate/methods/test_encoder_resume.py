"""Phases of encoders with a teacher in memory: killed, and in two workers."""

import hashlib
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from cohobate import params
from cohobate.data.records import ADAPT, INIT_STUDENT, TRAIN, Row, row_id, write_rows
from cohobate.methods.train import Method
from cohobate.models import checkpoints
from cohobate.progress import Advance, Say, reporting_to
from cohobate.scoring.labels import LabelSet
from cohobate.scoring.verifiers import Label
from tasks.train.stage import run
from tests import tiny_models
from tests.cohobate.training.test_processes import CURVE_TOLERANCE, difference, history
from tests.cohobate.training.workers import together

ROWS = Path("data/collect/labelled.jsonl")
NAMES = ("animal", "plant")
FIELDS: dict[str, Any] = {
    "from": "init_student",
    "rows": str(ROWS),
    "updates": 6,
    "batch_size": 4,
    "micro_batch_size": 2,
    "learning_rate": 0.01,
    "freeze": {"embeddings": False},
    "checkpoint_every": 2,
    "attention": "eager",
    "threads": 1,
    "precision": "float32",
    "save_precision": "float32",
}
INSIDES = [
    {"type": "hidden_mse"},
    {"type": "attention", "distance": "mse", "heads": "match"},
]
METHODS: dict[str, dict[str, Any]] = {
    "mlm": {
        "method": "mlm",
        "targets": "models/adapt/masked",
        "terms": [{"type": "hard"}, {"type": "forward_kl", "temperature": 2.0}, *INSIDES],
    },
    "classify": {
        "method": "classify",
        "targets": "models/adapt/main",
        "features": INSIDES,
        "augment": {"copies": 2, "nearest": 3},
    },
}


@pytest.fixture
def start(project: Path, one_thread: None) -> None:
    from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification

    tokenizer = tiny_models.make_encoder_tokenizer()
    rates = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    prompts = [f"a small {NAMES[n % 2]} {n}" for n in range(12)]
    write_rows(
        ROWS,
        [Row(id=row_id(p), prompt=p, answer=f" {NAMES[n % 2]}") for n, p in enumerate(prompts)],
    )
    for folder, auto, width in (
        (INIT_STUDENT, AutoModelForMaskedLM, 16),
        (ADAPT / "masked", AutoModelForMaskedLM, 32),
        (ADAPT / "main", AutoModelForSequenceClassification, 32),
    ):
        config = tiny_models.make_encoder(tokenizer, hidden_size=width, **rates).config
        LabelSet(NAMES, Label(type="label")).write_into(config)
        checkpoints.save(auto.from_config(config).eval(), tokenizer, folder, {})


def train(method: str) -> dict[str, str]:
    """Train as the stage does after a kill; return the hash of each file of weights and curves."""
    shutil.rmtree(TRAIN, ignore_errors=True)
    run("it", params.validated(Method, FIELDS | METHODS[method], "train.it"), seeds=[1])
    return {
        str(path.relative_to(TRAIN)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(TRAIN.rglob("*"))
        if path.suffix in (".safetensors", ".csv", ".json")
    }


def killed_at(update: int, method: str) -> None:
    """Train in a child process that dies by kill -9 once so many updates are done."""

    def sink(event: Any) -> None:
        if isinstance(event, Advance) and event.done >= update:
            os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        with reporting_to(sink):
            train(method)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), status


@pytest.mark.parametrize("method", METHODS)
def test_a_killed_phase_of_an_encoder_ends_with_the_same_bytes(
    start: None, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    monkeypatch.setattr("cohobate.progress._EVERY_SECONDS", 0)
    clean = train(method)
    killed_at(5, method)
    events: list[Any] = []
    with reporting_to(events.append):
        assert train(method) == clean
    assert any(isinstance(e, Say) and "goes on after update 4" in e.text for e in events)


@pytest.mark.parametrize("method", METHODS)
def test_two_workers_learn_what_one_does_from_an_encoder(start: None, method: str) -> None:
    train(method)
    one = history()
    shutil.rmtree(TRAIN)
    assert together(FIELDS | METHODS[method]) == ["", ""]
    for column in ("loss", "hidden_mse", "attention", "gradient_norm"):
        assert difference(one, history(), column) < CURVE_TOLERANCE, column
