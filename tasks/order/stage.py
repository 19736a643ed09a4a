"""Difficulty and curriculum: which rows the student meets, and when.

In:  data/filter/kept.jsonl; where it is asked for, the samples of data/generate, or a model
Out: data/order/train.jsonl      lessons, stage after stage; a row may occur in several stages
     data/order/summary.json

A row of train.jsonl:

    {"answer": " animal", "difficulty": 0.0312, "finish": "stop", "group": "",
     "id": "58a1f2e09c7d3b46", "logprob": -0.0312, "origin": "teacher",
     "prompt": "Definition: any of various small short-tailed rodents\\nCategory:", "sample": 0,
     "stage": 0, "teacher": "main"}
"""

from array import array
from collections.abc import Iterator, Sequence
from typing import Any

from tasks.errors import UserError
from tasks.judging.verifiers import Task
from tasks.order.difficulty import Context, Difficulty
from tasks.order.schedule import Schedule
from tasks.params import Section
from tasks.progress import say, track
from tasks.rows.records import FILTER, ORDER, Lesson, Response, write_json, write_rows
from tasks.rows.row_view import RowView

KEPT = FILTER / "kept.jsonl"


class OrderParams(Section):
    """The section `order` of params.yaml."""

    difficulty: Difficulty
    """How hard a row is."""
    schedule: Schedule
    """In which stage it is met. The trainer goes through the stages in turn, and a loss may heed
    them: each lesson bears the number of its stage."""
    scorer: str = "tasks/order/stage.py"
    """Model that `student_loss`, `loss_gap` and `ifd` ask, as DVC watches it: a checkpoint such as
    models/shape. A file of the stage's own code stands for the packaged SmolLM2."""


def run(order: OrderParams, task: Task) -> None:
    """Score the rows, put them into stages, write the lessons.

    Raises:
        UserError: there are more stages than rows, or a row has no difficulty.
    """
    rows = RowView.of([KEPT], Response)
    scored = order.difficulty.over(rows, Context(task, order.scorer))
    told = track(scored, total=len(rows), what=f"order {order.difficulty.type}")
    difficulties = array("d", told)
    stages = order.schedule.stages_of(difficulties)
    if not all(stages):
        raise UserError(
            f"{len(rows)} rows do not fill {len(stages)} stages",
            where=str(KEPT),
            mend="lower order.schedule.stages",
        )
    written = write_rows(ORDER / "train.jsonl", _lessons(rows, difficulties, stages))
    write_json(ORDER / "summary.json", _summary(order, difficulties, stages))
    say(f"{written} lessons in {len(stages)} stages, of {len(rows)} rows")


def _lessons(
    rows: RowView[Response], difficulties: "array[float]", stages: list[Sequence[int]]
) -> Iterator[Lesson]:
    for stage, places in enumerate(stages):
        for place, row in zip(places, rows.only(places), strict=True):
            yield Lesson(**row.model_dump(), difficulty=difficulties[place], stage=stage)


def _summary(
    order: OrderParams, difficulties: "array[float]", stages: list[Sequence[int]]
) -> dict[str, Any]:
    means = [sum(difficulties[place] for place in places) / len(places) for places in stages]
    return {
        "rows": len(difficulties),
        "lessons": sum(map(len, stages)),
        "stages": len(stages),
        "schedule": order.schedule.type,
        "difficulty": order.difficulty.type,
        **{f"rows of stage {stage}": len(places) for stage, places in enumerate(stages)},
        **{f"mean difficulty of stage {stage}": round(mean, 4) for stage, mean in enumerate(means)},
    }
