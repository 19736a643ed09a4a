"""Collect prompts and labelled rows from one source or several, and split them without leakage.

In:  the source that `collect.source` names: WordNet, a data file, a data set, generated problems;
     or those of `collect.sources`, each a task: its rows carry its name as their `task`.
Out: data/collect/labelled.jsonl, dev.jsonl, test.jsonl   rows with their reference answer
     data/collect/ood.jsonl                               such rows of other groups, if configured
     data/collect/unlabelled.jsonl                        rows without an answer
     data/collect/quarantine.jsonl     each record that was not used: line, reason, beginning
     data/collect/images/                 the pictures of rows, where they have any
     data/collect/summary.json, and NOTICE.txt where the source's licence requires one

A row of labelled.jsonl:

    {"answer": " animal", "group": "animal", "id": "58a1f2e09c7d3b46", "origin": "ground_truth",
     "prompt": "Definition: any of various small short-tailed rodents\\nCategory:"}
"""

from collections import Counter
from collections.abc import Iterator
from itertools import chain, islice
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from cohobate.data.records import (
    COLLECT,
    DEV,
    LABELLED,
    OOD,
    TEST,
    UNLABELLED,
    Row,
    read_rows,
    write_json,
    write_rows,
)
from cohobate.errors import UserError
from cohobate.params import Section
from cohobate.progress import say
from tasks.collect.emoji import Emoji
from tasks.collect.files import ColumnSource, DataFile
from tasks.collect.hugging_face import HubDataset, SavedDataset
from tasks.collect.programs import Programs
from tasks.collect.reasoning import ReasoningGym
from tasks.collect.replay import Replay
from tasks.collect.row_form import RowForm
from tasks.collect.row_images import keep_only
from tasks.collect.row_spool import RowSpool, SpooledSource
from tasks.collect.source_records import QuarantinedRecord
from tasks.collect.split import SourceSplit, Split, SplitParts, draw_parts
from tasks.collect.wordnet import WordNet

Source = Annotated[
    WordNet | DataFile | SavedDataset | HubDataset | ReasoningGym | Programs | Emoji,
    Field(discriminator="type"),
]
SourceName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]
QUARANTINE = COLLECT / "quarantine.jsonl"
_SPOOL = COLLECT / "rows.partial"
_HIDDEN: dict[str, Any] = {"answer": None, "reasoning": None, "tool_calls": None, "origin": "none"}
"""Fields of a row that show its answer, as they are without one."""


class SeveralSources(Section):
    """Several sources: those of `collect.sources`."""

    type: Literal["several"]
    path: Literal["data/sources"]
    """What DVC watches: the fingerprints of their data, which the stage `sources` writes."""


class SourceParams(RowForm):
    """One of several sources, and the task that its rows are."""

    source: Source
    """Where the records come from."""
    split: SourceSplit = SourceSplit()
    """Sizes of its parts. Seed and batch are those of `collect.split`."""
    weight: float | None = Field(None, ge=0)
    """Weight of the loss of its rows, in every phase. `task_weights` of a phase do the same for
    that phase, and need no new rows; `mixing` of a phase decides how often the rows are drawn."""


class CollectParams(RowForm):
    """The section `collect` of params.yaml."""

    source: Annotated[Source | SeveralSources, Field(discriminator="type")]
    """Where the records come from; `{type: several, path: data/sources}` for `sources`."""
    sources: dict[SourceName, SourceParams] = Field(default_factory=dict)
    """Several sources by name, each a task. Their parts are drawn without leakage across them."""
    split: Split = Split()
    """Sizes of the parts; with several sources of each of them, unless it has sizes of its own."""
    replay: Replay = Replay()
    """Prompts of earlier rounds to repeat."""

    @model_validator(mode="after")
    def _one_or_several(self) -> "CollectParams":
        several = isinstance(self.source, SeveralSources)
        if several and not self.sources:
            raise ValueError("source is of type several: name them in collect.sources")
        if self.sources and not several:
            raise ValueError(
                "sources are given: source must be {type: several, path: data/sources}"
            )
        form = RowForm.model_fields
        if several and any(getattr(self, name) != form[name].default for name in form):
            raise ValueError(
                "several sources have a template, text, teacher_prompt, images, learn and "
                "reasoning each: set them in collect.sources.<name>"
            )
        for part in ("labelled", "dev", "test"):
            if not sum(getattr(one.split, part) for one in self.spooled()):
                raise ValueError(f"no source has {part} rows: at least one must")
        return self

    def spooled(self) -> list[SpooledSource]:
        """Return the sources, each with what makes rows of its records."""
        if not isinstance(self.source, SeveralSources):
            return [SpooledSource(self.source, self, self.split)]
        return [
            SpooledSource(
                one.source,
                one,
                one.split.completed(self.split),
                task=name,
                weight=None if one.weight == 1 else one.weight,
            )
            for name, one in self.sources.items()
        ]


