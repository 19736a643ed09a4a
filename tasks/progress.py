"""How a stage says how far it is, wherever it runs.

A stage wraps its loop in `track` and speaks through `say`. Whoever runs the stage decides where
that goes: a bar on the terminal (`python -m tasks`), or a stream of events to the flow's driver.
"""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")
_EVERY_SECONDS = 0.25


@dataclass(frozen=True)
class Advance:
    """So much of a named piece of work is done."""

    what: str
    done: int
    total: int
    seconds: float
    before: int = 0
    """Of `done`, what an earlier process did: this one went on from there."""
    note: str = ""
    """How it goes, in a few words."""

    @property
    def eta_seconds(self) -> float:
        """Seconds left at the mean pace so far."""
        return self.seconds / max(self.done - self.before, 1) * (self.total - self.done)


@dataclass(frozen=True)
class Say:
    """A line for the log."""

    text: str


Event = Advance | Say
Sink = Callable[[Event], None]


def track(items: Iterable[T], *, total: int, what: str) -> Iterator[T]:
    """Yield `items`, and report after each how many of `total` are done (a few times a second)."""
    meter = Meter(what, total)
    for item in items:
        yield item
        meter.advance()
    meter.finish()


class Meter:
    """The same as `track` for work that does not come as one iterable (a trainer's steps)."""

    def __init__(self, what: str, total: int, before: int = 0) -> None:
        self.what, self.total, self.done, self.before = what, total, before, before
        self._note = ""
        self._start = time.monotonic()
        self._told = 0.0
        self._told_done = -1
        self._tell()

    def skip(self, steps: int) -> None:
        """Note `steps` as done before: they tell nothing of the pace."""
        self.before += steps
        self.advance(steps, note=self._note)

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Note `steps` more as done, and how it goes."""
        self.done += steps
        self._note = note
        if time.monotonic() - self._told >= _EVERY_SECONDS:
            self._tell()

    def finish(self) -> None:
        """Report the final count, unless the last step has."""
        if self._told_done != self.done:
            self._tell()

    def _tell(self) -> None:
        self._told, self._told_done = time.monotonic(), self.done
        elapsed = self._told - self._start
        total = max(self.total, self.done)
        emit(Advance(self.what, self.done, total, elapsed, self.before, self._note))


def say(text: str) -> None:
    """Write a line to the stage's log."""
    emit(Say(text))


def emit(event: Event) -> None:
    """Pass an event on that came from elsewhere."""
    _sink.get()(event)


@contextmanager
def reporting_to(sink: Sink) -> Iterator[None]:
    """Send the events of this context to `sink`."""
    token = _sink.set(sink)
    try:
        yield
    finally:
        _sink.reset(token)


class Terminal:
    """Draws events on stderr: one line rewritten in place, or a line every ten seconds."""

    def __init__(self) -> None:
        self._tty = sys.stderr.isatty()
        self._told = -1e9

    def __call__(self, event: Event) -> None:
        """Draw one event."""
        if isinstance(event, Say):
            print(event.text, file=sys.stderr)
            return
        finished = event.done >= event.total
        now = time.monotonic()
        if not self._tty and not finished and now - self._told < 10:
            return
        self._told = now
        share = event.done / max(event.total, 1)
        line = f"{event.what}: {event.done}/{event.total} ({share:.0%})"
        line += f" in {event.seconds:.0f} s" if finished else f", {event.eta_seconds:.0f} s left"
        line += f"; {event.note}" if event.note else ""
        start, end = ("\r\x1b[K", "\n" if finished else "") if self._tty else ("", "\n")
        print(f"{start}{line}", end=end, file=sys.stderr, flush=True)


_terminal = Terminal()
_sink: ContextVar[Sink] = ContextVar("progress_sink", default=_terminal)
