"""A phase that is killed with -9, at any update or step of writing, ends as if it were not."""

import hashlib
import os
import random
import resource
import shutil
import signal
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from cohobate.data.records import INIT_STUDENT, LABELLED, TRAIN, Row, row_id, write_rows
from cohobate.errors import UserError
from cohobate.methods.train import Method
from cohobate.models import checkpoints
from cohobate.progress import Advance, Say, reporting_to
from cohobate.training import checkpointing
from tasks.train.stage import run
from tests.cohobate.training.test_checkpointing import damage

UPDATES, EVERY = 7, 2
SFT = {
    "method": "sft",
    "from": "init_student",
    "rows": str(LABELLED),
    "targets": str(LABELLED),
    "updates": UPDATES,
    "batch_size": 4,
    "micro_batch_size": 2,
    "learning_rate": 0.01,
    "checkpoint_every": EVERY,
    "threads": 1,
    "precision": "float32",
    "save_precision": "float32",
}
RUN = checkpointing.TRAINING / "sft"


@pytest.fixture
def start(project: Path, make_model: Callable[..., Any], tokenizer: Any) -> None:
    prompts = [f"Definition: a small thing {n}\nCategory:" for n in range(10)]
    rows = [Row(id=row_id(p), prompt=p, answer=f" animal {n % 3}") for n, p in enumerate(prompts)]
    write_rows(LABELLED, rows)
    model = make_model(tokenizer, seed=2, layers=2, attention_dropout=0.2)  # draws random numbers
    checkpoints.save(model, tokenizer, INIT_STUDENT, {})


