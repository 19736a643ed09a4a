"""kill -9 of a paying run at random moments: the same rows, and only what was in flight again."""

import json
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import pytest

from cohobate.data.records import GENERATE, LABELLED, write_rows
from tests.loopback_teacher import publish_address, write_prompts

ROOT = Path(__file__).parents[3]
RESPONSES = GENERATE / "main" / "responses.jsonl"
AT_ONCE, PROMPTS = 8, 160
PARAMS = f"""
teachers:
  main: {{model: loopback, signals: false}}
capture: {{}}
generate:
  backend: {{type: openai, limits: {{at_once: {AT_ONCE}}}}}
  window: 100
evaluate:
  decoding: {{max_tokens: 16}}
"""


@contextmanager
def counting_service(log):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tests.loopback_teacher", str(port), str(log), "0.05"]
    service = subprocess.Popen(command, cwd=ROOT)
    try:
        for _ in range(200):
            with socket.socket() as trial:
                if trial.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        service.kill()
        service.wait()


def said(log, what):
    whole, _, _half_written = (log.read_text() if log.exists() else "").rpartition("\n")
    lines = whole.splitlines()
    return Counter(prompt for kind, prompt in map(json.loads, lines) if kind == what)


def start(project):
    command = [sys.executable, "-m", "tasks", "generate@main"]
    return subprocess.Popen(command, cwd=project, env={"PYTHONPATH": str(ROOT)}, stderr=-1)


def killed_after(answers, process, log):
    """Kill -9 once so many answers more went out; say whether it was still running."""
    goal = sum(said(log, "answered").values()) + answers
    while process.poll() is None and sum(said(log, "answered").values()) < goal:
        time.sleep(0.002)
    running = process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stderr.close()
    return running


def kills(project, tmp_path, times):
    """Return (answers before the kill, bought twice because of it) for each kill that landed."""
    log, rng, table = tmp_path / "log.jsonl", random.Random(4), []
    write_prompts(PROMPTS)
    write_rows(LABELLED, [])
    (project / "params.yaml").write_text(PARAMS)
    with counting_service(log) as url:
        publish_address(url)
        first = start(project)
        assert first.wait(120) == 0, first.stderr.read()
        clean = RESPONSES.read_bytes()
        while len(table) < times:
            shutil.rmtree(project / ".cohobate")
            RESPONSES.unlink()
            log.unlink()
            if not killed_after(rng.randint(1, PROMPTS - 20), process := start(project), log):
                continue
            before = sum(said(log, "answered").values())
            assert process.returncode == -signal.SIGKILL and not RESPONSES.exists()
            assert start(project).wait(120) == 0
            assert RESPONSES.read_bytes() == clean
            answered = said(log, "answered")
            assert len(answered) == PROMPTS
            table.append((before, sum(answered.values()) - PROMPTS))
    return table


def check(table):
    for before, twice in table:
        print(f"killed at {before:3} answers: {twice} bought twice, {AT_ONCE} could be in flight")
        assert twice <= AT_ONCE
    assert len({before for before, _ in table}) > 1


def test_killed_at_three_moments(project, tmp_path):
    check(kills(project, tmp_path, 3))


@pytest.mark.faults
def test_killed_at_twenty_moments(project, tmp_path):
    check(kills(project, tmp_path, 20))
