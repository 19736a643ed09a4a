"""Order the training rows: score their difficulty and assign them to curriculum stages.

In:  data/filter/kept.jsonl; for some difficulties the samples of data/generate, or a model
Out: data/curriculum/train.jsonl      training rows by stage; a row can occur in several stages
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
    """The difficulty of a row."""
    schedule: Schedule
    """The stages of a row. The trainer goes through the stages in turn; a loss can depend on the
    stage, whose number each training row has."""
    scorer: str = SMOLLM2
    """Model of `student_loss`, `loss_gap` and `ifd`, a path that DVC tracks: a checkpoint such as
    models/init_student. The default is the packaged SmolLM2."""


def run(curriculum: CurriculumParams, task: Task) -> None:
    """Score the rows, assign them to stages, and write the training rows.

    Raises:
        UserError: there are more stages than rows, or a row has no difficulty.
    """
    rows = RowView.of([KEPT], Response)
    scored = curriculum.difficulty.difficulties(rows, DifficultyContext(task, curriculum.scorer))
    tracked = track(scored, total=len(rows), label=f"curriculum {curriculum.difficulty.type}")
    difficulties = array("d", tracked)
    stages = curriculum.schedule.stages_of(difficulties)
    if not all(stages):
        raise UserError(
            f"{len(rows)} rows do not fill {len(stages)} stages",
            where=str(KEPT),
            fix="lower curriculum.schedule.stages",
        )
    written = write_rows(CURRICULUM / "train.jsonl", _training_rows(rows, difficulties, stages))
    write_json(CURRICULUM / "summary.json", _summary(curriculum, difficulties, stages))
    say(f"{written} training rows in {len(stages)} stages, from {len(rows)} kept rows")


def _training_rows(
    rows: RowView[Response], difficulties: "array[float]", stages: list[Sequence[int]]
) -> Iterator[TrainingRow]:
    for stage, positions in enumerate(stages):
        for position, row in zip(positions, rows.only(positions), strict=True):
            yield TrainingRow(**row.model_dump(), difficulty=difficulties[position], stage=stage)


def _summary(
    curriculum: CurriculumParams, difficulties: "array[float]", stages: list[Sequence[int]]
) -> dict[str, Any]:
    means = [
        sum(difficulties[position] for position in positions) / len(positions)
        for positions in stages
    ]
    return {
        "rows": len(difficulties),
        "lessons": sum(map(len, stages)),
        "stages": len(stages),
        "schedule": curriculum.schedule.type,
        "difficulty": curriculum.difficulty.type,
        **{f"rows of stage {stage}": len(positions) for stage, positions in enumerate(stages)},
        **{f"mean difficulty of stage {stage}": round(mean, 4) for stage, mean in enumerate(means)},
    }
