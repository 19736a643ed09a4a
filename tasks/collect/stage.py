"""Prompts and labelled rows, split without leakage.

In:  the source that `collect.source` names: WordNet, a file of your own, a data set, problems.
Out: data/collect/labelled.jsonl, dev.jsonl, test.jsonl   rows with their right answer
     data/collect/ood.jsonl                               such rows of other groups, if asked for
     data/collect/unlabelled.jsonl                        rows whose answer is nowhere
     data/collect/quarantine.jsonl     each record that became no row: line, reason, beginning
     data/collect/summary.json, and NOTICE.txt where the source's licence asks for one

A row of labelled.jsonl:

    {"answer": " animal", "group": "animal", "id": "58a1f2e09c7d3b46", "origin": "ground_truth",
     "prompt": "Definition: any of various small short-tailed rodents\\nCategory:"}
"""

from collections import Counter
from collections.abc import Iterator
from itertools import chain, islice
from typing import Annotated, Any

from pydantic import Field

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
from tasks.collect.examples import SetAside
from tasks.collect.files import Files
from tasks.collect.hugging_face import Hub, Saved
from tasks.collect.intake import Intake
from tasks.collect.reasoning import ReasoningGym
from tasks.collect.recognised import Recognised
from tasks.collect.replay import Replay
from tasks.collect.split import Parts, Split
from tasks.collect.template import Template
from tasks.collect.wordnet import WordNet

Source = Annotated[WordNet | Files | Saved | Hub | ReasoningGym, Field(discriminator="type")]
QUARANTINE = COLLECT / "quarantine.jsonl"
_SPOOL = COLLECT / "rows.partial"


class CollectParams(Section):
    """The section `collect` of params.yaml."""

    source: Source
    """Where the examples come from."""
    template: Template | None = None
    """How an example is put to a model. Without one its columns tell: TRL's formats (`messages`,
    `prompt` and `completion`, `chosen`, `text`), OpenAI's, ShareGPT's `conversations`, Alpaca's
    `instruction`, `input` and `output`, `question` and `answer`."""
    split: Split = Split()
    """How many rows go where."""
    replay: Replay = Replay()
    """What of earlier rounds comes again."""

    @property
    def group_tells(self) -> bool:
        """Whether a row's group gives its answer away."""
        return self.source.group in self.rendering.answer_columns

    @property
    def rendering(self) -> Template | Recognised:
        """What turns columns into prompt and answer."""
        return self.template or Recognised()


def run(collect: CollectParams) -> None:
    """Read the source, draw the parts, write them and what was set aside.

    Raises:
        UserError: the source cannot be read, or has too few usable rows.
    """
    COLLECT.mkdir(parents=True, exist_ok=True)
    intake = Intake(collect.source, collect.rendering, collect.split, _SPOOL)
    parts = Parts()
    try:
        write_rows(QUARANTINE, _set_aside(intake, collect.split, parts))
        _refuse_shortage(collect, intake, parts)
        _write_parts(collect, intake, parts)
    finally:
        _SPOOL.unlink(missing_ok=True)
    if notice := collect.source.notice():
        (COLLECT / "NOTICE.txt").write_text(notice)


def _set_aside(intake: Intake, split: Split, parts: Parts) -> Iterator[SetAside]:
    """Take the source in and fill `parts`; yield what becomes no row."""
    yield from intake.fill()
    split.draw(intake.pool, intake.prompt_of, parts)
    for number, reason in parts.refused:
        yield intake.refuse(number, reason)


def _refuse_shortage(collect: CollectParams, intake: Intake, parts: Parts) -> None:
    found = {"test": parts.test, "dev": parts.dev, "labelled": parts.labelled}
    found |= {"ood": parts.ood} if collect.split.ood else {}
    for name, rows in found.items():
        asked = getattr(collect.split, name)
        enough = 1 if name != "labelled" and intake.pool.has(name) else asked
        if len(rows) < enough:
            raise _shortage(collect, intake, f"{len(rows)} rows for {name}, {asked} are asked for")
    if not parts.unlabelled:
        raise _shortage(collect, intake, "no row is left for unlabelled")


def _shortage(collect: CollectParams, intake: Intake, what: str) -> UserError:
    usable = f"{intake.read} records read, {len(intake.pool)} of them rows"
    reasons = [f"  {count} x {reason}" for reason, count in intake.reasons.most_common(3)]
    return UserError(
        "\n".join([f"{what} ({usable}); set aside:", *(reasons or ["  none"])]),
        where=f"{collect.source.file}; what was set aside is in {QUARANTINE}",
        fix="fix the records or collect.template, or lower the sizes in collect.split",
    )


def _write_parts(collect: CollectParams, intake: Intake, parts: Parts) -> None:
    rows = intake.rows()
    for path, numbers in ((LABELLED, parts.labelled), (DEV, parts.dev), (TEST, parts.test)):
        write_rows(path, rows.only(numbers))
    if collect.split.ood:
        write_rows(OOD, rows.only(parts.ood))
    hidden = {"answer": None, "origin": "none"} | ({"group": ""} if collect.group_tells else {})
    replayed = {row.id: row for row in collect.replay.prompts()}
    drawn = (row for row in rows.only(parts.unlabelled) if row.id not in replayed)
    new = islice(drawn, max(0, collect.split.unlabelled - len(replayed)))
    unlabelled = chain(replayed.values(), new)
    written = write_rows(UNLABELLED, (row.model_copy(update=hidden) for row in unlabelled))
    del parts.unlabelled[written - len(replayed) :]  # drawn, but there was no room
    summary = _summary(collect, intake, parts) | {"replayed": len(replayed)}
    write_json(COLLECT / "summary.json", summary)
    told = ("source", "read", "labelled", "unlabelled", "dev", "test", "set_aside")
    say(", ".join(f"{name}: {summary[name]}" for name in told))


def _summary(collect: CollectParams, intake: Intake, parts: Parts) -> dict[str, Any]:
    names = ["labelled", "unlabelled", "dev", "test", *(["ood"] if collect.split.ood else [])]
    sizes = {name: len(getattr(parts, name)) for name in names}
    set_aside = sum(intake.reasons.values())
    answers = Counter(_answers(intake, [*parts.labelled, *parts.dev, *parts.test]))
    common = Counter(_answers(intake, parts.test)).most_common(1)[0][1]
    return {
        "source": collect.source.release(),
        "licence": collect.source.licence,
        "read": intake.read,
        **sizes,
        "set_aside": set_aside,
        **{f"set aside: {why}": count for why, count in sorted(intake.reasons.most_common(8))},
        "withheld_for_shared_key": parts.withheld,
        "unused": intake.read - set_aside - parts.withheld - sum(sizes.values()),
        "different_answers": len(answers),
        "majority_share_of_test": round(common / len(parts.test), 4),
    }


def _answers(intake: Intake, numbers: list[int]) -> Iterator[str]:
    rows: Iterator[Row] = iter(intake.rows().only(numbers))
    return (row.answer or "" for row in rows)
