"""A classifier's phase with soft labels and dropout: killed, in two workers, with other seeds."""

import hashlib
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from cohobate import params
from cohobate.data.records import TRAIN, write_rows
from cohobate.methods.train import Method
from cohobate.models import checkpoints
from cohobate.progress import Advance, Say, reporting_to
from cohobate.scoring.labels import LabelSet
from cohobate.scoring.verifiers import Label
from cohobate.training import checkpointing
from tasks.train.stage import run
from tests import tiny_models
from tests.cohobate.methods.test_label_signals import NAMES, ROWS, STORE, rows, write_labels
from tests.cohobate.training.test_processes import CURVE_TOLERANCE, difference, history
from tests.cohobate.training.workers import together

FIELDS: dict[str, Any] = {
    "method": "classify",
    "from": "init_student",
    "rows": str(ROWS),
    "targets": str(STORE),
    "soft": 0.5,
    "temperature": 2.0,
    "updates": 6,
    "batch_size": 4,
    "micro_batch_size": 2,
    "learning_rate": 0.01,
    "freeze": {"embeddings": False},
    "checkpoint_every": 2,
    "threads": 1,
    "precision": "float32",
    "save_precision": "float32",
}


def write_student(dropout: float) -> None:
    from transformers import AutoModelForSequenceClassification

    tokenizer = tiny_models.make_tokenizer()
    rates = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    tiny_models.make_encoder(tokenizer, **rates).save_pretrained("encoder")
    model = AutoModelForSequenceClassification.from_pretrained("encoder", num_labels=2)
    LabelSet(NAMES, Label(type="label")).write_into(model.config)
    checkpoints.save(model, tokenizer, Path("models/init_student"), {})


@pytest.fixture
def start(project: Path, one_thread: None) -> None:
    write_rows(ROWS, rows([" animal", " odd", " plant", " plant"]))
    write_labels()
    write_student(dropout=0.2)


def train(seeds: tuple[int, ...] = (1,)) -> dict[str, str]:
    """Train as the stage does after a kill; return the hash of each file of weights and curves."""
    shutil.rmtree(TRAIN, ignore_errors=True)
    run("it", params.validated(Method, FIELDS, "train.it"), seeds=[*seeds])
    return {
        str(path.relative_to(TRAIN)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(TRAIN.rglob("*"))
        if path.suffix in (".safetensors", ".csv", ".json")
    }


def killed_at(update: int) -> None:
    """Train in a child process that dies by kill -9 once so many updates are done."""

    def sink(event: Any) -> None:
        if isinstance(event, Advance) and event.done >= update:
            os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        with reporting_to(sink):
            train()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), status


def test_a_killed_phase_ends_with_the_same_weights(
    start: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cohobate.progress._EVERY_SECONDS", 0)
    clean = train()
    killed_at(5)
    events: list[Any] = []
    with reporting_to(events.append):
        assert train() == clean
    assert any(isinstance(e, Say) and "goes on after update 4" in e.text for e in events)


def test_seeds_differ_and_repeat(start: None) -> None:
    both = train((1, 2))
    assert both == train((1, 2))
    weights = {name: digest for name, digest in both.items() if name.endswith(".safetensors")}
    assert len(weights) == len(set(weights.values())) == 2


def test_two_workers_learn_what_one_does(start: None) -> None:
    write_student(dropout=0)
    train()
    one = history()
    shutil.rmtree(TRAIN)
    assert together(FIELDS) == ["", ""]
    for column in ("loss", "hard", "soft", "gradient_norm"):
        assert difference(one, history(), column) < CURVE_TOLERANCE, column


def test_two_workers_with_dropout_go_on_where_they_were(start: None) -> None:
    assert together(FIELDS) == ["", ""]
    clean = (TRAIN / "it/seed-1/model.safetensors").read_bytes()
    shutil.rmtree(TRAIN)
    newest = sorted(checkpointing.TRAINING.rglob("update-*"))
    assert newest[-1].name == "update-000006"
    shutil.rmtree(newest[-1])
    assert together(FIELDS) == ["", ""]
    assert (TRAIN / "it/seed-1/model.safetensors").read_bytes() == clean
