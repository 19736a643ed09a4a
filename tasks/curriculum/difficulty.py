"""Difficulties: a number for each row, the higher the harder.

To add one: a class with `difficulty` (of a row by itself) or `difficulties` (where other rows or a
model are needed), and its name in `Difficulty` at the bottom.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from cohobate.data.messages import prompt_text
from cohobate.data.records import GENERATE, Response
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
    """What a difficulty can use beside the rows."""

    task: Task
    scorer: str
    """Path of the model that `curriculum.scorer` names."""

    def answer(self, row: Response) -> str:
        """Return a row's answer in the form in which answers are compared."""
        text = row.full_answer
        return self.task.verifier_of(row.task).canonical(text) or text

    def likelihood(self, precision: Precision, threads: int) -> Likelihood:
        """Load that model."""
        return Likelihood.of(Path(hub.resolve_path(self.scorer)), precision, threads)


class RowDifficulty(Section):
    """Base class of the difficulties."""

    type: str

    def difficulty(self, row: Response) -> float:
        """Return the difficulty of one row by itself."""
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
    """Words of the reasoning before the result: many steps count as hard.

    That is what stands before a mark in the answer, and the reasoning that a row has apart.
    """

    type: Literal["rationale_length"]
    before: str = Field("\n", min_length=1)
    """Mark whose last occurrence ends the reasoning, such as `####` or `</think>`."""

    def difficulty(self, row: Response) -> float:
        """Count the words."""
        inside = (row.answer or "").rstrip().rpartition(self.before)[0]
        return float(len(f"{row.reasoning or ''} {inside}".split()))


class TeacherLossDifficulty(RowDifficulty):
    """The teacher's loss on its own answer, in nats per token."""

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
    """Base class of the difficulties by the model that `curriculum.scorer` names."""

    precision: Precision = "auto"
    threads: int = Field(2, ge=1)
    """Batches in parallel on a CPU; the figures do not depend on it."""


class StudentLossDifficulty(ScorerDifficulty):
    """The student's loss on the answer, in nats per token."""

    type: Literal["student_loss"]

    def difficulties(self, rows: Iterable[Response], context: DifficultyContext) -> Iterator[float]:
        """Compute the losses of all rows."""
        losses = context.likelihood(self.precision, self.threads).answer_losses(rows)
        return (round(loss, 4) for loss in losses)


class LossGapDifficulty(ScorerDifficulty):
    """The student's loss less the teacher's: how much the student can learn from the row."""

    type: Literal["loss_gap"]

    def difficulties(self, rows: Iterable[Response], context: DifficultyContext) -> Iterator[float]:
        """Compute the student's losses; the rows hold the teacher's."""
        losses = context.likelihood(self.precision, self.threads).answer_losses(rows)
        teacher = TeacherLossDifficulty(type="teacher_loss")
        return (round(s - teacher.difficulty(row), 4) for s, row in zip(losses, rows, strict=True))


class IfdDifficulty(ScorerDifficulty):
    """Instruction-following difficulty: how little the prompt helps (IFD, Li et al. 2024)."""

    type: Literal["ifd"]

    def difficulties(self, rows: Iterable[Response], context: DifficultyContext) -> Iterator[float]:
        """Compute the losses of all rows, with their prompts and without."""
        scorer = context.likelihood(self.precision, self.threads)
        return (round(ifd, 4) for ifd in scorer.instruction_following_difficulty(rows))


class PassRateDifficulty(RowDifficulty):
    """One less the share of the commonest answer among the teacher's samples to the prompt.

    All samples count, also those that the filters dropped. A prompt with one sample has 0.
    """

    type: Literal["pass_rate"]

    def difficulties(self, rows: Iterable[Response], context: DifficultyContext) -> Iterator[float]:
        """Count the samples of each prompt."""
        samples = RowView.of(sorted(GENERATE.glob("*/responses.jsonl")), Response)
        votes = votes_of(samples, context.answer)
        return (round(1 - votes[row.id][1], 4) if row.id in votes else 0.0 for row in rows)


class GivenOrderDifficulty(RowDifficulty):
    """The position in the data, where it is sorted from easy to hard already."""

    type: Literal["given"]

    def difficulties(self, rows: Iterable[Response], context: DifficultyContext) -> Iterator[float]:
        """Yield the positions."""
        return (float(position) for position, _ in enumerate(rows))


class GivenLabelDifficulty(RowDifficulty):
    """The position of the row's group in a list from easy to hard."""

    type: Literal["given_label"]
    labels: tuple[str, ...] = Field(min_length=1)
    """The groups, the easiest first."""

    def difficulty(self, row: Response) -> float:
        """Return the position of the row's group among the labels.

        Raises:
            UserError: the row's group is not among them.
        """
        if row.group not in self.labels:
            raise UserError(
                f"the group {row.group!r} is not among {', '.join(self.labels)}",
                where=f"data/filter/kept.jsonl, row {row.id}",
                fix="name every group in curriculum.difficulty.labels, and its column in "
                "collect.source.group",
            )
        return float(self.labels.index(row.group))


class TeacherOrderDifficulty(RowDifficulty):
    """The position of the row's teacher in a list: the weaker teacher's rows come first.

    Progressive learning of Mukherjee et al. 2023, "Orca: Progressive Learning from Complex
    Explanation Traces of GPT-4", section 3.2.
    """

    type: Literal["teacher_order"]
    teachers: tuple[str, ...] = Field(min_length=1)
    """The teachers' keys, the first one's rows first."""

    def difficulty(self, row: Response) -> float:
        """Return the position of the row's teacher.

        Raises:
            UserError: it is not among them.
        """
        if row.teacher not in self.teachers:
            raise UserError(
                f"the teacher {row.teacher!r} is not among {', '.join(self.teachers)}",
                where=f"data/filter/kept.jsonl, row {row.id}",
                fix="name every teacher in curriculum.difficulty.teachers",
            )
        return float(self.teachers.index(row.teacher))


class RandomDifficulty(RowDifficulty):
    """Random numbers: the control for a curriculum."""

    type: Literal["random"]
    seed: int = 0

    def difficulty(self, row: Response) -> float:
        """Return a number from 0 to 1, a hash of the seed and the row."""
        digest = hashlib.blake2b(f"{self.seed} {row.id} {row.sample}".encode(), digest_size=8)
        return round(int.from_bytes(digest.digest(), "big") / 2**64, 9)


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
    | TeacherOrderDifficulty
    | RandomDifficulty,
    Field(discriminator="type"),
]
