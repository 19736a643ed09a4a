"""The section `rounds` of params.yaml: prompts to replay, and stop rules.

`flows/iterate_rounds.py` reads this section of params.yaml; no stage does.
"""

from pydantic import Field

from cohobate.params import Section


class Stop(Section):
    """Stop rules: rounds end when one of them holds; a rule that is not given never does."""

    retention: float | None = Field(None, gt=0)
    """The student keeps this share of the teacher's score (lower end of its interval)."""
    without_gain: int | None = Field(None, ge=1)
    """This number of rounds in a row promoted no student."""
    hours: float | None = Field(None, gt=0)
    """Sum of the hours of all stages of all rounds; parallel stages count each."""
    money: float | None = Field(None, gt=0)
    """US dollars that teachers' answers cost in all rounds, by the ledgers. It is checked between
    rounds; within a round, `cap` of the teacher's backend applies."""


class Rounds(Section):
    """The section `rounds` of params.yaml."""

    replay: int = Field(2000, ge=0)
    """Unlabelled prompts to use again: those on which the student is furthest from the teacher. The
    other prompts are new."""
    champion_teaches: str | None = None
    """Key of a teacher that the champion takes the place of in the next round, as it is: a model
    that learns its own answers. The student's layers must be another teacher's: what the baseline
    starts from stays the same in all rounds."""
    stop: Stop = Stop()
