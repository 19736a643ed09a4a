"""Progress and log lines of a stage, wherever it runs.

A stage wraps its loop in `track` and logs through `say`. Whoever runs the stage decides where
that goes: the terminal or log of `python -m tasks`, or a stream of events to the flow's driver.
"""

import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")
_EVERY_SECONDS = 0.25


@dataclass(frozen=True)
class Advance:
    """Progress of a named piece of work."""

    label: str
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

    def __str__(self) -> str:
        line = f"{self.label} {self.done:,}/{self.total:,}"
        if self.done >= self.total:
            line += f" in {duration(self.seconds)}"
        elif self.done > self.before:
            line += f", {duration(self.eta_seconds)} left"
        return f"{line}; {self.note}" if self.note else line


@dataclass(frozen=True)
class Say:
    """A line for the log."""

    text: str

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class CurvePoints:
    """Figures of a training run, for trackers (`flows/tracking/`): no line of any log."""

    run: str
    """The run that they are of, such as `kd/seed-1`."""
    points: tuple[tuple[int, Mapping[str, float]], ...]
    """Updates, each with its figures by name."""


@dataclass(frozen=True)
class DevScore:
    """The figure of a check on dev rows that decides, while a phase trains."""

    label: str
    """Name of the run, such as `train kd, seed 1`."""
    update: int
    updates: int
    """Of the whole run."""
    value: float
    text: str
    """All figures, in a few words."""

    def __str__(self) -> str:
        return f"{self.label}: update {self.update:,} of {self.updates:,}, on dev {self.text}"


Event = Advance | Say | CurvePoints | DevScore


def duration(seconds: float) -> str:
    """Return a time as a person reads it: `9.2 s`, `75 s`, `12 min`, `3.4 h`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 180:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


Sink = Callable[[Event], None]


def track(items: Iterable[T], *, total: int, label: str, in_batches: bool = False) -> Iterator[T]:
    """Yield `items`, and report after each how many of `total` are done (a few times a second).

    `in_batches`: the items come a batch at a time, and `advance_early` counts within the batch.
    """
    meter = Meter(label, total)
    with counting_early(meter) if in_batches else nullcontext():
        for item in items:
            yield item
            meter.advance()
    meter.finish()


class Meter:
    """The same as `track` for work that does not come as one iterable (a trainer's steps)."""

    def __init__(self, label: str, total: int, before: int = 0) -> None:
        self.label, self.total, self.done, self.before = label, total, before, before
        self._early, self._lock = 0, threading.Lock()
        self._note = ""
        self._start = time.monotonic()
        self._told = 0.0
        self._told_done = -1
        self._tell()

    def skip(self, steps: int) -> None:
        """Note `steps` as done before: they do not count in the pace."""
        self.before += steps
        self.advance(steps, note=self._note)

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Note `steps` more as done, and how it goes."""
        with self._lock:
            self.done += steps
            self._early = max(0, self._early - steps)
            self._note = note
            if time.monotonic() - self._told >= _EVERY_SECONDS:
                self._tell()

    def advance_early(self, steps: int) -> None:
        """Show `steps` more as done, which `advance` will count once their batch has ended."""
        with self._lock:
            self._early += steps
            if time.monotonic() - self._told >= _EVERY_SECONDS:
                self._tell()

    def finish(self) -> None:
        """Report the final count, unless the last step has."""
        if self._told_done != self.done:
            self._tell()

    def _tell(self) -> None:
        # a batch is finished when it is saved: until then its last step is not shown as done
        done = max(self.done, min(self.done + self._early, self.total - 1))
        self._told, self._told_done = time.monotonic(), done
        elapsed = self._told - self._start
        # totals may be estimates: never show more done than there is
        total = max(self.total, done)
        emit(Advance(self.label, done, total, elapsed, self.before, self._note))


@contextmanager
def counting_early(meter: Meter) -> Iterator[None]:
    """Let `advance_early` count for `meter` in this context, and in threads that run in it."""
    token = _early_meter.set(meter)
    try:
        yield
    finally:
        _early_meter.reset(token)


def advance_early(steps: int = 1) -> None:
    """Note steps within a batch: long answers of a large batch take minutes to end together."""
    if (meter := _early_meter.get()) is not None:
        meter.advance_early(steps)


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


def _print(event: Event) -> None:
    """Print what nobody else listens to: messages, and pieces of work that are done."""
    is_line = isinstance(event, Say | DevScore)
    if is_line or (isinstance(event, Advance) and event.done >= event.total):
        print(event, file=sys.stderr)


_sink: ContextVar[Sink] = ContextVar("progress_sink", default=_print)
_early_meter: ContextVar[Meter | None] = ContextVar("early_meter", default=None)
