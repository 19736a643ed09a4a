"""Keep or drop the teacher's answers, with a reason.

In:  data/generate/<teacher>/responses.jsonl of every teacher; the answers of data/collect's
     labelled rows, and the prompts of every evaluation split (dev, test, ood).
Out: data/filter/kept.jsonl       responses, as they came
     data/filter/dropped.jsonl    responses with the filter that refused them, why, and its score
     data/filter/funnel.json      for each filter in turn: rows seen, dropped, by reason
     data/filter/funnel.svg       the same as a picture
     data/filter/summary.json

A row of dropped.jsonl:

    {"answer": " big cat", "filter": "inadmissible", "finish": "stop", "group": "",
     "id": "0b7c51d2e6a94f38", "logprob": -1.31, "origin": "teacher",
     "prompt": "Definition: large cats of Africa\\nCategory:",
     "reason": "no admissible answer (label)", "sample": 0, "teacher": "main"}
"""

from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from cohobate.data.contamination import Contamination
from cohobate.data.records import (
    DEV,
    FILTER,
    GENERATE,
    LABELLED,
    OOD,
    TEST,
    Dropped,
    Response,
    Row,
    prompt_text,
    read_rows,
    write_json,
    write_rows,
)
from cohobate.data.row_files import RowView
from cohobate.errors import UserError
from cohobate.models import hub
from cohobate.params import Section
from cohobate.progress import say, track
from cohobate.scoring.verifiers import Task
from tasks.filter.filters import AnyFilter, Contaminated
from tasks.filter.picture import funnel_svg
from tasks.filter.verdicts import KEPT, Context, Filter, Refused


class FilterParams(Section):
    """The section `filter` of params.yaml."""

    contaminated: Contaminated = Contaminated()
    """Always runs, before all others: nothing of dev or test is trained on."""
    filters: tuple[AnyFilter, ...] = ()
    """The others, in their order: put what refuses much for little work first."""
    scorer: str = "tasks/filter/stage.py"
    """Model that `ifd`, `judge` and `reward` ask, as DVC watches it: a checkpoint such as
    models/adapt/main. A file of the stage's own code stands for the packaged SmolLM2."""


def run(filter: FilterParams, task: Task) -> None:
    """Pass the responses through the filters, one filter after the other.

    Raises:
        UserError: there are no responses, or none is kept.
    """
    context = _context(filter, task)
    rows = RowView.of(sorted(GENERATE.glob("*/responses.jsonl")), Response)
    if not rows:
        raise UserError("there are no responses to filter", where=str(GENERATE))
    funnel = Funnel(rows, auxiliary=any(row.target is not None for row in rows))
    filters = (filter.contaminated, *filter.filters)
    write_rows(
        FILTER / "dropped.jsonl", chain.from_iterable(funnel.through(f, context) for f in filters)
    )
    write_json(FILTER / "funnel.json", funnel.steps)
    (FILTER / "funnel.svg").write_text(funnel_svg(funnel.steps), encoding="utf-8")
    write_json(FILTER / "summary.json", _summary(funnel, len(rows), context))
    if not funnel.rows:
        raise UserError(
            f"the filters refuse all {len(rows)} responses",
            where=str(FILTER / "funnel.json"),
            fix="see data/filter/dropped.jsonl for the reasons, and fix filter.filters",
        )
    write_rows(FILTER / "kept.jsonl", funnel.rows)
    say(f"kept {len(funnel.rows)} of {len(rows)} responses")


@dataclass
class Funnel:
    """The rows that are left, and what each filter did."""

    rows: RowView[Response]
    steps: list[dict[str, Any]] = field(default_factory=list)
    auxiliary: bool = False
    """Whether there are auxiliary targets; each stands behind its answer."""

    def through(self, filter: Filter, context: Context) -> Iterator[Dropped]:
        """Pass the rows through one more filter; yield those that it refuses."""
        judged = self.rows if filter.any_target else self._answers()
        keep, kept, reasons = filter.over(judged, context), array("Q"), Counter[str]()
        seen = len(self.rows)
        answer_is_dropped = False
        for position, row in enumerate(track(self.rows, total=seen, what=f"filter {filter.type}")):
            verdict = keep(row) if row.target is None or filter.any_target else KEPT
            if row.target is None:
                answer_is_dropped = isinstance(verdict, Refused)
            elif answer_is_dropped:
                verdict = Refused("its answer is dropped")
            if isinstance(verdict, Refused):
                reasons[verdict.reason] += 1
                told = {"reason": verdict.reason, "score": verdict.score}
                yield Dropped(**row.model_dump(), filter=filter.type, **told)
            else:
                kept.append(position)
        dropped = {"dropped": seen - len(kept), "reasons": dict(reasons)}
        self.steps.append({"filter": filter.type, "seen": seen, **dropped})
        self.rows = self.rows.only(kept)

    def _answers(self) -> RowView[Response]:
        """Return the rows without the auxiliary targets."""
        if not self.auxiliary:
            return self.rows
        return self.rows.only(n for n, row in enumerate(self.rows) if row.target is None)


def _context(filter: FilterParams, task: Task) -> Context:
    labelled = ((row.id, row.answer) for row in read_rows(LABELLED, Row))
    references = {id: answer for id, answer in labelled if answer is not None}
    splits = (path for path in (DEV, TEST, OOD) if path.exists())
    prompts = (prompt_text(row.prompt) for path in splits for row in read_rows(path, Row))
    contaminated = filter.contaminated
    return Context(
        task,
        task.labels(references.values()),
        Contamination(prompts, contaminated.words, contaminated.similarity),
        references,
        lambda: hub.resolve_path(filter.scorer),
    )


def _summary(funnel: Funnel, seen: int, context: Context) -> dict[str, Any]:
    dropped, reasons = Counter[str](), Counter[str]()
    for step in funnel.steps:
        dropped[f"dropped by {step['filter']}"] += step["dropped"]
        reasons.update(step["reasons"])
    top = reasons.most_common(1)
    labelled = (prompt_text(row.prompt) for row in read_rows(LABELLED, Row))
    return {
        "seen": seen,
        "kept": len(funnel.rows),
        "kept_share": round(len(funnel.rows) / seen, 4),
        **dropped,
        "top_reason": f"{top[0][0]} ({top[0][1]})" if top else "none",
        "labelled_rows_near_evaluation": sum(map(bool, map(context.evaluation.reason, labelled))),
    }
