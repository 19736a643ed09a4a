"""Collect prompts and labelled rows from a source, and split them without leakage.

In:  the source that `collect.source` names: WordNet, a data file, a data set, generated problems.
Out: data/collect/labelled.jsonl, dev.jsonl, test.jsonl   rows with their reference answer
     data/collect/ood.jsonl                               such rows of other groups, if configured
     data/collect/unlabelled.jsonl                        rows without an answer
     data/collect/quarantine.jsonl     each record that was not used: line, reason, beginning
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
    write_json,
    write_rows,
)
from cohobate.errors import UserError
from cohobate.params import Section
from cohobate.progress import say
from tasks.collect.files import ColumnSource, DataFile
from tasks.collect.hugging_face import HubDataset, SavedDataset
from tasks.collect.known_formats import KnownFormat
from tasks.collect.raw_text import RawText
from tasks.collect.reasoning import ReasoningGym
from tasks.collect.replay import Replay
from tasks.collect.row_spool import RowSpool
from tasks.collect.source_records import QuarantinedRecord, SourceRecord
from tasks.collect.split import Split, SplitParts
from tasks.collect.template import PromptTemplate
from tasks.collect.wordnet import WordNet

Source = Annotated[
    WordNet | DataFile | SavedDataset | HubDataset | ReasoningGym, Field(discriminator="type")
]
QUARANTINE = COLLECT / "quarantine.jsonl"
_SPOOL = COLLECT / "rows.partial"


class CollectParams(Section):
    """The section `collect` of params.yaml."""

    source: Source
    """Where the records come from."""
    template: PromptTemplate | None = None
    """How a record becomes a prompt. Without one the columns decide: TRL's formats (`messages`,
    `prompt` and `completion`, `chosen`, `text`), OpenAI's, ShareGPT's `conversations`, Alpaca's
    `instruction`, `input` and `output`, `question` and `answer`."""
    text: RawText | None = None
    """Instead of a template: the records are documents, whose text is learnt at every token, such
    as `{characters: 3000}`."""
    learn: Literal["last", "all"] = "last"
    """Which turns of a conversation are learnt: the assistant's last, or all that it has behind the
    first user's turn. Turns with `weight: 0` (or `train: false`) never are."""
    reasoning: Literal["keep", "drop"] = "keep"
    """What becomes of reasoning, in a key of its own or between tags (`<think>`): it is kept apart
    from the answer and learnt as the chat template renders it, or left out."""
    split: Split = Split()
    """Sizes of the parts."""
    replay: Replay = Replay()
    """Prompts of earlier rounds to repeat."""

    @property
    def group_is_answer(self) -> bool:
        """Whether a row's group gives its answer away."""
        return self.source.group in self.rendering.answer_columns

    @property
    def rendering(self) -> PromptTemplate | KnownFormat | RawText:
        """Makes rows of the columns."""
        return self.text or self.template or KnownFormat()

    @model_validator(mode="after")
    def _prompts_or_raw_text(self) -> "CollectParams":
        if self.text and self.template:
            raise ValueError("raw text has no template: give either text or template")
        return self

    def rows(self, source_record: SourceRecord) -> list[tuple[SourceRecord, Row]]:
        """Return the rows of a record: one, or the pieces of a document.

        Raises:
            UnusableRecordError: no row can be made of it.
        """
        if self.text:
            return self.text.rows(source_record)
        content = (self.template or KnownFormat()).render(source_record.columns)
        if self.reasoning == "drop":
            content = content.without_reasoning()
        if self.learn == "all":
            content = content.with_earlier_turns_learnt()
        return [(source_record, content.row(source_record.group))]


def run(collect: CollectParams) -> None:
    """Read the source, draw the parts, and write them and the quarantine.

    Raises:
        UserError: the source cannot be read, or has too few usable rows.
    """
    COLLECT.mkdir(parents=True, exist_ok=True)
    spool = RowSpool(collect.source, collect, collect.split, _SPOOL)
    parts = SplitParts()
    try:
        write_rows(QUARANTINE, _quarantined(spool, collect.split, parts))
        _refuse_shortage(collect, spool, parts)
        _write_parts(collect, spool, parts)
    finally:
        _SPOOL.unlink(missing_ok=True)
    if notice := collect.source.notice():
        (COLLECT / "NOTICE.txt").write_text(notice)


