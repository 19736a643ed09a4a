"""Perturbations of a prompt that should not change its answer.

To add one: a class with `change`, and its name in `Perturbation` at the bottom.
"""

import random
import re
from typing import Annotated, Literal

from pydantic import Field

from cohobate.params import Section

TEXT = "{text}"
"""Placeholder of the row's own text in a template."""


class Typos(Section):
    """Typing errors inside words: two letters swapped, one left out, one doubled."""

    type: Literal["typos"]
    rate: float = Field(0.1, gt=0, le=1)
    """Share of the words of four letters and more that are misspelt."""

    def change(self, text: str, template: str, rng: random.Random) -> str:
        """Return the prompt with typos in its text, at least one where a word is long enough."""
        # the group keeps words and what lies between them: joined, they are the text
        words = re.split(r"(\w+)", text)
        candidates = [n for n, word in enumerate(words) if len(word) >= 4 and word.isalpha()]
        misspelt = [n for n in candidates if rng.random() < self.rate]
        # a short text may draw no word: then its first one
        for n in misspelt or candidates[:1]:
            words[n] = self._misspell(words[n], rng)
        return template.replace(TEXT, "".join(words))

    def _misspell(self, word: str, rng: random.Random) -> str:
        at = rng.randrange(1, len(word) - 2)  # first and last letters stay
        first, second = word[at], word[at + 1]
        variants = (second + first, second, first + first + second)
        return word[:at] + rng.choice(variants) + word[at + 2 :]


class Case(Section):
    """The text in upper or lower case."""

    type: Literal["case"]
    to: Literal["upper", "lower"] = "upper"

    def change(self, text: str, template: str, rng: random.Random) -> str:
        """Return the prompt with its text in the other case."""
        return template.replace(TEXT, text.upper() if self.to == "upper" else text.lower())


class Distractor(Section):
    """An unrelated sentence before the text."""

    type: Literal["distractor"]
    sentences: tuple[str, ...] = Field(
        ("The weather was fine that day.", "This page was last printed in spring."), min_length=1
    )
    """One of them is drawn for each row."""
    repeat: int = Field(1, ge=1)
    """Number of sentences before the text: many make a long input."""

    def change(self, text: str, template: str, rng: random.Random) -> str:
        """Return the prompt with the sentences before its text."""
        drawn = " ".join(rng.choice(self.sentences) for _ in range(self.repeat))
        return template.replace(TEXT, f"{drawn} {text}")


class Paraphrase(Section):
    """Another prompt template than the one of the training rows."""

    type: Literal["paraphrase"]
    templates: tuple[Annotated[str, Field(pattern=r"\{text\}")], ...] = Field(min_length=1)
    """Templates with `{text}` for the row's text; one is drawn for each row."""

    def change(self, text: str, template: str, rng: random.Random) -> str:
        """Return the text in another template."""
        return rng.choice(self.templates).replace(TEXT, text)


Perturbation = Annotated[Typos | Case | Distractor | Paraphrase, Field(discriminator="type")]
