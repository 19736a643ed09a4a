"""Ways to say a prompt otherwise, which should not change its answer.

To add one: a class with `change`, and its name in `Perturbation` at the bottom.
"""

import random
import re
from typing import Annotated, Literal

from pydantic import Field

from cohobate.params import Section

TEXT = "{text}"
"""Where the row's own text stands in a template."""


class Typos(Section):
    """Slips of the keyboard inside words: two letters swapped, one left out, one twice."""

    type: Literal["typos"]
    rate: float = Field(0.1, gt=0, le=1)
    """Share of the words of four letters and more that are misspelt."""

    def change(self, text: str, template: str, chance: random.Random) -> str:
        """Return the prompt with typos in its text, at least one where there is a word for it."""
        words = re.split(r"(\w+)", text)
        places = [n for n, word in enumerate(words) if len(word) >= 4 and word.isalpha()]
        slipped = [n for n in places if chance.random() < self.rate]
        for n in slipped or places[:1]:
            words[n] = self._slip(words[n], chance)
        return template.replace(TEXT, "".join(words))

    def _slip(self, word: str, chance: random.Random) -> str:
        at = chance.randrange(1, len(word) - 2)  # first and last letters stay
        one, other = word[at], word[at + 1]
        slips = (other + one, other, one + one + other)
        return word[:at] + chance.choice(slips) + word[at + 2 :]


class Case(Section):
    """The text in capitals, or without any."""

    type: Literal["case"]
    to: Literal["upper", "lower"] = "upper"
    """Which."""

    def change(self, text: str, template: str, chance: random.Random) -> str:
        """Return the prompt with its text in the other case."""
        return template.replace(TEXT, text.upper() if self.to == "upper" else text.lower())


class Distractor(Section):
    """A sentence before the text that has nothing to do with it."""

    type: Literal["distractor"]
    sentences: tuple[str, ...] = Field(
        ("The weather was fine that day.", "This page was last printed in spring."), min_length=1
    )
    """One of them is drawn for each row."""
    repeat: int = Field(1, ge=1)
    """How many stand before the text: with many, a longer input."""

    def change(self, text: str, template: str, chance: random.Random) -> str:
        """Return the prompt with the sentences before its text."""
        drawn = " ".join(chance.choice(self.sentences) for _ in range(self.repeat))
        return template.replace(TEXT, f"{drawn} {text}")


class Paraphrase(Section):
    """Other words around the text than those that the models were taught with."""

    type: Literal["paraphrase"]
    templates: tuple[Annotated[str, Field(pattern=r"\{text\}")], ...] = Field(min_length=1)
    """With `{text}` where the row's text goes; one is drawn for each row."""

    def change(self, text: str, template: str, chance: random.Random) -> str:
        """Return the text in another frame."""
        return chance.choice(self.templates).replace(TEXT, text)


Perturbation = Annotated[Typos | Case | Distractor | Paraphrase, Field(discriminator="type")]
