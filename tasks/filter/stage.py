"""Filter the teacher's answers: each is kept, or dropped with a reason.

In:  data/generate/<teacher>/responses.jsonl of every teacher; the answers of data/collect's
     labelled rows, and the prompts of every evaluation split (dev, test, ood).
Out: data/filter/kept.jsonl       responses, unchanged
     data/filter/dropped.jsonl    responses with the filter that dropped them, reason and score
     data/filter/funnel.json      for each filter in turn: rows seen and dropped, by reason
     data/filter/summary.json

A row of dropped.jsonl:

    {"answer": " big cat", "filter": "inadmissible", "finish": "stop", "group": "",
     "id": "0b7c51d2e6a94f38", "logprob": -1.31, "origin": "teacher",
     "prompt": "Definition: large cats of Africa\\nCategory:",
     "reason": "no valid answer (label)", "sample": 0, "teacher": "main"}
"""

from array import array
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from cohobate.data.contamination import index_by_task
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
    read_rows,
    write_json,
    write_rows,
)
from cohobate.data.row_files import RowView
from cohobate.errors import UserError
from cohobate.models import hub
from cohobate.packaged import SMOLLM2
from cohobate.params import Section
from cohobate.progress import say, track
from cohobate.scoring.verifiers import Task
from tasks.filter.base_filter import KEEP, Context, Drop, Filter, Keep, Verdict
from tasks.filter.filters import AnyFilter, ContaminationFilter

_WINDOW = 1024
"""Dropped rows that are read and written at once."""


class FilterParams(Section):
    """The section `filter` of params.yaml."""

    contaminated: ContaminationFilter = ContaminationFilter()
    """Always runs, before all others: nothing of dev, test or ood is trained on."""
    filters: tuple[AnyFilter, ...] = ()
    """The others, in this order: put the cheap ones first."""
    scorer: str = SMOLLM2
    """Model of `educational`, `ifd`, `judge` and `reward`, as a dependency of DVC: a checkpoint
    such as models/adapt/main. The default is the packaged SmolLM2."""


def run(filter: FilterParams, task: Task) -> None:
    """Pass the responses through the filters, one filter after the other.

    Raises:
        UserError: there are no responses, or none is kept.
    """
    context = _context(filter, task)
    rows = RowView.of(sorted(GENERATE.glob("*/responses.jsonl")), Response)
    if not rows:
        raise UserError(
            "there are no responses to filter",
            where=str(GENERATE),
            fix="cohobate run --stage generate",
        )
    funnel = Funnel.of(rows)
    filters = (filter.contaminated, *filter.filters)
    dropped = chain.from_iterable(funnel.apply(one, context) for one in filters)
    write_rows(FILTER / "dropped.jsonl", dropped)
    write_json(FILTER / "funnel.json", funnel.steps)
    write_json(FILTER / "summary.json", _summary(funnel, len(rows), context))
    if not funnel.rows:
        raise UserError(
            f"the filters drop all {len(rows)} responses",
            where=str(FILTER / "funnel.json"),
            fix="see data/filter/dropped.jsonl for the reasons, and loosen filter.filters",
        )
    write_rows(FILTER / "kept.jsonl", funnel.rows)
    say(f"kept {len(funnel.rows)} of {len(rows)} responses")