def train(sink: Callable[..., None] = lambda event: None, **changes: Any) -> dict[str, str]:
    """Run the phase as a stage does after a kill: without what it wrote before."""
    shutil.rmtree(TRAIN, ignore_errors=True)
    seeds = changes.pop("seeds", [1])
    with reporting_to(sink):
        run("sft", TypeAdapter(Method).validate_python(SFT | changes), seeds=seeds)
    return {
        str(path.relative_to(TRAIN)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(TRAIN.rglob("*"))
        if path.suffix in (".safetensors", ".csv", ".json")
    }


def killed(sink: Callable[..., None] = lambda event: None, **changes: Any) -> None:
    """Train in a child process, which `sink` or a fault kills with -9."""
    child = os.fork()
    if child == 0:
        try:
            train(sink, **changes)
        except BaseException:
            # else the child would go on with its parent's tests
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, status


def die(*_: Any, **__: Any) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


def at_update(number: int, seed: int = 1) -> Callable[..., None]:
    """Die once so many updates are done."""

    def sink(event: Any) -> None:
        of_seed = isinstance(event, Advance) and event.label.endswith(f"seed {seed}")
        if of_seed and event.done >= number:
            die()

    return sink


@pytest.fixture
def every_update_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cohobate.progress._EVERY_SECONDS", 0)


def resumed_after(events: list[Any]) -> int:
    """How many updates the rerun found done."""
    lines = [e.text for e in events if isinstance(e, Say) and "goes on after" in e.text]
    return int(lines[0].rsplit(" ", 1)[1]) if lines else 0


def sound() -> list[Path]:
    return sorted(RUN.rglob("update-*"))


@pytest.fixture
def clean(start: None) -> dict[str, str]:
    """What a run that nothing disturbs comes to."""
    return train(checkpoint_every=0)


def test_killed_at_random_updates_it_ends_with_the_same_bytes(
    every_update_tells: None, clean: dict[str, str]
) -> None:
    for point in sorted(random.Random(9).sample(range(1, UPDATES + 1), 3)):
        killed(at_update(point))
    events: list[Any] = []
    assert train(events.append) == clean
    assert 0 <= point - resumed_after(events) <= EVERY
    assert not RUN.exists()


@pytest.mark.parametrize("optimiser", ["adafactor", "sgd"])
def test_the_state_of_every_optimiser_is_kept(
    start: None, every_update_tells: None, optimiser: str
) -> None:
    clean = train(checkpoint_every=0, optimiser=optimiser)
    killed(at_update(UPDATES - 1), optimiser=optimiser)
    events: list[Any] = []
    assert train(events.append, optimiser=optimiser) == clean
    assert resumed_after(events) == EVERY * ((UPDATES - 2) // EVERY)


@pytest.mark.faults
@pytest.mark.parametrize("point", range(1, UPDATES + 1))
def test_killed_at_each_update_it_ends_with_the_same_bytes(
    every_update_tells: None, clean: dict[str, str], point: int
) -> None:
    killed(at_update(point))
    events: list[Any] = []
    assert train(events.append) == clean
    assert 0 <= point - resumed_after(events) <= EVERY


STEPS = {
    "before anything is written": "safetensors.torch.save_file",
    "with all files written": "cohobate.sealed_folder._seal",
    "while the files are synced": "cohobate.sealed_folder._sync",
    "before the rename": "pathlib.Path.rename",
}


@pytest.mark.faults
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("which", [1, 2, 3])
def test_killed_at_each_step_of_writing_a_checkpoint(
    clean: dict[str, str], monkeypatch: pytest.MonkeyPatch, step: str, which: int
) -> None:
    with monkeypatch.context() as fault:
        original = checkpointing.CheckpointDir.save

        def save(directory: Any, update: int, fill: Any) -> None:
            if update == which * EVERY:
                fault.setattr(STEPS[step], die)
            original(directory, update, fill)

        fault.setattr(checkpointing.CheckpointDir, "save", save)
        killed()
    events: list[Any] = []
    assert train(events.append) == clean
    assert resumed_after(events) == (which - 1) * EVERY


FILES = ["weights.safetensors", "optimizer.safetensors", "state.json", "manifest.json"]


@pytest.mark.faults
@pytest.mark.parametrize("how", ["missing", "truncated", "bit-flipped"])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    every_update_tells: None, clean: dict[str, str], name: str, how: str
) -> None:
    killed(at_update(2 * EVERY + 1))
    newest = sound()[-1]
    damage(newest / name, how)
    events: list[Any] = []
    assert train(events.append) == clean
    assert resumed_after(events) == EVERY
    (line,) = [e.text for e in events if isinstance(e, Say) and "damaged" in e.text]
    assert name in line and str(newest) in line


def test_with_every_checkpoint_damaged_it_starts_anew(
    every_update_tells: None, clean: dict[str, str]
) -> None:
    killed(at_update(2 * EVERY + 1))
    for folder in sound():
        damage(folder / "weights.safetensors", "bit-flipped")
    events: list[Any] = []
    assert train(events.append) == clean
    assert resumed_after(events) == 0


def test_finished_seeds_are_not_trained_again(start: None, every_update_tells: None) -> None:
    clean = train(checkpoint_every=0, seeds=[1, 2])
    killed(at_update(EVERY + 1, seed=2), seeds=[1, 2])
    events: list[Any] = []
    assert train(events.append, seeds=[1, 2]) == clean
    moved = [e.label for e in events if isinstance(e, Advance) and e.done > e.before]
    assert moved and all(label.endswith("seed 2") for label in moved)


@pytest.mark.faults
@pytest.mark.parametrize(
    "change", [{"learning_rate": 0.02}, {"batch_size": 2}, {"seeds": [2]}, {"updates": 8}]
)
def test_a_checkpoint_of_other_params_is_not_used(
    start: None, every_update_tells: None, change: dict[str, Any]
) -> None:
    killed(at_update(UPDATES - 1))
    events: list[Any] = []
    train(events.append, **change)
    assert resumed_after(events) == 0


def test_other_rows_or_another_start_are_not_gone_on_with(
    start: None, every_update_tells: None, make_model: Callable[..., Any], tokenizer: Any
) -> None:
    killed(at_update(UPDATES - 1))
    checkpoints.save(make_model(tokenizer, seed=3, layers=2), tokenizer, INIT_STUDENT, {})
    events: list[Any] = []
    train(events.append)
    assert resumed_after(events) == 0


def test_the_newest_two_are_kept_until_all_is_published(
    start: None, every_update_tells: None
) -> None:
    killed(at_update(1, seed=2), seeds=[1, 2])
    assert [folder.name for folder in sound()] == ["update-000006", "update-000007"]


def test_a_full_disk_is_said_and_the_run_goes_on_later(
    every_update_tells: None, clean: dict[str, str]
) -> None:
    """The limit on a file's size fails the write as a full disk does, half-way."""

    def full(event: Any) -> None:
        if isinstance(event, Advance) and event.done == EVERY + 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))

    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        try:
            train(full)
        except UserError as error:
            os.write(write, str(error).encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    os.close(write)
    assert b"the disk is full" in os.read(read, 1000)
    assert [folder.name for folder in sound()] == ["update-000002"]
    assert not list(RUN.rglob(".*"))
    events: list[Any] = []
    assert train(events.append) == clean
    assert resumed_after(events) == EVERY