def run(collect: CollectParams) -> None:
    """Read the source, draw the parts, and write them and the quarantine.

    Raises:
        UserError: the source cannot be read, or has too few usable rows.
    """
    COLLECT.mkdir(parents=True, exist_ok=True)
    spool = RowSpool(collect.spooled(), _SPOOL)
    parts = SplitParts()
    try:
        write_rows(QUARANTINE, _quarantined(spool, parts))
        _refuse_shortage(spool, parts)
        _write_parts(collect, spool, parts)
    finally:
        _SPOOL.unlink(missing_ok=True)
    notices = dict.fromkeys(notice for one in spool.sources if (notice := one.source.notice()))
    if notices:
        (COLLECT / "NOTICE.txt").write_text("\n".join(notices))


def _quarantined(spool: RowSpool, parts: SplitParts) -> Iterator[QuarantinedRecord]:
    """Read the sources and fill `parts`; yield the quarantined records."""
    yield from spool.fill()
    draw_parts([one.split for one in spool.sources], spool.pool, spool.text_of, parts)
    for number, reason in parts.unusable:
        yield spool.quarantine(number, reason)


def _refuse_shortage(spool: RowSpool, parts: SplitParts) -> None:
    for number, one in enumerate(spool.sources):
        of = f" of {one.task}" if one.task else ""
        for name in ("test", "dev", "labelled", *(["ood"] if one.split.ood else [])):
            rows, size = _count(spool, getattr(parts, name), number), getattr(one.split, name)
            given = name != "labelled" and size and spool.pool.has(name, number)
            if rows < (1 if given else size):
                raise _shortage(spool, number, f"{rows} rows for {name}{of}, {size} needed")
        wanted = one.split.unlabelled and not one.maker.is_raw_text
        if wanted and not _count(spool, parts.unlabelled, number):
            raise _shortage(spool, number, f"no row{of} is left for unlabelled")


def _count(spool: RowSpool, rows: list[int], source: int) -> int:
    """Return how many of the rows are of a source."""
    if len(spool.sources) == 1:
        return len(rows)
    return sum(spool.pool.sources[row] == source for row in rows)


def _shortage(spool: RowSpool, number: int, problem: str) -> UserError:
    one, rows = spool.sources[number], spool.pool.count(number)
    usable = f"{one.read} records read, {rows} of them usable"
    if one.maker.is_raw_text:
        usable = f"{one.read} records read, {rows} rows of their text"
    reasons = [f"  {line}" for line in _reasons(one)]
    section = f"collect.sources.{one.task}" if one.task else "collect"
    return UserError(
        "\n".join([f"{problem} ({usable}); quarantined:", *(reasons or ["  none"])]),
        where=f"{one.source.file}; quarantined records are in {QUARANTINE}",
        fix=f"fix the records or {section}.template, or lower the sizes in {section}.split",
    )


def _reasons(spooled: SpooledSource) -> list[str]:
    """Return the most common reasons, each with the first record that it holds for."""
    lines = []
    for reason, count in spooled.reasons.most_common(3):
        example = spooled.examples.get(reason)
        lines.append(f"{count} x {reason}" + (f", such as {example}" if example else ""))
    return lines