@dataclass
class Funnel:
    """The rows that are left, and the counts of each filter that was applied."""

    rows: RowView[Response]
    auxiliary: bytearray
    """For each row, whether it is an auxiliary target; these follow the answer of their prompt."""
    tasks: "array[int]"
    """For each row, the number of its task among `task_names`."""
    task_names: list[str | None]
    steps: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def of(cls, rows: RowView[Response]) -> "Funnel":
        """Return a funnel that no filter was applied to."""
        numbers: dict[str | None, int] = {}
        auxiliary, tasks = bytearray(), array("H")
        for row in rows:
            auxiliary.append(row.target is not None)
            tasks.append(numbers.setdefault(row.task, len(numbers)))
        return cls(rows, auxiliary, tasks, [*numbers])

    def apply(self, filter: Filter, context: Context) -> Iterator[Dropped]:
        """Apply one more filter; yield the rows that it drops."""
        seen, kept, reasons = len(self.rows), array("Q"), Counter[str]()
        drops: dict[int, Drop] = {}  # by position, not yet written
        verdicts = track(self._verdicts(filter, context), total=seen, label=f"filter {filter.type}")
        for position, verdict in enumerate(verdicts):
            if isinstance(verdict, Keep):
                kept.append(position)
                continue
            reasons[verdict.reason] += 1
            drops[position] = verdict
            if len(drops) == _WINDOW:
                yield from self._dropped(filter, drops)
                drops.clear()
        yield from self._dropped(filter, drops)
        dropped = {"dropped": seen - len(kept), "reasons": dict(reasons)}
        named = {"filter": filter.type} | ({"tasks": [*filter.tasks]} if filter.tasks else {})
        self.steps.append({**named, "seen": seen, **dropped})
        self.rows = self.rows.only(kept)
        self.auxiliary = bytearray(self.auxiliary[position] for position in kept)
        self.tasks = array("H", (self.tasks[position] for position in kept))

    def _verdicts(self, filter: Filter, context: Context) -> Iterator[Verdict]:
        """Yield the verdict on every row; an auxiliary target is dropped with its answer."""
        judged = self._judged(filter)
        rows = (
            self.rows if all(judged) else self.rows.only(n for n, one in enumerate(judged) if one)
        )
        if filter.needs_prompt:
            _refuse_raw_text(filter, rows)
        verdicts = filter.verdicts(rows, context)
        answer: Verdict = KEEP
        for auxiliary, is_judged in zip(self.auxiliary, judged, strict=True):
            own = next(verdicts) if is_judged else KEEP
            if not auxiliary:
                answer = own
            yield Drop("its answer is dropped") if auxiliary and isinstance(answer, Drop) else own

    def _dropped(self, filter: Filter, drops: Mapping[int, Drop]) -> Iterator[Dropped]:
        # filters parse the rows themselves: only the dropped ones are read once more
        for row, drop in zip(self.rows.only(drops), drops.values(), strict=True):
            why = {"reason": drop.reason, "score": drop.score}
            yield Dropped(**row.model_dump(), filter=filter.type, **why)

    def _judged(self, filter: Filter) -> bytearray:
        """Return for each row whether the filter judges it."""
        named = [not filter.tasks or name in filter.tasks for name in self.task_names]
        return bytearray(
            named[task] and (filter.any_target or not auxiliary)
            for task, auxiliary in zip(self.tasks, self.auxiliary, strict=True)
        )


def _refuse_raw_text(filter: Filter, rows: RowView[Response]) -> None:
    if raw := next((row for row in rows if row.is_raw_text), None):
        source = f" of source {raw.task}" if raw.task else ""
        raise UserError(
            f"the filter {filter.type} judges an answer by its prompt, and raw text{source} has "
            "none",
            where="params.yaml, filter.filters",
            fix=f"remove it, or name the sources that it judges: {{type: {filter.type}, "
            "tasks: [...]}",
        )


def _context(filter: FilterParams, task: Task) -> Context:
    references: dict[str, str] = {}
    answers: defaultdict[str | None, list[str]] = defaultdict(list)
    for row in read_rows(LABELLED, Row):
        # raw text is no answer that others could be compared with
        if row.answer is not None and not row.is_raw_text:
            references[row.id] = row.full_answer
            answers[row.task].append(row.full_answer)
    splits = (path for path in (DEV, TEST, OOD) if path.exists())
    evaluation = (row for path in splits for row in read_rows(path, Row))
    prompts = ((row.task, row.source_text) for row in evaluation)
    contaminated = filter.contaminated
    return Context(
        task,
        {name: task.labels(texts, name) for name, texts in answers.items()},
        index_by_task(prompts, contaminated.words, contaminated.similarity),
        references,
        lambda: hub.resolve_path(filter.scorer),
    )


def _summary(funnel: Funnel, seen: int, context: Context) -> dict[str, Any]:
    dropped, reasons = Counter[str](), Counter[str]()
    for step in funnel.steps:
        dropped[f"dropped by {step['filter']}"] += step["dropped"]
        reasons.update(step["reasons"])
    top = reasons.most_common(1)
    labelled = (row.source_text for row in read_rows(LABELLED, Row))
    return {
        "seen": seen,
        "kept": len(funnel.rows),
        "kept_share": round(len(funnel.rows) / seen, 4),
        **dropped,
        "top_reason": f"{top[0][0]} ({top[0][1]})" if top else "none",
        "labelled_rows_near_evaluation": sum(
            context.contamination.reason(prompt) is not None for prompt in labelled
        ),
    }
