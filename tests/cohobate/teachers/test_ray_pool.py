"""A teacher in Ray actors: the same store and the same losses as in this process."""

import csv
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from cohobate import sealed_folder
from cohobate.data.records import ADAPT, CAPTURE, LABELLED, TRAIN, Row, read_rows, write_rows
from cohobate.params import ParamsError, validated
from cohobate.teachers import ray_pool
from cohobate.teachers.ray_pool import PooledTeacher
from cohobate.teachers.signal_store import elsewhere
from cohobate.teachers.signal_store.capture import capture_signals
from cohobate.teachers.signal_store.settings import CaptureParams
from cohobate.teachers.teacher_workers import TeacherWorkers
from tasks.train.stage import run
from tests.cohobate.methods.test_on_policy import ON_POLICY
from tests.tasks.train.test_train import Method, phase, round_so_far

__all__ = ["round_so_far"]
FIELDS = ON_POLICY | {"updates": 4, "student_text": {"type": "constant", "share": 0.5}}
TWO = {"workers": 2}


class PoolHere:
    """The actors' methods, called in this process when their results are waited for."""

    sent: ClassVar[list[tuple[str, int]]] = []

    def __init__(self, folder: Path, number_format: Any, settings: TeacherWorkers) -> None:
        self.teacher, self.stopped = PooledTeacher(str(folder), number_format), 0

    def __exit__(self, *_: object) -> None:
        self.stopped += 1

    def call(self, method: str, *arguments: Any) -> Any:
        self.sent.append((method, len(arguments[-1]) if arguments else 0))
        return lambda: getattr(self.teacher, method)(*arguments)

    def result(self, reference: Any) -> Any:
        return reference()

    def map(self, method: str, batches: Iterable[Any], *arguments: Any) -> Iterator[Any]:
        for batch in batches:
            yield batch, self.result(self.call(method, *arguments, batch))


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    PoolHere.sent = []
    monkeypatch.setattr(ray_pool, "TeacherPool", PoolHere)
    monkeypatch.setattr(elsewhere, "TeacherPool", PoolHere)


def losses() -> list[float]:
    with (TRAIN / "here/seed-1/history.csv").open(newline="") as lines:
        return [float(line["loss"]) for line in csv.DictReader(lines)]


def captured(folder: Path, **fields: Any) -> str:
    form = {"type": "top_k", "k": 16}
    section = CaptureParams(signals=form, precision="float32", threads=1, **fields)  # type: ignore[arg-type]
    capture_signals(ADAPT / "main", Path("data/filter/kept.jsonl"), folder, section, label="c")
    return sealed_folder.sha256_of(folder / sealed_folder.MANIFEST)


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_the_losses_are_those_of_a_teacher_in_this_process(
    round_so_far: Any, here: None, share: float
) -> None:
    rows = list(read_rows(LABELLED, Row))
    hint = {"teacher_prompt": f"Hint: a thing.\n{rows[0].prompt}"}
    write_rows(LABELLED, [rows[0].model_copy(update=hint), *rows[1:]])
    fields = FIELDS | {"student_text": {"type": "constant", "share": share}}
    run("here", phase(**fields), seeds=[1])
    live = losses()
    run("here", phase(**fields, teacher_workers=TWO), seeds=[1])
    assert losses() == pytest.approx(live, rel=1e-5)
    kinds = {method for method, _ in PoolHere.sent}
    assert kinds == {"hidden_states", "head"} and PoolHere.sent.count(("head", 0)) == 1


def test_a_store_has_the_same_bytes(round_so_far: Any, here: None) -> None:
    one = captured(CAPTURE / "here")
    assert captured(CAPTURE / "elsewhere", teacher_workers=TWO) == one
    assert {method for method, _ in PoolHere.sent} == {"signals", "head"}


def test_what_actors_cannot_do_is_refused() -> None:
    for fields in ({"workers": 2}, {"terms": [{"type": "uld"}]}):
        with pytest.raises(ParamsError, match="score for one worker, of the same tokenizer"):
            validated(Method, {**ON_POLICY, **fields, "teacher_workers": TWO}, "train.here")


@pytest.mark.slow
def test_real_actors_give_the_same(round_so_far: Any) -> None:
    from cohobate.training.distributed import _cluster

    run("here", phase(**FIELDS), seeds=[1])
    live, one = losses(), captured(CAPTURE / "here")
    with _cluster(2):
        shutil.rmtree(TRAIN / "here")
        run("here", phase(**FIELDS, teacher_workers=TWO), seeds=[1])
        assert losses() == pytest.approx(live, rel=1e-5)
        assert captured(CAPTURE / "elsewhere", teacher_workers=TWO) == one
