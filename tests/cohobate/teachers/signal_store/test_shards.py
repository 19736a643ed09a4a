"""Shards: a capture that is killed goes on, and ends in the same bytes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cohobate.data.records import ADAPT, CAPTURE, FILTER, Response, row_id, write_rows
from cohobate.models import checkpoints
from cohobate.teachers.signal_store import capture
from cohobate.teachers.signal_store.settings import CaptureParams
from cohobate.teachers.signal_store.shards import WORK
from cohobate.teachers.teacher import Teacher
from tasks.capture.stage import run
from tests.tiny_project import ROOT

PARAMS = {
    "signals": {"type": "sampled", "draws": 8},
    "precision": "float32",
    "threads": 1,
    "shard_rows": 10,
    "batch_tokens": 40,
}
SLOW = """
import os, time
from cohobate.teachers.signal_store import capture
from cohobate.teachers.signal_store.settings import CaptureParams
from tasks.capture.stage import run
from cohobate.teachers.teacher import Teacher
compute = capture.compute_signals
def slowly(*arguments):
    time.sleep(0.02)
    return compute(*arguments)
capture.compute_signals = slowly
run("main", Teacher(model="tiny"), CaptureParams(**{params}))
"""


@pytest.fixture
def rows(project, model, tokenizer):
    """Sixty rows: six shards of many batches."""
    prompts = [f"a small plant {n} {'animal ' * (n % 4)}" for n in range(60)]
    kept = [
        Response(id=row_id(p), prompt=p, answer=" animal", teacher="main", finish="stop")
        for p in prompts
    ]
    write_rows(FILTER / "kept.jsonl", kept)
    checkpoints.save(model, tokenizer, ADAPT / "main", {})


def content() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((CAPTURE / "main").iterdir())}


def captured(**changes) -> dict[str, bytes]:
    run("main", Teacher(model="tiny"), CaptureParams(**(PARAMS | changes)))
    return content()


def whole_shards() -> list[Path]:
    return sorted(WORK.glob("main/*/shard-*/manifest.json"))


def test_a_capture_killed_twice_ends_in_the_same_bytes(rows, monkeypatch) -> None:
    expected = captured()
    assert len([name for name in expected if name.startswith("tokens-")]) == 6
    for path in (CAPTURE / "main").iterdir():
        path.unlink()
    for count in (1, 3):
        process = subprocess.Popen(
            [sys.executable, "-c", SLOW.replace("{params}", repr(PARAMS))],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            start_new_session=True,
        )
        deadline = time.monotonic() + 60
        while len(whole_shards()) < count and time.monotonic() < deadline:
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    left = len(whole_shards())
    assert 3 <= left < 6 and not content()
    seen = []
    compute = capture.compute_signals
    monkeypatch.setattr(capture, "compute_signals", lambda *a: (seen.append(a[-1]), compute(*a))[1])
    assert captured() == expected
    assert sum(map(len, seen)) == 60 - 10 * left  # no whole shard was computed again
    assert not list(WORK.iterdir())


def test_a_damaged_shard_is_made_anew(rows, monkeypatch) -> None:
    expected = captured()
    with monkeypatch.context() as patched, pytest.raises(ZeroDivisionError):
        patched.setattr(capture, "publish", lambda *_, **__: 1 / 0)
        captured()
    assert len(whole_shards()) == 6
    (whole_shards()[2].parent / "tokens-00002.bin").write_bytes(b"torn")
    assert captured() == expected


def test_other_params_do_not_go_on_with_these_shards(rows, monkeypatch) -> None:
    monkeypatch.setattr(capture, "publish", lambda *_, **__: 1 / 0)
    for changes in ({}, {"batch_tokens": 41}, {"signals": PARAMS["signals"] | {"seed": 1}}):
        with pytest.raises(ZeroDivisionError):
            captured(**changes)
    assert len(list((WORK / "main").iterdir())) == 3


def test_threads_do_not_decide_the_bytes(rows) -> None:
    assert captured(threads=2) == captured()
