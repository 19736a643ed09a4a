"""Capture: a teacher's signals over rows, written to a signal store.

Rows whose signals came with the teacher's answers are copied; one forward pass gives those of the
others, in which only the hidden states at completion tokens go through the head. The rows stream:
those of one shard are in memory, whatever the size of the file.
"""

import functools
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cohobate import sealed_folder
from cohobate.data.examples import Example, common_prefix, examples_of
from cohobate.data.records import Response
from cohobate.data.row_length import LengthLimit
from cohobate.data.teacher_prompts import as_teacher_reads, teacher_examples
from cohobate.data.tokenized import encode_all
from cohobate.errors import UserError
from cohobate.fast.prefix_cache import PrefixCache
from cohobate.models import checkpoints
from cohobate.models.number_formats import resolve
from cohobate.models.vocabularies import template_hash, vocabulary_hash
from cohobate.progress import Meter, say
from cohobate.teachers.signal_store.elsewhere import ElsewhereTeacher
from cohobate.teachers.signal_store.form import Signals
from cohobate.teachers.signal_store.settings import CaptureParams
from cohobate.teachers.signal_store.shards import (
    WORK,
    ShardWriter,
    capture_key,
    line_chunks,
    publish,
    read_figures,
)
from cohobate.teachers.signal_store.store import ABOUT, Origin, SignalStore
from cohobate.teachers.signal_store.teacher_pass import (
    CapturedTeacher,
    batches_by_length,
    compute_signals,
)
from cohobate.thread_map import thread_map

if TYPE_CHECKING:
    from torch import Tensor

WITH_ANSWERS = "rows_with_answers"
"""Figure of a shard and of the summary: rows whose signals came with the teacher's answers."""
_COPIED_ROWS = 1024  # in memory at once


def capture_signals(
    teacher: Path,
    rows: Path,
    folder: Path,
    capture: CaptureParams,
    *,
    label: str,
    answers: Path | None = None,
) -> dict[str, float]:
    """Write the signal store of one teacher over the rows of a file.

    Rows whose signals came with the teacher's answers are copied; the teacher is loaded for the
    others alone. Shards that an earlier, killed capture finished are used again.

    Args:
        teacher: folder of the teacher's checkpoint.
        rows: a file of `Response` rows, JSON Lines.
        folder: where the store is published.
        capture: its settings.
        label: name of this run in the progress.
        answers: a store that `generate` wrote (data/signals/<teacher>), if there is one.

    Returns:
        Key figures: rows, tokens, bytes a token, and the form's statistics; with `answers` also the
        number of rows that were copied from there.

    Raises:
        UserError: there are no rows, all are too long, or the checkpoint is damaged.
    """
    total = _count_rows(rows)
    with closing(Sources(teacher, capture, answers)) as sources:
        return _capture(sources, rows, folder, CaptureProgress(label, total))


def _capture(
    sources: "Sources", rows: Path, folder: Path, progress: "CaptureProgress"
) -> dict[str, float]:
    label, capture = progress.label, sources.capture
    origin = sources.origin
    work = WORK / folder.name / capture_key(origin, rows, capture.decided_by() | sources.key_parts)
    shards, figures = [], []
    limit = LengthLimit(capture.max_tokens, capture.too_long)
    for number, lines in enumerate(line_chunks(rows, capture.shard_rows)):
        # the name of a shard is its place in the file: a resumed capture finds it
        shards.append(work / f"shard-{number:05}")
        shard_figures = read_figures(shards[-1])
        if shard_figures is None:
            with ShardWriter(shards[-1], number, origin) as writer:
                sources.write(*_examples(lines, sources, limit), writer, progress)
            shard_figures = writer.figures
        else:
            say(f"shard {number} is complete: its {shard_figures['rows']:.0f} rows are kept")
            progress.skip(len(lines))
        figures.append(shard_figures)
    limit.report(label)  # of the shards that were computed now
    rows_left = sum(int(each["rows"]) for each in figures)
    limit.refuse_none(rows_left, "params.yaml, capture.max_tokens")
    head = sources.teacher.head if origin.form.needs_head else None
    publish(shards, folder, origin, sources.tokenizer, head, keep_tokenizer=capture.keep_tokenizer)
    shutil.rmtree(WORK / folder.name)  # the store has links to these bytes, or copies
    progress.finish()
    summary = _summary(figures, folder)
    if not sources.has_answers:
        return summary
    copied = sum(int(each[WITH_ANSWERS]) for each in figures)
    say(f"{label}: the signals of {copied} of {rows_left} rows came with the answers")
    return summary | {WITH_ANSWERS: copied}


