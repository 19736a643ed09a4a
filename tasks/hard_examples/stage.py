"""Select hard examples for the next round: prompts with the largest gap to the teacher.

In:  data/filter/kept.jsonl, the prompts of data/collect, models/train/<student>,
     reports/challenge.json (which seed is best)
Out: data/hard_examples/hardest.jsonl, the prompts as unlabelled rows, hardest first
     data/hard_examples/summary.json

A row's regret is the student's loss on the teacher's answer less the teacher's own, in nats per
token, of a classifier per label (Ankner et al. 2024 prune by such a difference). Rows that are hard
for both are likely noise, and have low regret. Where the teacher gave no log-probability, the
student's loss alone counts.

Only unlabelled training rows are selected: labelled prompts are in every round. Dev and test rows
are never used, as that would train on the evaluation.
"""

import json
from collections.abc import Iterator
from math import isfinite
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

from pydantic import Field

from cohobate.data.records import (
    FILTER,
    LABELLED,
    TRAIN,
    UNLABELLED,
    VERDICT,
    Response,
    Row,
    read_rows,
    write_json,
    write_rows,
)
from cohobate.models import checkpoints
from cohobate.models.number_formats import Precision, resolve
from cohobate.params import Section, ValueOf
from cohobate.progress import say, track

HARD_EXAMPLES = Path("data/hard_examples")
HARDEST = HARD_EXAMPLES / "hardest.jsonl"


class HardExamplesParams(Section):
    """The section `hard_examples` of params.yaml."""

    rows: int = Field(2000, ge=0)
    """Number of prompts to select; 0: none, and nothing is computed."""
    precision: Precision = "auto"
    """Number format of the student."""
    threads: int = Field(1, ge=1)
    """CPU threads."""


def run(
    hard_examples: HardExamplesParams, student: Annotated[str, ValueOf("evaluate.student")]
) -> None:
    """Score the rows with the best seed of the phase `student`; write the hardest prompts."""
    rows = _unlabelled_rows() if hard_examples.rows else []
    regrets = _regrets(hard_examples, student, rows) if rows else []
    # a classifier cannot learn an answer that is none of its labels, whose loss is infinite
    rows = [row for row, regret in zip(rows, regrets, strict=True) if isfinite(regret)]
    regrets = [regret for regret in regrets if isfinite(regret)]
    hardest: dict[str, tuple[float, Response]] = {}
    for regret, row in sorted(zip(regrets, rows, strict=True), key=lambda pair: -pair[0]):
        hardest.setdefault(row.id, (regret, row))
    kept = [*hardest.values()][: hard_examples.rows]
    write_rows(HARDEST, _prompts([row for _, row in kept]))
    summary: dict[str, Any] = {"looked_at": len(rows), "rows": len(kept)}
    if kept:
        mean = {"mean_regret": fmean(regrets), "mean_regret_of_hardest": fmean(r for r, _ in kept)}
        summary |= {name: round(value, 4) for name, value in mean.items()}
        summary["number_format"] = resolve(hard_examples.precision, checkpoints.accelerator())
        hardest_mean = summary["mean_regret_of_hardest"]
        say(f"the {len(kept)} hardest rows: {hardest_mean:.3f} nats a {_unit(student)}")
    elif hard_examples.rows:
        say("nothing is selected: no kept row answers an unlabelled prompt")
    write_json(HARD_EXAMPLES / "summary.json", summary)


def _regrets(hard_examples: HardExamplesParams, phase: str, rows: list[Response]) -> list[float]:
    from cohobate.evaluation.model_under_test import open_model

    student = open_model(_folder(phase), hard_examples.precision)
    losses = track(
        student.answer_losses(rows, threads=hard_examples.threads),
        total=len(rows),
        label="the student reads",
    )
    return [round(loss + (row.logprob or 0.0), 6) for loss, row in zip(losses, rows, strict=True)]


def _folder(phase: str) -> Path:
    """Return the checkpoint of the best seed."""
    seed = json.loads(VERDICT.read_text())["seed"]
    return TRAIN / phase / f"seed-{seed}"


def _unit(phase: str) -> str:
    """Return what the student's losses are means over: tokens, or labels."""
    from cohobate.evaluation.model_under_test import kind_of

    return kind_of(_folder(phase)).unit


def _unlabelled_rows() -> list[Response]:
    """Return the kept answers to unlabelled prompts."""
    labelled = {row.id for row in read_rows(LABELLED, Row)}
    kept = read_rows(FILTER / "kept.jsonl", Response)
    return [row for row in kept if row.target is None and row.id not in labelled]


def _prompts(rows: list[Response]) -> Iterator[Row]:
    """Yield the prompts as collected; prompts that a teacher generated, as they are."""
    ids = {row.id for row in rows}
    collected = read_rows(UNLABELLED, Row) if rows else ()
    by_id = {row.id: row for row in collected if row.id in ids}
    for row in rows:
        generated = row.model_dump(
            include={"id", "prompt", "teacher_prompt", "images", "group", "task", "weight"}
        )
        yield by_id.get(row.id) or Row(**generated)
