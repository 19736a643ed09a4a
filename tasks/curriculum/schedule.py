"""Schedules: the curriculum stages of each row.

The trainer goes through the stages from 0 upwards, and shuffles within a stage by the run's seed. A
row in several stages occurs once for each of them.

To add one: a class with `stages_of`, and its name in `Schedule` at the bottom.
"""

from array import array
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from cohobate.params import Section


class Shuffled(Section):
    """All rows in one stage: the control for a curriculum."""

    type: Literal["shuffled"]

    def stages_of(self, difficulties: Sequence[float]) -> list[Sequence[int]]:
        """Return all rows as one stage."""
        return [range(len(difficulties))]


class Staged(Section):
    """Base class of the schedules with levels of difficulty."""

    stages: int = Field(3, ge=1, le=100)
    pacing: Literal["linear", "root"] = "linear"
    """Growth of the share of rows seen with the stages: linear, or as a square root, which leaves
    more time for new rows (Platanios et al. 2019)."""
    start: float = Field(0.0, ge=0, lt=1)
    """Share of the rows that are available from the start."""
    reverse: bool = False
    """From hard to easy (anti-curriculum)."""

    def _levels(self, difficulties: Sequence[float]) -> tuple["array[int]", list[int]]:
        """Return the rows sorted by difficulty (stable), and the end of each level."""
        import numpy as np

        scores = np.asarray(difficulties)
        order = np.argsort(-scores if self.reverse else scores, kind="stable")
        rows = array("Q", order.astype(np.uint64).tobytes())
        return rows, [self._seen(stage + 1, len(rows)) for stage in range(self.stages)]

    def _seen(self, stages: int, rows: int) -> int:
        """Return the number of rows seen after `stages`: c(t) = (t (1 - c0^p) + c0^p)^(1/p)."""
        power = 2 if self.pacing == "root" else 1
        if self.start == 0 and power == 1:
            return rows * stages // self.stages  # exact, without rounding
        initial = float(self.start**power)
        share: float = (stages / self.stages * (1 - initial) + initial) ** (1 / power)
        return round(rows * share)


class EasyToHard(Staged):
    """A harder level in each stage (Bengio et al. 2009)."""

    type: Literal["easy_to_hard"]
    mode: Literal["cumulative", "disjoint"] = "cumulative"
    """Whether a later stage includes the rows of the earlier ones."""

    def stages_of(self, difficulties: Sequence[float]) -> list[Sequence[int]]:
        """Return the rows of each stage, sorted by difficulty."""
        rows, ends = self._levels(difficulties)
        starts = [0] * self.stages if self.mode == "cumulative" else [0, *ends[:-1]]
        return [rows[start:end] for start, end in zip(starts, ends, strict=True)]


class Mixed(Staged):
    """Each stage mostly of its own level, mixed with rows of all others against forgetting."""

    type: Literal["mixed"]
    own: float = Field(0.7, gt=0, le=1)
    """Share of a level's rows in its own stage; the rest is distributed over the others."""

    def stages_of(self, difficulties: Sequence[float]) -> list[Sequence[int]]:
        """Return the rows of each stage, every row in one, sorted by difficulty."""
        rows, ends = self._levels(difficulties)
        stages: list[array[int]] = [array("Q") for _ in ends]
        for level, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
            others = [stage for stage in range(self.stages) if stage != level] or [level]
            away = dealt = 0
            for position in range(start, end):
                due = int((1 - self.own) * (position - start + 1) + 1e-9)  # evenly over the level
                stage = others[dealt % len(others)] if due > away else level
                dealt += due > away
                away = due
                stages[stage].append(rows[position])
        return list(stages)


Schedule = Annotated[Shuffled | EasyToHard | Mixed, Field(discriminator="type")]
