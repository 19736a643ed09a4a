"""How hard a row is: a number for each, the higher the harder.

To add one: a class with `of` (a row by itself) or `over` (what must know the other rows, or asks a
model), and its name in `Difficulty` at the bottom.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from cohobate.data.records import GENERATE, Response, prompt_text
from cohobate.data.row_files import RowView
from cohobate.errors import UserError
from cohobate.generation.likelihood import Likelihood
from cohobate.models import hub
from cohobate.models.number_formats import Precision
from cohobate.params import Section
from cohobate.scoring.verifiers import Task
from cohobate.scoring.votes import votes_of


@dataclass(frozen=True)
class DifficultyContext:
    """What a difficulty can know beside the rows."""

    task: Task
    scorer: str
    """The model that is asked: what `curriculum.scorer` names."""

    def answer(self, row: Response) -> str:
        """Return what a row answers, in the form in which answers are compared."""
        text = row.answer or ""
        return self.task.verifier.canonical(text) or text

    def likelihood(self, precision: Precision, threads: int) -> Likelihood:
        """Load the model that is asked."""
        return Likelihood.of(Path(hub.resolve_path(self.scorer)), precision, threads)


class RowDifficulty(Section):
    """Base of the difficulties."""

    type: str

    def difficulty(self, row: Response) -> float:
        """Judge a row by itself."""
        raise NotImplementedError

    def difficulties(self, rows: Iterable[Response], context: DifficultyContext) -> Iterator[float]:
        """Yield the difficulty of each row."""
        return (self.difficulty(row) for row in rows)


class LengthDifficulty(RowDifficulty):
    """Characters of the prompt, of the answer, or of both."""

    type: Literal["length"]
    text: Literal["prompt", "answer", "both"] = "both"

    def difficulty(self, row: Response) -> float:
        """Count the characters."""
        prompt, answer = len(prompt_text(row.prompt)), len(row.answer or "")
        return float({"prompt": prompt, "answer": answer, "both": prompt + answer}[self.text])


class RationaleLengthDifficulty(RowDifficulty):
    """Words of the reasoning before the result: many steps are hard."""

    type: Literal["rationale_length"]
    before: str = Field("\n", min_length=1)
    """Mark whose last occurrence ends the reasoning, such as `####` or `</think>`."""

    def difficulty(self, row: Response) -> float:
        """Count the words; an answer without the mark has no reasoning."""
        return float(len((row.answer or "").rstrip().rpartition(self.before)[0].split()))


class TeacherLossDifficulty(RowDifficulty):
    """The teacher's own loss on its answer, in nats a token: what it was unsure of is hard."""

    type: Literal["teacher_loss"]

    def difficulty(self, row: Response) -> float:
        """Return the loss.

        Raises:
            UserError: the teacher gave no log-probability.
        """
        if row.logprob is None:
            raise UserError(
                f"the teacher {row.teacher} gave no log-probability for its answer",
                where=f"data/filter/kept.jsonl, row {row.id}",
                fix="choose another curriculum.difficulty, such as {type: length}",
            )
        return max(0.0, -row.logprob)


class ScorerDifficulty(RowDifficulty):
    """Base of the difficulties that ask the model which `curriculum.scorer` names."""

    precision: Precision = "auto"
    threads: int = Field(2, ge=1)
    """Batches side by side on a CPU; the figures do not depend on it."""


class StudentLossDifficulty(ScorerDifficulty):
    """The student's loss on the answer, in nats a token: what it does not know yet is hard."""

    type: Literal["student_loss"]

    def difficulties(self, rows: Iterable[Response], context: DifficultyContext) -> Iterator[float]:
        """Ask the student of all rows."""
        losses = context.likelihood(self.precision, self.threads).answer_losses(rows)
        return (round(loss, 4) for loss in losses)


class LossGapDifficulty(ScorerDifficulty):
    """The student's loss less the teacher's: what the teacher could teach comes last."""

    type: Literal["loss_gap"]

    def difficulties(self, rows: Iterable[Response], context: DifficultyContext) -> Iterator[float]:
        """Ask the student of all rows; what the teacher thought stands in them."""
        losses = context.likelihood(self.precision, self.threads).answer_losses(rows)
        teacher = TeacherLossDifficulty(type="teacher_loss")
        return (round(s - teacher.difficulty(row), 4) for s, row in zip(losses, rows, strict=True))


class IfdDifficulty(ScorerDifficulty):
    """How little the prompt helps to its answer (IFD, Li et al. 2024)."""

    type: Literal["ifd"]

    def difficulties(self, rows: Iterable[Response], context: DifficultyContext) -> Iterator[float]:
        """Ask the scorer of all rows, with their prompts and without."""
        scorer = context.likelihood(self.precision, self.threads)
        return (round(ifd, 4) for ifd in scorer.instruction_following_difficulty(rows))


class PassRateDifficulty(RowDifficulty):
    """How many of the teacher's samples give another answer than the row's: 0 is agreed by all.

    All samples count, those that the filters dropped too. A prompt with one sample has rate 0.
    """

    type: Literal["pass_rate"]

    def difficulties(self, rows: Iterable[Response], context: DifficultyContext) -> Iterator[float]:
        """Look the share of each prompt's commonest answer up."""
        drawn = RowView.of(sorted(GENERATE.glob("*/responses.jsonl")), Response)
        votes = votes_of(drawn, context.answer)
        return (round(1 - votes[row.id][1], 4) if row.id in votes else 0.0 for row in rows)


class GivenOrderDifficulty(RowDifficulty):
    """The place in the data, where that is sorted from easy to hard already."""

    type: Literal["given"]

    def difficulties(self, rows: Iterable[Response], context: DifficultyContext) -> Iterator[float]:
        """Count the rows."""
        return (float(place) for place, _ in enumerate(rows))


class GivenLabelDifficulty(RowDifficulty):
    """A label that says how hard a row is: its group, from the easiest to the hardest."""

    type: Literal["given_label"]
    labels: tuple[str, ...] = Field(min_length=1)
    """The groups, easy ones first."""

    def difficulty(self, row: Response) -> float:
        """Return the place of the row's group among the labels.

        Raises:
            UserError: the row's group is none of them.
        """
        if row.group not in self.labels:
            raise UserError(
                f"the group {row.group!r} is none of {', '.join(self.labels)}",
                where=f"data/filter/kept.jsonl, row {row.id}",
                fix="name every group in curriculum.difficulty.labels, and its column in "
                "collect.source.group",
            )
        return float(self.labels.index(row.group))


class RandomDifficulty(RowDifficulty):
    """Chance: what a curriculum is to be compared with."""

    type: Literal["random"]
    seed: int = 0

    def difficulty(self, row: Response) -> float:
        """Return a number from 0 to 1 that depends on the seed and the row alone."""
        drawn = hashlib.blake2b(f"{self.seed} {row.id} {row.sample}".encode(), digest_size=8)
        return round(int.from_bytes(drawn.digest(), "big") / 2**64, 9)


Difficulty = Annotated[
    LengthDifficulty
    | RationaleLengthDifficulty
    | TeacherLossDifficulty
    | StudentLossDifficulty
    | LossGapDifficulty
    | IfdDifficulty
    | PassRateDifficulty
    | GivenOrderDifficulty
    | GivenLabelDifficulty
    | RandomDifficulty,
    Field(discriminator="type"),
]
