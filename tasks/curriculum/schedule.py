"""In which stage of training a row is met.

The trainer goes through the stages from 0 upwards; within one it shuffles by the run's seed. A row
that is met again in a later stage occurs again with that stage's number.

To add one: a class with `stages_of`, and its name in `Schedule` at the bottom.
"""

from array import array
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from cohobate.params import Section


class Shuffled(Section):
    """All rows in one stage: the control that a curriculum has to beat."""

    type: Literal["shuffled"]

    def stages_of(self, difficulties: Sequence[float]) -> list[Sequence[int]]:
        """Return the rows of the only stage, as they come."""
        return [range(len(difficulties))]


class Staged(Section):
    """Levels of difficulty, and how fast they are gone through."""

    stages: int = Field(3, ge=1, le=100)
    pacing: Literal["linear", "root"] = "linear"
    """How the share of rows that were met grows with the stages: evenly, or by its square root,
    which leaves more time for what is new (Platanios et al. 2019)."""
    start: float = Field(0.0, ge=0, lt=1)
    """Share of the rows that the student is ready for before any pacing."""
    reverse: bool = False
    """From hard to easy (anti-curriculum)."""

    def _levels(self, difficulties: Sequence[float]) -> tuple["array[int]", list[int]]:
        """Return all rows by difficulty (equals stay as they come), and where each level ends."""
        import numpy as np

        scores = np.asarray(difficulties)
        order = np.argsort(-scores if self.reverse else scores, kind="stable")
        rows = array("Q", order.astype(np.uint64).tobytes())
        return rows, [self._met(stage + 1, len(rows)) for stage in range(self.stages)]

    def _met(self, stages: int, rows: int) -> int:
        """Return how many rows are met in so many stages: c(t) = (t (1 - c0^p) + c0^p)^(1/p)."""
        power = 2 if self.pacing == "root" else 1
        if self.start == 0 and power == 1:
            return rows * stages // self.stages  # to the row, whatever the rounding
        begun = float(self.start**power)
        share: float = (stages / self.stages * (1 - begun) + begun) ** (1 / power)
        return round(rows * share)


class EasyToHard(Staged):
    """Stage after stage a harder level (Bengio et al. 2009)."""

    type: Literal["easy_to_hard"]
    mode: Literal["cumulative", "disjoint"] = "cumulative"
    """Whether a later stage holds the rows of the earlier ones too."""

    def stages_of(self, difficulties: Sequence[float]) -> list[Sequence[int]]:
        """Return the rows of each stage, sorted by difficulty."""
        rows, ends = self._levels(difficulties)
        starts = [0] * self.stages if self.mode == "cumulative" else [0, *ends[:-1]]
        return [rows[start:end] for start, end in zip(starts, ends, strict=True)]


class Mixed(Staged):
    """Each stage mostly of its own level, the rest from all the others: nothing is forgotten."""

    type: Literal["mixed"]
    own: float = Field(0.7, gt=0, le=1)
    """Share of a level's rows that are met in its own stage; the rest are dealt to the others."""

    def stages_of(self, difficulties: Sequence[float]) -> list[Sequence[int]]:
        """Return the rows of each stage, every row in one, sorted by difficulty."""
        rows, ends = self._levels(difficulties)
        stages: list[array[int]] = [array("Q") for _ in ends]
        for level, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
            others = [stage for stage in range(self.stages) if stage != level] or [level]
            away = dealt = 0
            for place in range(start, end):
                due = int((1 - self.own) * (place - start + 1) + 1e-9)  # evenly over the level
                stage = others[dealt % len(others)] if due > away else level
                dealt += due > away
                away = due
                stages[stage].append(rows[place])
        return list(stages)


Schedule = Annotated[Shuffled | EasyToHard | Mixed, Field(discriminator="type")]
