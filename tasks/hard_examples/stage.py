"""What the next round should teach again: the prompts on which the student regrets most.

In:  data/filter/kept.jsonl, the prompts of data/collect, models/train/<student>,
     reports/challenge.json (which seed is best)
Out: data/hard_examples/hardest.jsonl, the prompts as unlabelled rows, hardest first
     data/hard_examples/summary.json

A row's regret is by how much less likely the student finds the teacher's answer than the teacher
itself does, in nats a token: the gap between their losses (Ankner et al. 2024 prune by such a
difference). A row that both find hard is noise, and not taught again. Where the teacher did not
say how likely its answer was, the student's loss alone counts.

Training rows alone are mined, and of these the unlabelled ones: labelled prompts come in each round
anyhow. To mine the dev or test rows would be to learn the examination.
"""

import json
from collections.abc import Iterator
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
    """How many rows are kept."""

    rows: int = Field(2000, ge=0)
    """How many prompts are kept; 0: none, and nothing is computed."""
    precision: Precision = "auto"
    """Number format in which the student reads."""
    threads: int = Field(1, ge=1)
    """CPU threads."""


def run(
    hard_examples: HardExamplesParams, student: Annotated[str, ValueOf("evaluate.student")]
) -> None:
    """Score the rows by the best seed of the phase `student`; keep the prompts of the hardest."""
    rows = _unlabelled_rows() if hard_examples.rows else []
    regrets = _regrets(hard_examples, student, rows) if rows else []
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
        say(f"the {len(kept)} hardest rows: {summary['mean_regret_of_hardest']:.3f} nats a token")
    write_json(HARD_EXAMPLES / "summary.json", summary)


def _regrets(hard_examples: HardExamplesParams, phase: str, rows: list[Response]) -> list[float]:
    from cohobate.generation.likelihood import Likelihood

    seed = json.loads(VERDICT.read_text())["seed"]
    folder = TRAIN / phase / f"seed-{seed}"
    student = Likelihood.of(folder, hard_examples.precision, hard_examples.threads)
    losses = track(student.answer_losses(rows), total=len(rows), what="the student reads")
    return [round(loss + (row.logprob or 0.0), 6) for loss, row in zip(losses, rows, strict=True)]


def _unlabelled_rows() -> list[Response]:
    """Return the kept answers to prompts without a label: labelled prompts come again anyhow."""
    labelled = {row.id for row in read_rows(LABELLED, Row)}
    kept = read_rows(FILTER / "kept.jsonl", Response)
    return [row for row in kept if row.target is None and row.id not in labelled]


def _prompts(rows: list[Response]) -> Iterator[Row]:
    """Yield the rows' prompts as they were collected; those that a teacher made up, as they are."""
    wanted = {row.id for row in rows}
    collected = read_rows(UNLABELLED, Row) if rows else ()
    known = {row.id: row for row in collected if row.id in wanted}
    for row in rows:
        yield known.get(row.id) or Row(id=row.id, prompt=row.prompt, group=row.group)
