"""The gate: the conditions under which a round passes."""

from pydantic import Field

from cohobate.params import Section


class Gate(Section):
    """A significant gain over the baseline, and enough of the teacher's score."""

    min_gain: float = 0.0
    """The lower end of the gain over the baseline must lie above this (share of 1)."""
    min_retention: float = Field(0.85, ge=0)
    """The student's score must be at least this share of the teacher's."""

    def judge(self, gain_low: float, retention: float | None) -> dict[str, bool | float]:
        """Return whether the gate and each of its conditions is passed, with the conditions.

        Args:
            gain_low: lower end of the interval of the gain over the baseline.
            retention: the student's score over the teacher's; None where that is 0.
        """
        gained = gain_low > self.min_gain
        retained = retention is not None and retention >= self.min_retention
        passed = gained and retained
        return {"passed": passed, "gain": gained, "retention": retained, **self.model_dump()}
