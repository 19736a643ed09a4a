"""What a round must show to pass."""

from pydantic import Field

from cohobate.params import Section


class Gate(Section):
    """Beat the baseline by more than chance, and keep enough of the teacher."""

    min_gain: float = 0.0
    """The lower end of the gain over the baseline must lie above this (share of 1)."""
    min_retention: float = Field(0.85, ge=0)
    """The student's score must be at least this share of the teacher's."""

    def judge(self, gain_low: float, retention: float | None) -> dict[str, bool | float]:
        """Say whether the gate is passed, which half of it is, and what was asked.

        Args:
            gain_low: Lower end of the interval of the gain over the baseline.
            retention: The student's score over the teacher's; None where that is 0.
        """
        gained = gain_low > self.min_gain
        retained = retention is not None and retention >= self.min_retention
        passed = gained and retained
        return {"passed": passed, "gain": gained, "retention": retained, **self.model_dump()}