def _quarantined(spool: RowSpool, split: Split, parts: SplitParts) -> Iterator[QuarantinedRecord]:
    """Read the source and fill `parts`; yield the quarantined records."""
    yield from spool.fill()
    split.draw(spool.pool, spool.text_of, parts)
    for number, reason in parts.unusable:
        yield spool.quarantine(number, reason)


def _refuse_shortage(collect: CollectParams, spool: RowSpool, parts: SplitParts) -> None:
    drawn = {"test": parts.test, "dev": parts.dev, "labelled": parts.labelled}
    drawn |= {"ood": parts.ood} if collect.split.ood else {}
    for name, rows in drawn.items():
        size = getattr(collect.split, name)
        enough = 1 if name != "labelled" and spool.pool.has(name) else size
        if len(rows) < enough:
            raise _shortage(collect, spool, f"{len(rows)} rows for {name}, {size} needed")
    if not parts.unlabelled and collect.split.unlabelled and not collect.text:
        raise _shortage(collect, spool, "no row is left for unlabelled")


def _shortage(collect: CollectParams, spool: RowSpool, problem: str) -> UserError:
    usable = f"{spool.read} records read, {len(spool.pool)} of them usable"
    if collect.text:
        usable = f"{spool.read} records read, {len(spool.pool)} rows of their text"
    reasons = [f"  {line}" for line in _reasons(spool)]
    return UserError(
        "\n".join([f"{problem} ({usable}); quarantined:", *(reasons or ["  none"])]),
        where=f"{collect.source.file}; quarantined records are in {QUARANTINE}",
        fix="fix the records or collect.template, or lower the sizes in collect.split",
    )


def _reasons(spool: RowSpool) -> list[str]:
    """Return the most common reasons, each with the first record that it holds for."""
    lines = []
    for reason, count in spool.reasons.most_common(3):
        example = spool.examples.get(reason)
        lines.append(f"{count} x {reason}" + (f", such as {example}" if example else ""))
    return lines


def _write_parts(collect: CollectParams, spool: RowSpool, parts: SplitParts) -> None:
    rows = spool.rows()
    for path, numbers in ((LABELLED, parts.labelled), (DEV, parts.dev), (TEST, parts.test)):
        write_rows(path, rows.only(numbers))
    if collect.split.ood:
        write_rows(OOD, rows.only(parts.ood))
    hidden = {"answer": None, "reasoning": None, "tool_calls": None, "origin": "none"}
    hidden |= {"group": ""} if collect.group_is_answer else {}
    replayed = {row.id: row for row in collect.replay.prompts()}
    drawn = (row for row in rows.only(parts.unlabelled) if row.id not in replayed)
    new = islice(drawn, max(0, collect.split.unlabelled - len(replayed)))
    unlabelled = chain(replayed.values(), new)
    written = write_rows(UNLABELLED, (row.model_copy(update=hidden) for row in unlabelled))
    del parts.unlabelled[written - len(replayed) :]  # drawn, but replaced by replayed rows
    summary = _summary(collect, spool, parts) | {"replayed": len(replayed)}
    write_json(COLLECT / "summary.json", summary)
    logged = ("source", "read", "labelled", "unlabelled", "dev", "test", "set_aside")
    # of WordNet and generated problems what is set aside is a matter of course
    for reason in _reasons(spool) if isinstance(collect.source, ColumnSource) else ():
        say(f"set aside: {reason}")
    say(", ".join(f"{name}: {summary[name]}" for name in logged))


def _summary(collect: CollectParams, spool: RowSpool, parts: SplitParts) -> dict[str, Any]:
    names = ["labelled", "unlabelled", "dev", "test", *(["ood"] if collect.split.ood else [])]
    sizes = {name: len(getattr(parts, name)) for name in names}
    set_aside = sum(spool.reasons.values())
    rows = {"rows": len(spool.pool)} if collect.text else _answer_counts(spool, parts)
    return {
        "source": collect.source.release(),
        "licence": collect.source.licence,
        "read": spool.read,
        **sizes,
        "set_aside": set_aside,
        **{f"set aside: {why}": count for why, count in sorted(spool.reasons.most_common(8))},
        "withheld_for_shared_key": parts.withheld,
        # several rows can be of one record
        "unused": len(spool.pool) - len(parts.unusable) - parts.withheld - sum(sizes.values()),
        **rows,
    }


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
