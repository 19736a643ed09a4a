"""One pass of a teacher over rows: only its hidden rows at the answers go through the head.

Shapes: B batch, S sequence, N valid tokens, D width, V vocabulary, K stored ids, T temperatures.
"""

import functools
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from tasks import checkpoints
from tasks.batches import Example, examples_of
from tasks.errors import UserError
from tasks.heads import Head
from tasks.progress import Meter
from tasks.records import Response, read_rows
from tasks.side_by_side import side_by_side
from tasks.signals import Origin, Shard, SignalWriter, vocabulary_hash
from tasks.text import encode_all, pad_right

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from tasks.capture.stage import CaptureParams

_ROWS_AT_ONCE = 4096


def capture_signals(
    teacher: Path, rows: Path, folder: Path, capture: "CaptureParams", *, what: str
) -> dict[str, float]:
    """Write the signal store of one teacher over the rows of a file; return the key figures.

    Raises:
        UserError: no rows, or a damaged checkpoint.
    """
    model, tokenizer = checkpoints.load(teacher, precision=capture.precision)
    model = model.to("cuda" if torch.cuda.is_available() else "cpu")  # type: ignore[arg-type]
    head = Head.of(model, len(tokenizer))
    origin = Origin(
        teacher=checkpoints.fingerprint(teacher),
        tokenizer=vocabulary_hash(tokenizer),
        vocabulary=len(head.weight_VD),
        top_k=min(capture.top_k, len(head.weight_VD)),
        temperatures=capture.temperatures,
    )
    examples = list(_examples(tokenizer, rows))
    if not examples:
        raise UserError("there are no rows to capture", where=str(rows), mend="dvc repro filter")
    meter, kept_mass = Meter(what, len(examples)), 0.0
    with checkpoints.staged(folder) as partial, SignalWriter(partial, origin) as writer:
        look = functools.partial(signals_of, model, head, origin, capture.chunk_tokens)
        batches = batches_of(examples, capture.batch_tokens)
        for batch, shard in side_by_side(look, batches, capture.threads):
            writer.add(batch, shard)
            kept_mass += float(shard.logp_NK.exp().sum(dtype=torch.float64))
            meter.advance(len(batch))
    meter.finish()
    tokens = sum(row.length for row in examples)
    size = sum(path.stat().st_size for path in folder.glob("*.bin"))
    return {
        "rows": len(examples),
        "tokens": tokens,
        "top_k": origin.top_k,
        "mean_mass_of_top_k": round(kept_mass / max(tokens, 1), 4),
        "bytes_per_token": round(size / max(tokens, 1), 1),
    }


def _examples(tokenizer: "PreTrainedTokenizerBase", path: Path) -> Iterator[Example]:
    rows = read_rows(path, Response)
    while chunk := list(islice(rows, _ROWS_AT_ONCE)):
        yield from examples_of(chunk, encode_all(tokenizer, chunk))


def batches_of(examples: Sequence[Example], batch_tokens: int) -> Iterator[list[Example]]:
    """Yield the rows, longest first, in batches of at most so many tokens with their padding."""
    order = sorted(examples, key=lambda row: -len(row.ids))
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
) -> Shard:
    """Return the teacher's signals at the completions of a batch, row after row.

    Right padding under a causal mask: what is read never attends to padding.
    """
    ids_BS = pad_right([row.ids[:-1].tolist() for row in batch], 0).to(model.device)
    hidden_BSD = model.get_decoder()(input_ids=ids_BS, use_cache=False).last_hidden_state
    width = ids_BS.shape[1]
    at_N = np.concatenate(
        [np.arange(x.prompt_length, len(x.ids)) - 1 + n * width for n, x in enumerate(batch)]
    )
    hidden_ND = hidden_BSD.flatten(0, 1)[torch.from_numpy(at_N).to(model.device)]
    weight_VD = head.weight(hidden_ND.dtype)
    shards = [
        top_k_of(head.logits(rows_ND, weight_VD), origin.top_k, origin.temperatures)
        for rows_ND in hidden_ND.split(chunk_tokens)
    ]
    return Shard(*(torch.cat(parts).cpu() for parts in zip(*shards, strict=True)))


def top_k_of(logits_NV: Tensor, top_k: int, temperatures: Sequence[float]) -> Shard:
    """Return the most likely ids, their log-probabilities, and log Σ p^(1/T) over all others.

    The logits are overwritten: one pass of exp over V serves every temperature.
    """
    highest_NK, ids_NK = logits_NV.topk(top_k, -1)
    top_N1 = highest_NK[:, :1]
    others_NV = logits_NV.sub_(top_N1).exp_().scatter_(-1, ids_NK, 0)
    highest_NK = highest_NK - top_N1
    log_total_N1 = (others_NV.sum(-1, keepdim=True) + highest_NK.exp().sum(-1, keepdim=True)).log()
    leftover = [
        (others_NV if t == 1 else others_NV.pow(1 / t)).sum(-1).log() - log_total_N1[:, 0] / t
        for t in temperatures
    ]
    return Shard(ids_NK, highest_NK - log_total_N1, torch.stack(leftover, -1))
