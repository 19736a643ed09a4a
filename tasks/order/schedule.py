"""In which stage of training a row is met.

The trainer goes through the stages from 0 upwards; within one it shuffles by the run's seed. A row
that is met again in a later stage occurs again with that stage's number.

To add one: a class with `stages_of`, and its name in `Schedule` at the bottom.
"""

from array import array
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from tasks.params import Section


class Shuffled(Section):
    """All rows in one stage: the control that a curriculum has to beat."""

    type: Literal["shuffled"]

    def stages_of(self, difficulties: Sequence[float]) -> list[Sequence[int]]:
        """Return the rows of the only stage, as they come."""
        return [range(len(difficulties))]


class EasyToHard(Section):
    """Stages of equal size by difficulty (Bengio et al. 2009)."""

    type: Literal["easy_to_hard"]
    stages: int = Field(3, ge=1, le=100)
    mode: Literal["cumulative", "disjoint"] = "cumulative"
    """Whether a later stage holds the rows of the earlier ones too."""
    reverse: bool = False
    """From hard to easy (anti-curriculum)."""

    def stages_of(self, difficulties: Sequence[float]) -> list[Sequence[int]]:
        """Return the rows of each stage, sorted by difficulty; equals stay as they come."""
        import numpy as np

        scores = np.asarray(difficulties)
        order = np.argsort(-scores if self.reverse else scores, kind="stable")
        rows = array("Q", order.astype(np.uint64).tobytes())
        ends = [len(rows) * stage // self.stages for stage in range(self.stages + 1)]
        starts = [0] * self.stages if self.mode == "cumulative" else ends[:-1]
        return [rows[start:end] for start, end in zip(starts, ends[1:], strict=True)]


Schedule = Annotated[Shuffled | EasyToHard, Field(discriminator="type")]
