"""How good one answer is, from 0 to 1. A model's score is the mean over the test rows.

To add a metric: a class with `score`, and its name in `Metric` at the bottom.
"""

from collections import Counter
from typing import Annotated, Literal

from pydantic import Field

from tasks.params import Section
from tasks.verifiers import Verifier


class Verified(Section):
    """1 where the task's verifier calls the answer right, else 0: accuracy."""

    type: Literal["verifier"] = "verifier"

    def score(self, answer: str, reference: str, verifier: Verifier) -> float:
        """Score one answer."""
        return float(verifier.correct(answer, reference))


class ExactMatch(Section):
    """1 where the answer is the reference to the letter, white space at the ends aside."""

    type: Literal["exact_match"]

    def score(self, answer: str, reference: str, verifier: Verifier) -> float:
        """Score one answer."""
        return float(answer.strip() == reference.strip())


class TokenF1(Section):
    """Harmonic mean of precision and recall over lower-cased words (Rajpurkar et al. 2016)."""

    type: Literal["token_f1"]

    def score(self, answer: str, reference: str, verifier: Verifier) -> float:
        """Score one answer; two empty texts agree."""
        given, wanted = Counter(answer.lower().split()), Counter(reference.lower().split())
        if not given or not wanted:
            return float(given == wanted)
        shared = (given & wanted).total()
        return 2 * shared / (given.total() + wanted.total())


Metric = Annotated[Verified | ExactMatch | TokenF1, Field(discriminator="type")]
