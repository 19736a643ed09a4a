"""Capture: one forward pass of a teacher over rows, written to a signal store.

Only the hidden states at completion tokens go through the head. The rows stream: those of one shard
are in memory, whatever the size of the file.
"""

import functools
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from cohobate.data.examples import Example, completion_positions, examples_of
from cohobate.data.records import Response
from cohobate.data.row_length import LengthLimit
from cohobate.data.tokenized import encode_all, pad_right
from cohobate.errors import UserError
from cohobate.fast.forward_pass import forward
from cohobate.fast.frozen import load_frozen
from cohobate.models import checkpoints
from cohobate.models.lm_head import Head
from cohobate.models.number_formats import NumberFormat, resolve
from cohobate.models.vocabularies import template_hash, vocabulary_hash
from cohobate.progress import Meter, say
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
from cohobate.teachers.signal_store.store import Origin, row_hash
from cohobate.thread_map import thread_map

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def capture_signals(
    teacher: Path, rows: Path, folder: Path, capture: CaptureParams, *, label: str
) -> dict[str, float]:
    """Write the signal store of one teacher over the rows of a file.

    Shards that an earlier, killed capture finished are used again.

    Args:
        teacher: folder of the teacher's checkpoint.
        rows: a file of `Response` rows, JSON Lines.
        folder: where the store is published.
        capture: its settings.
        label: name of this run in the progress.

    Returns:
        Key figures: rows, tokens, bytes a token, and the form's statistics.

    Raises:
        UserError: there are no rows, all are too long, or the checkpoint is damaged.
    """
    device = checkpoints.accelerator()
    number_format = resolve(capture.precision, device)
    model, tokenizer = load_frozen(teacher, precision=number_format, device=device)
    head = Head.of(model, len(tokenizer))
    origin = _origin(teacher, head, tokenizer, capture, number_format)
    with rows.open("rb") as file:
        total = sum(1 for _ in file)
    if not total:
        raise UserError("there are no rows to capture", where=str(rows), fix="dvc repro filter")
    work = WORK / folder.name / capture_key(origin, rows, capture.decided_by())
    compute = functools.partial(compute_signals, model, head, origin, capture.chunk_tokens)
    progress, shards, figures = CaptureProgress(label, total), [], []
    limit = LengthLimit(capture.max_tokens, capture.too_long)
    for number, lines in enumerate(line_chunks(rows, capture.shard_rows)):
        # the name of a shard is its place in the file: a resumed capture finds it
        shards.append(work / f"shard-{number:05}")
        shard_figures = read_figures(shards[-1])
        if shard_figures is None:
            parsed = [Response.model_validate_json(line) for line in lines]
            examples = examples_of(parsed, limit.apply(encode_all(tokenizer, parsed)))
            with ShardWriter(shards[-1], number, origin) as writer:
                batches = batches_by_length(examples, capture.batch_tokens)
                for batch, signals in thread_map(compute, batches, capture.threads):
                    writer.add(batch, signals)
                    progress.advance(batch)
            shard_figures = writer.figures
        else:
            say(f"shard {number} is complete: its {shard_figures['rows']:.0f} rows are kept")
            progress.skip(len(lines))
        figures.append(shard_figures)
    limit.report(label)  # of the shards that were computed now
    rows_left = sum(int(each["rows"]) for each in figures)
    limit.refuse_none(rows_left, "params.yaml, capture.max_tokens")
    publish(shards, folder, origin, tokenizer, head)
    shutil.rmtree(WORK / folder.name)  # the store has links to these bytes, or copies
    progress.finish()
    return _summary(figures, folder)


def _origin(
    teacher: Path,
    head: Head,
    tokenizer: "PreTrainedTokenizerBase",
    capture: CaptureParams,
    number_format: NumberFormat,
) -> Origin:
    return Origin(
        teacher=checkpoints.fingerprint(teacher),
        tokenizer=vocabulary_hash(tokenizer),
        template=template_hash(tokenizer),
        vocabulary=len(head.weight_VD),
        width=head.weight_VD.shape[1],
        form=capture.signals.for_vocabulary(len(head.weight_VD)),
        number_format=number_format,
        logit_scale=head.scale,
        logit_softcap=head.softcap,
    )


def _summary(figures: Sequence[dict[str, float]], folder: Path) -> dict[str, float]:
    # a shard of which all rows were too long has no figures of the form
    names = dict.fromkeys(name for each in figures for name in each)
    total = {name: sum(each.get(name, 0.0) for each in figures) for name in names}
    rows, tokens = total.pop("rows"), total.pop("tokens")
    size = sum(path.stat().st_size for path in folder.glob("*.bin"))
    means = {name: round(value / max(tokens, 1), 4) for name, value in total.items()}
    per_token = round(size / max(tokens, 1), 1)
    return {"rows": rows, "tokens": tokens, "bytes_per_token": per_token} | means


class CaptureProgress:
    """Progress of a capture: rows done, and tokens a second."""

    def __init__(self, label: str, rows: int) -> None:
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


def batches_by_length(examples: Sequence[Example], batch_tokens: int) -> Iterator[list[Example]]:
    """Yield the rows, longest first, in batches of at most `batch_tokens` tokens with padding."""
    # longest first: a batch is padded to its first row
    order = sorted(examples, key=lambda row: (-len(row.ids), row.key))
    start = 0
    while start < len(order):
        size = max(1, batch_tokens // len(order[start].ids))
        yield order[start : start + size]
        start += size


@torch.inference_mode()
def compute_signals(
    model: "PreTrainedModel",
    head: Head,
    origin: Origin,
    chunk_tokens: int,
    batch: Sequence[Example],
) -> Signals:
    """Return the teacher's signals at the completion tokens of a batch, row after row.

    Rows are padded on the right: under a causal mask no completion token attends to padding.
    """
    ids_BS = pad_right([row.ids[:-1].tolist() for row in batch], 0).to(model.device)
    hidden_ND = forward(
        model, ids_BS, completion_positions(batch, ids_BS.shape[1]).to(model.device)
    ).last_hidden_ND
    uniform_NU = torch.from_numpy(uniform_numbers(batch, origin)).to(model.device)
    chunks = (torch.split(x, chunk_tokens) for x in (hidden_ND, uniform_NU))
    parts = [origin.form.measure(head, *chunk) for chunk in zip(*chunks, strict=True)]
    return {name: torch.cat([part[name] for part in parts]).cpu() for name in parts[0]}


def uniform_numbers(batch: Sequence[Example], origin: Origin) -> np.ndarray:
    """Return the uniform numbers that draw a batch's ids, (N, U); each row has its own."""
    form = origin.form
    return np.concatenate([form.uniform_numbers(row_hash(row.key), row.length) for row in batch])
