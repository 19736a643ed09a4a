"""Axes and lines of charts, as positions in percent of a side; the templates draw them."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any


@dataclass(frozen=True)
class Scale:
    """An axis from `low` to `high`."""

    low: float
    high: float
    step: float

    @classmethod
    def around(cls, values: Iterable[float], ticks: int = 5, tight: bool = False) -> "Scale":
        """Return an axis with about `wanted` round ticks that contains all `values`.

        It begins and ends at a tick, or with `tight` at the extremes.
        """
        finite = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
        low, high = min(finite), max(finite)
        if high == low:
            low, high = low - 0.5 * (abs(low) or 1), high + 0.5 * (abs(high) or 1)
        step = _round_step((high - low) / ticks)
        if tight:
            return cls(low, high, step)
        return cls(math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step, step)

    def at(self, value: float) -> float:
        """Return the position of `value`, in percent from the low end."""
        inside = min(max(value, self.low), self.high)
        return round(100 * (inside - self.low) / (self.high - self.low), 3)

    @property
    def ticks(self) -> list[float]:
        """The round values along the axis."""
        first = math.ceil(self.low / self.step - 1e-9)
        last = math.floor(self.high / self.step + 1e-9)
        return [round(i * self.step, 10) for i in range(first, last + 1)]


def _round_step(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(rough))
    return next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)


def thinned(curve: Sequence[dict[str, Any]], points: int = 80) -> list[tuple[float, float]]:
    """Return a loss curve as at most about `wanted` points: means over runs of steps."""
    width = max(1, math.ceil(len(curve) / points))
    runs = [curve[start : start + width] for start in range(0, len(curve), width)]
    return [
        (sum(s["step"] for s in run) / len(run), sum(s["loss"] for s in run) / len(run))
        for run in runs
    ]


def polyline(points: Iterable[tuple[float, float]], x: Scale, y: Scale) -> str:
    """Return the points of an SVG polyline in a box of 100 by 100, the y axis upwards."""
    return " ".join(f"{x.at(px):.2f},{100 - y.at(py):.2f}" for px, py in points)


def boundaries(curve: Sequence[dict[str, Any]]) -> list[float]:
    """Return the steps at which a later stage of the curriculum begins."""
    return [after["step"] for before, after in pairwise(curve) if after["stage"] != before["stage"]]