def _write_parts(collect: CollectParams, spool: RowSpool, parts: SplitParts) -> None:
    rows = spool.rows()
    for path, numbers in ((LABELLED, parts.labelled), (DEV, parts.dev), (TEST, parts.test)):
        write_rows(path, rows.only(numbers))
    if any(one.split.ood for one in spool.sources):
        write_rows(OOD, rows.only(parts.ood))
    hidden = {one.task: _hidden(one) for one in spool.sources}
    replayed = {row.id: row for row in collect.replay.prompts()}
    drawn = (row for row in rows.only(parts.unlabelled) if row.id not in replayed)
    size = sum(one.split.unlabelled for one in spool.sources)
    unlabelled = chain(replayed.values(), islice(drawn, max(0, size - len(replayed))))
    written = write_rows(
        UNLABELLED, (row.model_copy(update=hidden.get(row.task, _HIDDEN)) for row in unlabelled)
    )
    del parts.unlabelled[written - len(replayed) :]  # drawn, but replaced by replayed rows
    summary = _summary(spool, parts) | {"replayed": len(replayed)}
    if any(one.maker.images for one in spool.sources):
        files = [path for path in (LABELLED, DEV, TEST, OOD, UNLABELLED) if path.exists()]
        summary["pictures"] = keep_only(row for path in files for row in read_rows(path, Row))
    write_json(COLLECT / "summary.json", summary)
    logged = ("source", "read", "labelled", "unlabelled", "dev", "test", "set_aside")
    # of WordNet and generated problems what is set aside is a matter of course
    for one in (one for one in spool.sources if isinstance(one.source, ColumnSource)):
        for reason in _reasons(one):
            say(f"set aside: {reason}")
    say(", ".join(f"{name}: {summary[name]}" for name in logged))


def _hidden(spooled: SpooledSource) -> dict[str, Any]:
    """Return what an unlabelled row of a source must not show."""
    is_answer = spooled.source.group in spooled.maker.answer_columns
    return _HIDDEN | ({"group": ""} if is_answer else {})


def _summary(spool: RowSpool, parts: SplitParts) -> dict[str, Any]:
    ood = any(one.split.ood for one in spool.sources)
    names = ["labelled", "unlabelled", "dev", "test", *(["ood"] if ood else [])]
    sizes = {name: len(getattr(parts, name)) for name in names}
    raw_text = all(one.maker.is_raw_text for one in spool.sources)
    rows = {"rows": len(spool.pool)} if raw_text else _answer_counts(spool, parts)
    return {
        "source": _joined({one.task: one.source.release() for one in spool.sources}),
        "licence": _joined({one.task: one.source.licence for one in spool.sources}),
        "read": spool.read,
        **sizes,
        "set_aside": sum(spool.reasons.values()),
        **{f"set aside: {why}": count for why, count in sorted(spool.reasons.most_common(8))},
        "withheld_for_shared_key": parts.withheld,
        # several rows can be of one record
        "unused": len(spool.pool) - len(parts.unusable) - parts.withheld - sum(sizes.values()),
        **rows,
        **(_by_source(spool, parts, names) if len(spool.sources) > 1 else {}),
    }


def _joined(by_task: dict[str | None, str]) -> str:
    """Return what is said of each source as one text."""
    return "; ".join(f"{task}: {text}" if task else text for task, text in by_task.items())


def _by_source(spool: RowSpool, parts: SplitParts, names: list[str]) -> dict[str, int]:
    """Return the figures of each source."""
    figures = dict[str, int]()
    for number, one in enumerate(spool.sources):
        sizes = {name: _count(spool, getattr(parts, name), number) for name in names}
        figures |= {f"{name} of {one.task}": size for name, size in sizes.items()}
        figures |= {f"set aside of {one.task}": one.reasons.total()}
        figures |= {f"withheld of {one.task}": parts.withheld_of[number]}
    return figures


def _answer_counts(spool: RowSpool, parts: SplitParts) -> dict[str, Any]:
    answers = Counter(_answers(spool, [*parts.labelled, *parts.dev, *parts.test]))
    common = Counter(_answers(spool, parts.test)).most_common(1)[0][1]
    majority = round(common / len(parts.test), 4)
    return {"different_answers": len(answers), "majority_share_of_test": majority}


def _answers(spool: RowSpool, numbers: list[int]) -> Iterator[str]:
    rows: Iterator[Row] = iter(spool.rows().only(numbers))
    return (
        "\n".join([row.answer or "", *(f"{c.name} {c.arguments}" for c in row.tool_calls or ())])
        for row in rows
    )