class Sources:
    """Where the signals of a capture come from: the teacher's answers, else a pass of the teacher.

    Args:
        teacher: folder of the teacher's checkpoint.
        capture: settings of the capture.
        answers: a store that `generate` wrote, if there is one.
    """

    def __init__(self, teacher: Path, capture: CaptureParams, answers: Path | None) -> None:
        self.capture, self.has_answers = capture, answers is not None
        workers, device = capture.teacher_workers, checkpoints.accelerator()
        self.teacher: CapturedTeacher
        if workers:
            number_format = workers.number_format(capture.precision, device)
            self.teacher = ElsewhereTeacher(teacher, number_format, workers)
        else:
            number_format = resolve(capture.precision, device)
            self.teacher = CapturedTeacher(teacher, number_format)
        self.answers = SignalStore(answers) if answers and (answers / ABOUT).exists() else None
        if self.answers is not None:
            self.tokenizer = checkpoints.load_tokenizer(teacher)
            stored = self.answers.origin
            form = capture.token_form.for_vocabulary(stored.vocabulary)
            own: dict[str, Any] = {"form": form, "number_format": number_format}
            own |= {"teacher": checkpoints.fingerprint(teacher)}
            own |= {"tokenizer": vocabulary_hash(self.tokenizer)}
            own |= {"template": template_hash(self.tokenizer)}
            self.origin = stored.model_copy(update=own | {"shards": 0, "rows": 0, "tokens": 0})
            # another form, number format or teacher: all rows are computed
            self.answers = self.answers if stored.serves(self.origin) else None
        if self.answers is None:
            self.tokenizer = self.teacher.tokenizer
            self.origin = Origin.of(
                teacher, self.tokenizer, self.teacher.head, capture.token_form, number_format
            )

    def close(self) -> None:
        """Release the teacher."""
        self.teacher.close()

    @property
    def key_parts(self) -> dict[str, str]:
        """What decides the bytes of a shard, beside the teacher, the rows and the settings."""
        if self.answers is None:
            return {}
        return {"answers": sealed_folder.sha256_of(self.answers.folder / sealed_folder.MANIFEST)}

    def write(
        self,
        examples: Sequence[Example],
        views: Mapping[str, Example],
        writer: ShardWriter,
        progress: "CaptureProgress",
    ) -> None:
        """Write the signals of some rows: first those that are copied, then those computed.

        Args:
            examples: the rows.
            views: those that the teacher reads behind a prompt of its own, by key; what it computes
                there is stored as the row's.
            writer: of the shard.
            progress: is told of the rows.
        """
        missing = self._copy(examples, writer, progress)
        if not missing:
            return
        self.teacher.check(self.origin)  # loads it, before threads use it
        of_row = {example.key: example for example in missing}
        read = [as_teacher_reads(views, example) for example in missing]
        # a long prompt that all of them begin with is read once
        prefix_P = common_prefix(read) if views else None
        batches = batches_by_length(read, self.capture.batch_tokens)
        for batch, signals in self._signals(batches, prefix_P):
            writer.add([of_row[one.key] for one in batch], signals)
            progress.advance(batch)

    def _signals(
        self, batches: Iterable[list[Example]], prefix_P: "Tensor | None"
    ) -> Iterator[tuple[list[Example], Signals]]:
        """Run the teacher over batches, here or in its actors; yield them in their order."""
        teacher, chunk_tokens = self.teacher, self.capture.chunk_tokens
        if isinstance(teacher, ElsewhereTeacher):
            return teacher.pool.map("signals", batches, self.origin, chunk_tokens, prefix_P)
        compute = functools.partial(
            compute_signals, teacher.model, teacher.head, self.origin, chunk_tokens
        )
        if prefix_P is not None:
            cache = PrefixCache(teacher.model, prefix_P)
            compute = functools.partial(compute, prefix_cache=cache)
        return thread_map(compute, batches, self.capture.threads)

    def _copy(
        self, examples: Sequence[Example], writer: ShardWriter, progress: "CaptureProgress"
    ) -> list[Example]:
        """Copy the rows that the answers' store has; return the others."""
        writer.figures[WITH_ANSWERS] = 0
        if self.answers is None:
            return list(examples)
        stored, size = self.answers.origin.form, self.origin.vocabulary
        at = self.answers.find(examples)
        copied = np.flatnonzero(at >= 0)
        for start in range(0, len(copied), _COPIED_ROWS):
            part = copied[start : start + _COPIED_ROWS]
            packed = self.answers.read_packed(at[part].tolist())
            if stored != self.origin.form:  # else the bytes are the same
                signals = stored.narrow(stored.unpack(packed, size), self.origin.form)
                packed = self.origin.form.pack(signals, size)
            writer.add_packed([examples[n] for n in part], packed)
            progress.skip(len(part))
        writer.figures[WITH_ANSWERS] += len(copied)
        return [row for row, place in zip(examples, at.tolist(), strict=True) if place < 0]


