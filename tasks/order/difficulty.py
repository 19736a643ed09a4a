"""How hard a row is: a number for each, the higher the harder.

To add one: a class with `of`, and its name in `Difficulty` at the bottom.
"""

import hashlib
from typing import Annotated, Literal

from pydantic import Field

from tasks.errors import UserError
from tasks.params import Section
from tasks.records import Response, prompt_text


class Length(Section):
    """Characters of the prompt, of the answer, or of both."""

    type: Literal["length"]
    text: Literal["prompt", "answer", "both"] = "both"

    def of(self, row: Response, position: int) -> float:
        """Count the characters."""
        prompt, answer = len(prompt_text(row.prompt)), len(row.answer or "")
        return float({"prompt": prompt, "answer": answer, "both": prompt + answer}[self.text])


class TeacherLoss(Section):
    """The teacher's own loss on its answer, in nats a token: what it was unsure of is hard."""

    type: Literal["teacher_loss"]

    def of(self, row: Response, position: int) -> float:
        """Return the loss.

        Raises:
            UserError: the teacher gave no log-probability.
        """
        if row.logprob is None:
            raise UserError(
                f"the teacher {row.teacher} gave no log-probability for its answer",
                where=f"data/filter/kept.jsonl, row {row.id}",
                mend="choose another order.difficulty, such as {type: length}",
            )
        return max(0.0, -row.logprob)


class Given(Section):
    """The place in the data, where that is sorted from easy to hard already."""

    type: Literal["given"]

    def of(self, row: Response, position: int) -> float:
        """Return the place."""
        return float(position)


class Random(Section):
    """Chance: what a curriculum is to be compared with."""

    type: Literal["random"]
    seed: int = 0

    def of(self, row: Response, position: int) -> float:
        """Return a number from 0 to 1 that depends on the seed and the row alone."""
        drawn = hashlib.blake2b(f"{self.seed} {row.id} {row.sample}".encode(), digest_size=8)
        return round(int.from_bytes(drawn.digest(), "big") / 2**64, 9)


Difficulty = Annotated[Length | TeacherLoss | Given | Random, Field(discriminator="type")]
