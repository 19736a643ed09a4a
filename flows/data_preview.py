"""Preview of a data source: formats, unusable records, and rows as a model's template renders them.

cohobate data chats.jsonl
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

from cohobate import params
from cohobate.errors import UserError
from cohobate.params import ParamsError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from cohobate.data.records import Row
    from cohobate.data.tokenized import Encoded
    from tasks.collect.row_spool import SpooledSource
    from tasks.collect.source_records import QuarantinedRecord, SourceRecord
    from tasks.collect.stage import CollectParams

MEASURED = 2000
"""Rows whose tokens are counted: the first of the source."""


@dataclass
class SourcePreview:
    """What the records of a source become."""

    records: int = 0
    formats: Counter[str] = field(default_factory=Counter)
    """Rows of each format."""
    reasons: Counter[str] = field(default_factory=Counter)
    """Records that cannot be used, by the reason."""
    examples: dict[str, str] = field(default_factory=dict)
    """The first record of each reason."""
    counts: Counter[str] = field(default_factory=Counter)
    """Rows that have an answer, tools, reasoning, and so on."""
    first_rows: list[tuple[str, "Row"]] = field(default_factory=list)
    """The first rows, each with its format."""

    @property
    def usable(self) -> int:
        """Number of rows."""
        return self.formats.total()

    def add(self, format_name: str, row: "Row") -> None:
        """Add a row."""
        self.formats[format_name] += 1
        turns = () if isinstance(row.prompt, str) else row.prompt
        traits = {
            "with an answer": row.answer is not None and bool(row.prompt),
            "conversations": bool(turns),
            "learnt at several turns": row.learn == "all" and row.answer is not None,
            "with tools": bool(turns and turns[0].tools),
            "answered by a call": bool(row.tool_calls),
            "with a prompt of the teacher's own": row.teacher_prompt is not None,
            "with pictures": bool(row.images),
            "with reasoning": any([row.reasoning, *(turn.reasoning for turn in turns)]),
        }
        self.counts.update(name for name, holds in traits.items() if holds)

    def refuse(self, record: "QuarantinedRecord") -> None:
        """Add a record that cannot be used."""
        self.reasons[record.reason] += 1
        self.examples.setdefault(record.reason, record.description)


class RenderedRow(NamedTuple):
    """A row as a model reads it, or why its chat template cannot render it."""

    pieces: list[tuple[str, bool]]
    """Text, and whether it is learnt."""
    tokens: int
    learnt: int
    refusal: str = ""

    @property
    def marked_text(self) -> str:
        """The text with the learnt tokens in double brackets."""
        return "".join(f"[[{text}]]" if learnt else text for text, learnt in self.pieces)


def read_source(collect: "CollectParams", anywhere: bool = False) -> SourcePreview:
    """Read the sources to their end.

    Args:
        collect: sources, templates, and what is learnt.
        anywhere: whether files outside the project are read too.

    Raises:
        UserError: a source cannot be read.
    """
    preview, ids = SourcePreview(), set[int]()
    sources = collect.spooled()
    # of several sources the first rows take turns
    first_rows: list[list[tuple[str, Row]]] = [[] for _ in sources]
    for spooled, first in zip(sources, first_rows, strict=True):
        task = f"{spooled.task}: " if spooled.task else ""
        for record, rows in _read(spooled, anywhere, preview):
            name = task + _format_of(spooled.maker, record)
            for row in rows:
                preview.add(name, row)
                number = int(row.id, 16)
                if number in ids:
                    preview.counts["that repeat a prompt"] += 1
                ids.add(number)
                if len(first) < MEASURED // len(sources):
                    first.append((name, row))
    preview.first_rows = [one for group in zip_longest(*first_rows) for one in group if one]
    return preview


def _read(
    spooled: "SpooledSource", anywhere: bool, preview: SourcePreview
) -> Iterator[tuple["SourceRecord", list["Row"]]]:
    """Yield the usable records of a source with their rows; the others go to the preview."""
    from tasks.collect.source_records import QuarantinedRecord, UnusableRecordError

    source: Any = spooled.source
    for record in source.source_records(inside=False) if anywhere else source.source_records():
        preview.records += 1
        if isinstance(record, QuarantinedRecord):
            preview.refuse(record)
            continue
        try:
            rows = [row for _, row in spooled.rows(record, keep_images=False)]
        except UnusableRecordError as error:
            preview.refuse(record.quarantined(record.file or source.file, str(error)))
            continue
        yield record, rows


def _format_of(form: Any, record: "SourceRecord") -> str:
    from tasks.collect.known_formats import KnownFormat

    if form.is_raw_text:
        return "raw text"
    return "template" if form.template else KnownFormat().recognise(record.columns).name


def render(tokenizer: "PreTrainedTokenizerBase", rows: Sequence["Row"]) -> list[RenderedRow]:
    """Render rows with a tokenizer and its chat template."""
    from cohobate.data.examples import examples_of
    from cohobate.data.teacher_prompts import teacher_examples
    from cohobate.data.tokenized import encode_all

    try:
        encoded = list(encode_all(tokenizer, rows))
        # refuses answers that have other tokens behind the teacher's prompt
        teacher_examples(tokenizer, rows, examples_of(rows, encoded))
    except UserError as error:
        if len(rows) > 1:  # which of them?
            return [one for row in rows for one in render(tokenizer, [row])]
        fix = f"; fix: {error.fix}" if error.fix else ""
        return [RenderedRow([], 0, 0, f"{error.what}{fix}")]
    return [
        RenderedRow(list(_pieces(tokenizer, one)), len(one.ids), sum(b - a for a, b in one.spans))
        for one in encoded
    ]


def _pieces(tokenizer: "PreTrainedTokenizerBase", encoded: "Encoded") -> Iterator[tuple[str, bool]]:
    end = 0
    for start, stop in (*encoded.spans, (len(encoded.ids), len(encoded.ids))):
        for ids, learnt in ((encoded.ids[end:start], False), (encoded.ids[start:stop], True)):
            if ids:
                text = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
                yield str(text), learnt
        end = stop


def token_figures(rows: Sequence[RenderedRow]) -> dict[str, Any]:
    """Return how long rendered rows are, in tokens, and why the others cannot be rendered."""
    tokens = sorted(row.tokens for row in rows if not row.refusal)
    refusals = Counter(row.refusal for row in rows if row.refusal)
    if not tokens:
        return {"rows": 0, "refused": dict(refusals.most_common())}
    return {
        "rows": len(tokens),
        "median": round(median(tokens)),
        "longest": tokens[-1],
        "median_learnt": round(median(row.learnt for row in rows if not row.refusal)),
        "refused": dict(refusals.most_common()),
    }


def settings_of(path: str, template: str, options: dict[str, str]) -> "CollectParams":
    """Return the settings with which a source is read.

    Args:
        path: a file, a folder or a pattern of files; empty takes the project's `collect`.
        template: `collect.template` as JSON; empty recognises the format by the columns.
        options: other keys of `collect`; empty ones are left out.

    Raises:
        UserError: there is no project and no path, or a setting is wrong.
    """
    from tasks.collect.data_folders import is_saved_dataset, split_glob
    from tasks.collect.stage import CollectParams

    collect: dict[str, Any] = {}
    if not path and not params.PARAMS.exists():
        raise UserError("no file is named", fix="cohobate data FILE, or run it in a project")
    if not path:
        collect = dict(params.value_at(params.load(), ["collect"]))
    else:
        folder, pattern = split_glob(path)
        source = {"type": "files", "path": folder, "pattern": pattern}
        saved = {"type": "datasets", "path": folder}
        collect["source"] = saved if is_saved_dataset(Path(folder)) else source
    if template:
        collect["template"] = params.parse(template, "--template")
    collect |= {key: value for key, value in options.items() if value}
    try:
        settings: CollectParams = params.validated(CollectParams, collect, "collect")
    except ParamsError as error:
        if not path:
            raise
        raise ParamsError(error.what, where=path, fix="cohobate data --help") from None
    return settings


def tokenizer_of(model: str, settings: str) -> tuple[str, "PreTrainedTokenizerBase"]:
    """Return the name of a model and its tokenizer, with the settings of its chat template.

    Args:
        model: its name as in params.yaml; empty takes the project's student or teacher, and the
            packaged model outside a project.
        settings: of the chat template, as JSON, as in `teachers.<name>.template`.

    Raises:
        UserError: there is no such model.
    """
    from cohobate.models import checkpoints, hub
    from cohobate.models.chat_templates import TemplateSettings

    name, revision, template = _named_model() if not model else (model, "", {})
    tokenizer = checkpoints.load_tokenizer(hub.resolve(name, revision))
    if settings:
        template = params.parse(settings, "--chat-template")
    params.validated(TemplateSettings, template, "template").write_into(tokenizer)
    return name, tokenizer


def _named_model() -> tuple[str, str, dict[str, Any]]:
    """Return the model that learns from the rows, its revision and its template's settings."""
    from cohobate.models.hub import PACKAGED

    document = params.load() if params.PARAMS.exists() else {}
    student = document.get("init_student") or {}
    own = student.get("type") == "pretrained" and student.get("tokenizer", "own") == "own"
    teachers = list((document.get("teachers") or {}).values())
    models = [*([student] if own else []), *(t for t in teachers if not t.get("endpoint"))]
    one = models[0] if models else {}
    return one.get("model") or PACKAGED, one.get("revision", ""), one.get("template") or {}
