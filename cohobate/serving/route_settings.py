"""The section `route` of params.yaml: which requests the student answers, and which its teacher.

`cohobate serve --route` reads this section; no stage does.
"""

from typing import Literal

from pydantic import Field

from cohobate.params import Section
from cohobate.serving.kept_prompts import TrafficKeeping


class ServeRoute(Section):
    """The section `route` of params.yaml."""

    threshold: float | None = Field(None, ge=0)
    """The student answers where its confidence (the mean probability a token) is at least this;
    above 1: never. None: what the last evaluation chose for `evaluate.router.floor`."""
    cap: float | None = Field(None, ge=0)
    """Most US dollars that the requests which are handed on may cost, over all runs of `cohobate
    serve --route` together. Price, limits and the form of requests are those of the teacher's
    backend; its `cap` is for rounds."""
    without_teacher: Literal["refuse", "student"] = "refuse"
    """What becomes of a request that the teacher does not answer, or for which the cap leaves no
    money. `refuse`: status 503. `student`: the student's answer, whose `model` is
    `<name>-unsure`."""
    keep: TrafficKeeping | None = None
    """Keep prompts in data/traffic, such as `{share: 0.05}`. None: nothing is kept."""
