"""Progress of stages in a log, on a terminal, and beside what libraries write there."""

import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

from cohobate.progress import Advance, CurvePoints, Event, duration, reporting_to

SILENCE = 20.0
"""Seconds without a line after which one says how far the stage is; with `_CHECK` well below 30."""
_CHECK = 2.0
_CONTROL = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07]*\x07|[@-_])|[\x00-\x08\x0b-\x1f\x7f]")


class StageLog:
    """Writes a stage's events as lines: messages, finished work, and how far it is while it runs.

    A line comes at least every 30 seconds, also from a stage that reports nothing.
    """

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._last: Advance | None = None
        self._finished: set[str] = set()
        self._started = self._written = time.monotonic()
        self._ended = threading.Event()
        threading.Thread(target=self._remind, daemon=True).start()

    def __enter__(self) -> "StageLog":
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()

    def __call__(self, event: Event) -> None:
        """Take in one event."""
        if isinstance(event, CurvePoints):
            return
        if not isinstance(event, Advance):
            self._line(str(event))
            return
        self._last = event
        if event.done < event.total:
            self._progress()
        elif event.label not in self._finished:
            self._finished.add(event.label)
            self._line(str(event))

    def _remind(self) -> None:
        while not self._ended.wait(_CHECK):
            self._progress()

    def _progress(self) -> None:
        """Write how far the stage is, unless it wrote a line just now."""
        now = time.monotonic()
        if now - self._written < SILENCE or self._ended.is_set():
            return
        if self._last and self._last.done < self._last.total:
            self._line(str(self._last))
        else:
            self._line(f"running for {duration(now - self._started)}")

    def _line(self, text: str) -> None:
        self._written = time.monotonic()
        self._write(text)


class _OneLine:
    """Draws a stage's progress on a terminal: one line, rewritten in place."""

    def __init__(self, terminal: TextIO) -> None:
        self._terminal = terminal
        self._drawn = ""
        self._lock = threading.Lock()

    def __call__(self, event: Event) -> None:
        """Draw one event."""
        if isinstance(event, CurvePoints):
            return
        if isinstance(event, Advance) and event.done < event.total:
            self._draw("", str(event))
        else:
            self._draw(f"{event}\n", "")

    def above(self, line: str) -> None:
        """Write a line that something else wrote, above the progress."""
        self._draw(f"{line}\n", self._drawn)

    def _draw(self, line: str, progress: str) -> None:
        with self._lock:
            self._drawn = progress
            # back to the first column, clear the line, then write
            self._terminal.write(f"\r\x1b[K{line}{progress}")
            self._terminal.flush()


@contextmanager
def show_progress() -> Iterator[None]:
    """Show the events of this context on stderr: in place on a terminal, as lines in a log."""
    if not sys.stderr.isatty():
        write = lambda line: print(line, file=sys.stderr, flush=True)  # noqa: E731
        with StageLog(write) as log, reporting_to(log):
            yield
        return
    lines: list[_OneLine] = []
    with capture_terminal(lambda line: lines[0].above(line) if lines else None) as terminal:
        lines.append(_OneLine(terminal))
        with reporting_to(lines[0]):
            yield


@contextmanager
def capture_terminal(write: Callable[[str], None]) -> Iterator[TextIO]:
    """Yield the terminal; what anything else writes there meanwhile goes to `write`, line by line.

    Libraries draw bars and warnings on stderr, native ones past Python: it is the file descriptors
    that are redirected. Escape sequences go, and of a line that was rewritten its last state stays.
    """
    # what is no terminal, such as a file, is left as it is
    descriptors = [number for number in (1, 2) if os.isatty(number)]
    sys.stdout.flush(), sys.stderr.flush()
    reader, writer = os.pipe()
    saved = {number: os.dup(number) for number in descriptors}
    for number in descriptors:
        os.dup2(writer, number)
    # else the reader would never see the end: this copy would hold the pipe open
    os.close(writer)
    drain = threading.Thread(target=_drain, args=(reader, write), daemon=True)
    drain.start()
    try:
        with os.fdopen(os.dup(saved[descriptors[-1]]), "w", encoding="utf-8") as terminal:
            try:
                yield terminal
            finally:
                sys.stdout.flush(), sys.stderr.flush()
                for number, copy in saved.items():
                    os.dup2(copy, number)
                drain.join(0.5)  # longer only where a child process still holds the pipe
    finally:
        for copy in saved.values():
            os.close(copy)


def _drain(reader: int, write: Callable[[str], None]) -> None:
    with os.fdopen(reader, encoding="utf-8", errors="replace", newline="\n") as stream:
        for line in stream:
            # a bar rewrites its line after each \r: its last state counts
            last = line.rstrip("\r\n").rpartition("\r")[2]
            if text := _CONTROL.sub("", last).rstrip():
                with suppress(ValueError):  # the terminal is closed: a child process outlives it
                    write(text)
