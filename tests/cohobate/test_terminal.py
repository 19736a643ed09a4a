"""Progress in a log and on a terminal, beside what libraries write there."""

import os
import pty
import re
import subprocess
import sys
import time

import pytest

from cohobate import terminal
from cohobate.progress import Advance, Say
from tests.tiny_project import ROOT


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "SILENCE", 0.1)
    monkeypatch.setattr(terminal, "_CHECK", 0.02)


def wait_for(lines: list[str], words: str) -> None:
    deadline = time.monotonic() + 10
    while not any(words in line for line in lines):
        assert time.monotonic() < deadline, lines
        time.sleep(0.01)


def test_a_log_says_how_far_a_stage_is_that_reports_nothing_for_long(quick: None) -> None:
    lines: list[str] = []
    with terminal.StageLog(lines.append) as log:
        wait_for(lines, "running for 0.")
        log(Advance("update", 30, 600, 15.0, note="loss 1.23"))
        wait_for(lines, "update 30/600, 5 min left")
        assert "loss 1.23" in lines[-1]
        log(Say("a warning"))
        wait_for(lines, "a warning")
        log(Advance("update", 600, 600, 300.0))
        log(Advance("update", 600, 600, 300.0))
    assert sum("update 600/600 in 5 min" in line for line in lines) == 1
    printed = len(lines)
    time.sleep(0.3)
    assert len(lines) == printed  # it ends with the stage


def test_a_log_does_not_repeat_itself() -> None:
    lines: list[str] = []
    with terminal.StageLog(lines.append) as log:
        for done in range(1000):
            log(Advance("row", done, 1000, 1.0))
    assert lines == []


STAGE = """\
import os, sys, time, warnings
from cohobate import progress, terminal

with terminal.show_progress():
    for number in progress.track(range(3), total=3, label="row"):
        time.sleep(0.3)
        if number == 1:
            sys.stderr.write("\\rWriting model shards:  50%")
            sys.stderr.write("\\r\\x1b[31mWriting model shards: 100%\\x1b[0m\\n")
            os.write(2, b"native: a warning\\n")
            print("stdout of a library")
print("after")
"""


def on_a_terminal(code: str) -> str:
    """Run Python on a pseudo terminal; return all that it wrote there."""
    leader, follower = pty.openpty()
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, cwd=ROOT, stdout=follower, stderr=follower) as process:
        os.close(follower)
        text = b""
        while True:
            try:
                if not (piece := os.read(leader, 4096)):
                    break
            except OSError:  # Linux, where the other end is closed
                break
            text += piece
    os.close(leader)
    assert process.returncode == 0
    return text.decode().replace("\r\n", "\n")


def test_on_a_terminal_what_libraries_write_stands_above_the_progress() -> None:
    text = on_a_terminal(STAGE)
    for line in ("Writing model shards: 100%", "native: a warning", "stdout of a library"):
        assert re.search(rf"\r\x1b\[K{line}\n", text), text
    assert "50%" not in text and "\x1b[31m" not in text
    assert re.search(r"\r\x1b\[Krow 3/3 in \S+ s\n", text)
    assert text.endswith("after\n")


def test_without_a_terminal_stdout_and_stderr_stay_what_they_are() -> None:
    done = subprocess.run(
        [sys.executable, "-c", STAGE], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "stdout of a library\nafter\n"
    assert "native: a warning\n" in done.stderr and "row 3/3 in" in done.stderr