def _count_rows(path: Path) -> int:
    with path.open("rb") as file:
        rows = sum(1 for _ in file)
    if not rows:
        raise UserError("there are no rows to capture", where=str(path), fix="dvc repro filter")
    return rows


def _examples(
    lines: Sequence[bytes], sources: Sources, limit: LengthLimit
) -> tuple[list[Example], dict[str, Example]]:
    """Return rows, and those with a `teacher_prompt` as the teacher reads them."""
    rows = [Response.model_validate_json(line) for line in lines]
    examples = examples_of(rows, limit.apply(encode_all(sources.tokenizer, rows)))
    return examples, teacher_examples(sources.tokenizer, rows, examples)


def _summary(figures: Sequence[dict[str, float]], folder: Path) -> dict[str, float]:
    # a shard of which all rows were too long has no figures of the form
    names = dict.fromkeys(name for each in figures for name in each)
    total = {name: sum(each.get(name, 0.0) for each in figures) for name in names}
    rows, tokens, _ = (total.pop(name) for name in ("rows", "tokens", WITH_ANSWERS))
    size = sum(path.stat().st_size for path in folder.glob("*.bin"))
    means = {name: round(value / max(tokens, 1), 4) for name, value in total.items()}
    per_token = round(size / max(tokens, 1), 1)
    return {"rows": rows, "tokens": tokens, "bytes_per_token": per_token} | means


class CaptureProgress:
    """Progress of a capture: rows done, and tokens a second."""

    def __init__(self, label: str, rows: int) -> None:
        self.label = label
        self._meter = Meter(label, rows)
        self._start, self._tokens = time.monotonic(), 0

    def advance(self, batch: Sequence[Example]) -> None:
        """Count the rows of a finished batch."""
        self._tokens += sum(len(row.ids) for row in batch)
        speed = self._tokens / max(time.monotonic() - self._start, 1e-9)
        self._meter.advance(len(batch), note=f"{speed:,.0f} tokens/s")

    def skip(self, rows: int) -> None:
        """Count rows that an earlier capture finished."""
        self._meter.skip(rows)

    def finish(self) -> None:
        """Report the final count."""
        self._meter.finish()
