"""Figures of a route: who answered, what it cost, and what the teacher alone would have cost.

`.cohobate/traffic/figures.json` has them for each student that was served, oldest first:

    [{"student": "9f8a...", "requests": 1200, "handed_on": 310, "unsure": 0, "kept": 355,
      "cost": 0.0214, "teacher_alone": 0.0828}]
"""

import json
import math
import threading
from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel

FIGURES = Path(".cohobate/traffic/figures.json")
WINDOW = 200
"""Prompts between two lines of the log."""
_SIGMAS = 3.0  # by which a window's share must be above the report's to be named


class RouteFigures(BaseModel):
    """Sums over the prompts of one student's traffic."""

    student: str
    """Hash of its checkpoint."""
    requests: int = 0
    """Prompts that were answered."""
    handed_on: int = 0
    """Those that the teacher answered."""
    unsure: int = 0
    """Those that the student answered because the teacher did not."""
    kept: int = 0
    cost: float = 0.0
    """US dollars that were paid for them."""
    teacher_alone: float = 0.0
    """US dollars of the same answers, had all been the teacher's."""

    def __str__(self) -> str:
        count = max(self.requests, 1)
        line = (
            f"{self.requests} requests, {self.handed_on / count:.0%} handed on, {self.kept} kept; "
            f"{_dollars(self.cost / count)} USD a request, "
            f"{_dollars(self.teacher_alone / count)} by the teacher alone"
        )
        return line + (f"; {self.unsure} without the teacher" if self.unsure else "")

    def without(self, earlier: "RouteFigures") -> "RouteFigures":
        """Return what came since `earlier`."""
        before = earlier.model_dump(exclude={"student"})
        return self.model_copy(update={n: getattr(self, n) - count for n, count in before.items()})


class FiguresFile:
    """The figures of a project's route, and the lines of the log.

    Args:
        root: the project's folder.
        student: hash of the checkpoint that is served.
        expected: share of the traffic that is handed on by the report's router; None: not known.
        say: prints a line.
    """

    def __init__(
        self, root: Path, student: str, expected: float | None, say: Callable[[str], None]
    ) -> None:
        self._path, self._expected, self._say = root / FIGURES, expected, say
        self._lock = threading.Lock()
        self.of_all = self._read()
        for one in self.of_all:
            self._say(f"student {one.student[:8]} so far: {one}")
        if student not in [one.student for one in self.of_all]:
            self.of_all.append(RouteFigures(student=student))
        self.now = next(one for one in self.of_all if one.student == student)
        self._last = self.now.model_copy()

    def add(self, **counts: float) -> None:
        """Add counts of one request; each `WINDOW` prompts a line is printed."""
        with self._lock:
            for name, count in counts.items():
                setattr(self.now, name, getattr(self.now, name) + count)
            window = self.now.without(self._last)
            if window.requests < WINDOW:
                return
            self._last = self.now.model_copy()
            self._write()
        self._say(f"the last {window}{self._drift(window)}")

    def close(self) -> None:
        """Write the file, and print the sums."""
        with self._lock:
            self._write()
        self._say(str(self.now))

    def _drift(self, window: RouteFigures) -> str:
        """Return a remark where more is handed on than the report lets expect."""
        if self._expected is None:
            return ""
        share = (window.handed_on + window.unsure) / window.requests
        spread = math.sqrt(self._expected * (1 - self._expected) / window.requests)
        if share <= self._expected + _SIGMAS * spread:
            return ""
        return f"; {self._expected:.0%} were expected by the report: the traffic has drifted"

    def _read(self) -> list[RouteFigures]:
        if not self._path.exists():
            return []
        return [RouteFigures.model_validate(one) for one in json.loads(self._path.read_text())]

    def _write(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        partial = self._path.with_suffix(".partial")
        values = [one.model_dump() for one in self.of_all]
        partial.write_text(json.dumps(values, indent=2) + "\n")
        partial.replace(self._path)


def _dollars(amount: float) -> str:
    return f"{amount:.3g}" if amount < 1e-4 and amount else f"{amount:.6f}".rstrip("0").rstrip(".")
