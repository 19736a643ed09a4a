"""Difficulty and curriculum: which rows the student meets, and when.

In:  data/filter/kept.jsonl; where it is asked for, the samples of data/generate, or a model
Out: data/curriculum/train.jsonl      lessons, stage after stage; a row may occur in several stages
     data/curriculum/summary.json

A row of train.jsonl:

    {"answer": " animal", "difficulty": 0.0312, "finish": "stop", "group": "",
     "id": "58a1f2e09c7d3b46", "logprob": -0.0312, "origin": "teacher",
     "prompt": "Definition: any of various small short-tailed rodents\\nCategory:", "sample": 0,
     "stage": 0, "teacher": "main"}
"""

from array import array
from collections.abc import Iterator, Sequence
from typing import Any

from cohobate.data.records import CURRICULUM, FILTER, Response, TrainingRow, write_json, write_rows
from cohobate.data.row_files import RowView
from cohobate.errors import UserError
from cohobate.packaged import SMOLLM2
from cohobate.params import Section
from cohobate.progress import say, track
from cohobate.scoring.verifiers import Task
from tasks.curriculum.difficulty import Difficulty, DifficultyContext
from tasks.curriculum.schedule import Schedule

KEPT = FILTER / "kept.jsonl"


class CurriculumParams(Section):
    """The section `curriculum` of params.yaml."""

    difficulty: Difficulty
    """How hard a row is."""
    schedule: Schedule
    """In which stage it is met. The trainer goes through the stages in turn, and a loss may heed
    them: each lesson bears the number of its stage."""
    scorer: str = SMOLLM2
    """Model of `student_loss`, `loss_gap` and `ifd`, a path that DVC tracks: a checkpoint such as
    models/init_student. The default is the packaged SmolLM2."""


def run(curriculum: CurriculumParams, task: Task) -> None:
    """Score the rows, put them into stages, write the lessons.

    Raises:
        UserError: there are more stages than rows, or a row has no difficulty.
    """
    rows = RowView.of([KEPT], Response)
    scored = curriculum.difficulty.difficulties(rows, DifficultyContext(task, curriculum.scorer))
    told = track(scored, total=len(rows), what=f"curriculum {curriculum.difficulty.type}")
    difficulties = array("d", told)
    stages = curriculum.schedule.stages_of(difficulties)
    if not all(stages):
        raise UserError(
            f"{len(rows)} rows do not fill {len(stages)} stages",
            where=str(KEPT),
            fix="lower curriculum.schedule.stages",
        )
    written = write_rows(CURRICULUM / "train.jsonl", _lessons(rows, difficulties, stages))
    write_json(CURRICULUM / "summary.json", _summary(curriculum, difficulties, stages))
    say(f"{written} lessons in {len(stages)} stages, of {len(rows)} rows")


def _lessons(
    rows: RowView[Response], difficulties: "array[float]", stages: list[Sequence[int]]
) -> Iterator[TrainingRow]:
    for stage, places in enumerate(stages):
        for place, row in zip(places, rows.only(places), strict=True):
            yield TrainingRow(**row.model_dump(), difficulty=difficulties[place], stage=stage)


def _summary(
    curriculum: CurriculumParams, difficulties: "array[float]", stages: list[Sequence[int]]
) -> dict[str, Any]:
    means = [sum(difficulties[place] for place in places) / len(places) for places in stages]
    return {
        "rows": len(difficulties),
        "lessons": sum(map(len, stages)),
        "stages": len(stages),
        "schedule": curriculum.schedule.type,
        "difficulty": curriculum.difficulty.type,
        **{f"rows of stage {stage}": len(places) for stage, places in enumerate(stages)},
        **{f"mean difficulty of stage {stage}": round(mean, 4) for stage, mean in enumerate(means)},
    }
