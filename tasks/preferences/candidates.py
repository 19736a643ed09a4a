"""Pairings: where the answers of a preference pair come from.

To add one: a class with `candidates`, and its name in `Pairing` at the bottom.
"""

from array import array
from collections.abc import Iterable, Iterator
from itertools import groupby, islice
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from cohobate.data.records import FILTER, GENERATE, LABELLED, Dropped, Response, Row, read_rows
from cohobate.data.row_files import RowView
from cohobate.errors import UserError
from cohobate.generation.requests import Answer, Decoding
from cohobate.models import hub
from cohobate.models.number_formats import Precision
from cohobate.packaged import SMOLLM2
from cohobate.params import Section
from tasks.preferences.ranking import Candidate, Candidates, Ranking

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_WINDOW = 2048


class ModelFolders(Section):
    """The models that a pairing can use: paths that DVC tracks."""

    student: str = SMOLLM2
    """Checkpoint whose answers are compared with the teacher's, such as models/init_student or
    models/train/kd/seed-1. The default is the packaged SmolLM2."""
    judge: str = SMOLLM2
    """Judge or reward model: a checkpoint such as models/adapt/main, named like the student."""


class NoPairs(ModelFolders):
    """No pairs: the round does not train on preferences."""

    type: Literal["none"]


class PairSource(ModelFolders):
    """Base class of the pairings that make pairs."""

    type: str
    by: Ranking
    """Decides which answer is better."""
    min_margin: float = Field(0.0, ge=0)
    """Smallest difference of the scores; below it, and for equal scores, the result is a tie."""
    ties: Literal["drop", "shorter"] = "drop"
    """Whether a tie is dropped, or the shorter answer is chosen (against length bias)."""
    prompts: int | None = Field(None, ge=1)
    """Largest number of prompts, in order; all when not given."""

    def candidates(self) -> Iterator[Candidates]:
        """Yield the answers to each prompt that has different ones."""
        raise NotImplementedError


class BestVersusWorst(PairSource):
    """The best and the worst of the samples to a prompt, of all teachers."""

    type: Literal["best_vs_worst"]

    @model_validator(mode="after")
    def _not_by_origin(self) -> "BestVersusWorst":
        if self.by.type == "trusted":
            raise ValueError("all samples are the teacher's: rank them by another criterion")
        return self

    def candidates(self) -> Iterator[Candidates]:
        """Yield the samples of each prompt that is not contaminated.

        Samples that other filters dropped are used too: a pair needs a wrong answer.
        """
        responses = RowView.of(sorted(GENERATE.glob("*/responses.jsonl")), Response)
        dropped = read_rows(FILTER / "dropped.jsonl", Dropped)
        contaminated = {row.id for row in dropped if row.filter == "contaminated"}
        for _, rows in groupby(_by_prompt(responses), key=lambda row: row.id):
            samples = [row for row in rows if row.target is None]
            texts = {row.full_answer for row in samples}
            first = samples[0]
            if first.id not in contaminated and len(texts) > 1:
                answers = [Candidate.of(row, "teacher") for row in samples]
                yield candidates_of(first, answers)


class TeacherVersusStudent(PairSource):
    """The teacher's answer, or the ground truth, and the student's own answer."""

    type: Literal["teacher_vs_student"]
    rows: Literal["kept", "labelled"] = "kept"
    """Compare with the teacher on the kept rows, or with the ground truth on the labelled rows."""
    decoding: Decoding = Decoding()
    """Decoding of the student."""
    precision: Precision = "auto"
    threads: int = Field(2, ge=1)
    """Batches in parallel on a CPU; the answers do not depend on it."""

    def candidates(self) -> Iterator[Candidates]:
        """Yield both answers to each prompt where they differ."""
        from cohobate.fast.frozen import load_frozen
        from cohobate.models import checkpoints

        origin: Literal["ground_truth", "teacher"] = "teacher"
        kept = read_rows(FILTER / "kept.jsonl", Response)
        rows: Iterable[Row] = (row for row in kept if row.target is None)
        if self.rows == "labelled":
            origin, rows = "ground_truth", read_rows(LABELLED, Row)
        device = checkpoints.accelerator()
        folder = hub.resolve_path(self.student)
        model, tokenizer = load_frozen(folder, precision=self.precision, device=device)
        prefix = checkpoints.prompt_prefix(folder)
        firsts = (next(same) for _, same in groupby(rows, key=lambda row: row.id))
        firsts = (row if row.prefix else row.prefixed(prefix) for row in firsts)
        remaining = islice(firsts, self.prompts)
        while window := list(islice(remaining, _WINDOW)):
            for row, own in zip(window, self._answers(model, tokenizer, window), strict=True):
                if own.full_text != row.full_answer:
                    answers = [Candidate.of(row, origin), Candidate.generated(own)]
                    yield candidates_of(row, answers)

    def _answers(self, model: "PreTrainedModel", tokenizer: Any, rows: list[Row]) -> list[Answer]:
        from cohobate.generation import decoding

        prompts = [row.full_prompt for row in rows]
        generated = decoding.generate_answers(
            model, tokenizer, prompts, self.decoding, threads=self.threads
        )
        answers = dict(generated)
        return [answers[n] for n in range(len(rows))]


def candidates_of(row: Row, answers: list[Candidate]) -> Candidates:
    """Return the answers to the prompt of a row."""
    return Candidates(
        row.id, row.prompt, row.prefix, row.group, answers, task=row.task, weight=row.weight
    )


def _by_prompt(responses: RowView[Response]) -> RowView[Response]:
    """Group the samples by prompt, in the order of first occurrence."""
    import numpy as np

    if not len(responses):
        raise UserError(
            "there are no responses to pair",
            where=str(GENERATE),
            fix="cohobate run --stage generate",
        )
    ids = np.asarray(array("Q", (int(row.id, 16) for row in responses)))
    _, first, back = np.unique(ids, return_index=True, return_inverse=True)
    return responses.only(np.argsort(first[back], kind="stable").tolist())


Pairing = Annotated[NoPairs | BestVersusWorst | TeacherVersusStudent, Field(discriminator="type")]
