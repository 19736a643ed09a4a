"""One pass of a teacher over rows: only its hidden rows at the answers go through the head.

The rows stream: those of one shard are in memory, whatever the size of the file.

Shapes: B batch, S sequence, N valid tokens, D width, G draws.
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
from cohobate.data.tokenized import encode_all, pad_right
from cohobate.errors import UserError
from cohobate.fast.frozen import load_frozen
from cohobate.fast.padding_free import last_hidden
from cohobate.models import checkpoints
from cohobate.models.lm_head import Head
from cohobate.models.number_formats import NumberFormat, resolve
from cohobate.models.vocabularies import template_hash, vocabulary_hash
from cohobate.progress import Meter, say
from cohobate.teachers.signal_store.forms import Signals
from cohobate.teachers.signal_store.settings import CaptureParams
from cohobate.teachers.signal_store.shards import (
    WORK,
    ShardWriter,
    figures_of,
    key_of,
    publish,
    windows,
)
from cohobate.teachers.signal_store.store import Origin, row_hash
from cohobate.thread_map import thread_map

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def capture_signals(
    teacher: Path, rows: Path, folder: Path, capture: CaptureParams, *, what: str
) -> dict[str, float]:
    """Write the signal store of one teacher over the rows of a file; return the key figures.

    Raises:
        UserError: no rows, or a damaged checkpoint.
    """
    device = checkpoints.accelerator()
    number_format = resolve(capture.precision, device)
    model, tokenizer = load_frozen(teacher, precision=number_format, device=device)
    head = Head.of(model, len(tokenizer))
    origin = _origin(teacher, head, tokenizer, capture, number_format)
    with rows.open("rb") as lines:
        total = sum(1 for _ in lines)
    if not total:
        raise UserError("there are no rows to capture", where=str(rows), fix="dvc repro filter")
    work = WORK / folder.name / key_of(origin, rows, capture.decided_by())
    look = functools.partial(signals_of, model, head, origin, capture.chunk_tokens)
    pace, shards, figures = Pace(what, total), [], []
    for number, lines_of_shard in enumerate(windows(rows, capture.shard_rows)):
        shards.append(work / f"shard-{number:05}")
        whole = figures_of(shards[-1])
        if whole is None:
            parsed = [Response.model_validate_json(line) for line in lines_of_shard]
            examples = examples_of(parsed, encode_all(tokenizer, parsed))
            with ShardWriter(shards[-1], number, origin) as writer:
                batches = batches_of(examples, capture.batch_tokens)
                for batch, signals in thread_map(look, batches, capture.threads):
                    writer.add(batch, signals)
                    pace.advance(batch)
            whole = writer.figures
        else:
            say(f"shard {number} is whole: {whole['rows']:.0f} rows need not be looked at again")
            pace.skip(len(lines_of_shard))
        figures.append(whole)
    publish(shards, folder, origin, tokenizer, head)
    shutil.rmtree(WORK / folder.name)
    pace.finish()
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
        form=capture.signals.fitted(len(head.weight_VD)),
        number_format=number_format,
        logit_scale=head.scale,
        logit_softcap=head.softcap,
    )


def _summary(figures: Sequence[dict[str, float]], folder: Path) -> dict[str, float]:
    total = {name: sum(each[name] for each in figures) for name in figures[0]}
    rows, tokens = total.pop("rows"), total.pop("tokens")
    size = sum(path.stat().st_size for path in folder.glob("*.bin"))
    means = {name: round(value / max(tokens, 1), 4) for name, value in total.items()}
    per_token = round(size / max(tokens, 1), 1)
    return {"rows": rows, "tokens": tokens, "bytes_per_token": per_token} | means


class Pace:
    """Tells how far the pass is, and how many tokens a second it takes."""

    def __init__(self, what: str, rows: int) -> None:
        self._meter = Meter(what, rows)
        self._start, self._tokens = time.monotonic(), 0

    def advance(self, batch: Sequence[Example]) -> None:
        """Note a batch as done."""
        self._tokens += sum(len(row.ids) for row in batch)
        pace = self._tokens / max(time.monotonic() - self._start, 1e-9)
        self._meter.advance(len(batch), note=f"{pace:,.0f} tokens/s")

    def skip(self, rows: int) -> None:
        """Note rows as done that were done before."""
        self._meter.skip(rows)

    def finish(self) -> None:
        """Report the final count."""
        self._meter.finish()


def batches_of(examples: Sequence[Example], batch_tokens: int) -> Iterator[list[Example]]:
    """Yield the rows, longest first, in batches of at most so many tokens with their padding."""
    order = sorted(examples, key=lambda row: (-len(row.ids), row.key))
    start = 0
    while start < len(order):
        size = max(1, batch_tokens // len(order[start].ids))
        yield order[start : start + size]
        start += size


@torch.inference_mode()
def signals_of(
    model: "PreTrainedModel",
    head: Head,
    origin: Origin,
    chunk_tokens: int,
    batch: Sequence[Example],
) -> Signals:
    """Return the teacher's signals at the completions of a batch, row after row.

    Right padding under a causal mask: what is read never attends to padding.
    """
    ids_BS = pad_right([row.ids[:-1].tolist() for row in batch], 0).to(model.device)
    hidden_ND = last_hidden(
        model, ids_BS, completion_positions(batch, ids_BS.shape[1]).to(model.device)
    )
    dice_NG = torch.from_numpy(rng_of(batch, origin)).to(model.device)
    split = (torch.split(x, chunk_tokens) for x in (hidden_ND, dice_NG))
    parts = [origin.form.measure(head, rows_ND, rng) for rows_ND, rng in zip(*split, strict=True)]
    return {name: torch.cat([part[name] for part in parts]).cpu() for name in parts[0]}


def rng_of(batch: Sequence[Example], origin: Origin) -> np.ndarray:
    """Return uniform numbers for the draws of a batch, (N, G): each row's are its own."""
    rolls = (origin.form.rng(row_hash(row.key), row.length) for row in batch)
    return np.concatenate(list(rolls))
