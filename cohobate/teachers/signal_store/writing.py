"""Writing a signal store of rows whose signals somebody has, such as those of a teacher's answers.

Example:
    origin = Origin(form=StoredTopK(type="top_k", k=20), vocabulary=len(tokenizer), ...)
    signals = origin.form.signals(ids_NK, logp_NK, rest_logprob_N1)
    packed = origin.form.pack(signals, origin.vocabulary)
    write_store(Path("data/signals/main"), origin, tokenizer, [([example], packed)])
"""

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cohobate.data.examples import Example
from cohobate.teachers.signal_store.form import Packed
from cohobate.teachers.signal_store.shards import WORK, ShardWriter, publish
from cohobate.teachers.signal_store.store import Origin

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def write_store(
    folder: Path,
    origin: Origin,
    tokenizer: "PreTrainedTokenizerBase",
    batches: Iterable[tuple[Sequence[Example], Packed]],
    shard_rows: int = 8192,
) -> dict[str, float]:
    """Write and publish a store; what an earlier one at `folder` held is replaced.

    The batches stream: one of them is in memory.

    Args:
        folder: where the store is published.
        origin: what the signals were computed with; its form needs no head.
        tokenizer: the teacher's, whose ids the signals have.
        batches: rows, and the packed signals of all their learnt tokens, row after row.
        shard_rows: rows after which a shard ends.

    Returns:
        The rows and tokens that were written, and the sums of the form's statistics.

    Raises:
        UserError: two rows have the same key.
    """
    work = WORK / f"written-{folder.parent.name}-{folder.name}"
    shutil.rmtree(work, ignore_errors=True)
    shards: list[Path] = []
    total: dict[str, float] = {"rows": 0, "tokens": 0}
    rest = iter(batches)
    batch = next(rest, None)
    while batch is not None or not shards:
        shards.append(work / f"shard-{len(shards):05}")
        with ShardWriter(shards[-1], len(shards) - 1, origin) as writer:
            rows = 0
            while batch is not None and rows < shard_rows:
                writer.add_packed(*batch)
                rows += len(batch[0])
                batch = next(rest, None)
        for name, value in writer.figures.items():
            total[name] = total.get(name, 0.0) + value
    publish(shards, folder, origin, tokenizer)
    shutil.rmtree(work)
    return total
