"""What happens between rounds: how the next one differs from the last, and when to stop.

`flows/iterate_rounds.py` reads this section of params.yaml; no stage does.
"""

from pydantic import Field

from cohobate.params import Section


class Stop(Section):
    """Rounds end when one of these is reached; what is not given never ends them."""

    retention: float | None = Field(None, gt=0)
    """The student keeps this share of the teacher's score, by the lower end of its interval."""
    without_gain: int | None = Field(None, ge=1)
    """So many rounds in a row promoted no student."""
    hours: float | None = Field(None, gt=0)
    """What the stages of all rounds took together; of those side by side each counts."""
    money: float | None = Field(None, gt=0)
    """US dollars that the teachers' answers of all rounds cost, by the ledgers. It is looked at
    between rounds; within one `cap` of the teacher's backend holds."""


class Rounds(Section):
    """The section `rounds` of params.yaml."""

    replay: int = Field(2000, ge=0)
    """Unlabelled prompts that come again: those on which the champion is furthest from the
    teacher. The others are drawn anew."""
    stop: Stop = Stop()
