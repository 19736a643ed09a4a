"""Batched decoding with slot refill: a finished row's slot is taken by the next prompt.

For answers of unlike length. Where all rows of a batch start together, a few long answers hold it
up while it shrinks to rows too few to keep the processor busy. Here rows end and begin at different
times, so they sit at different positions: each is aligned to the right of one cache, what lies left
of it is masked, and its position ids are its own. Masked keys weigh nothing, so that greedy answers
are those of one-by-one decoding (token-identical in float32).

Longest prompts first: no prompt is then ever longer than the cache. Its columns left of all rows
are cut off now and then.

Shapes: B slots, S columns of the cache, V vocabulary.
"""

import inspect
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from cohobate.generation.active_rows import COMPACT_BELOW, ActiveRow
from cohobate.generation.kv_cache import PreallocatedLayer, preallocated_cache

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel
    from transformers.cache_utils import DynamicCache

_TOGETHER = 8  # new prompts are read once one slot in so many is free
_SLACK = 1.25  # times the columns that are needed, from which the cache is cut


def can_batch_continuously(model: "PreTrainedModel") -> bool:
    """Say whether a model's rows can sit at different positions of one cache."""
    takes = inspect.signature(model.forward).parameters
    plain = all(type(layer) is PreallocatedLayer for layer in preallocated_cache(model).layers)
    return plain and "position_ids" in takes and "attention_mask" in takes


def decode_continuously(
    model: "PreTrainedModel",
    rows: list[ActiveRow],
    slots: int,
    finished: Callable[[ActiveRow], bool],
    write: Callable[[list[ActiveRow], "Tensor"], None],
) -> None:
    """Answer all rows, `slots` of them at a time.

    Args:
        model: a model that `can_refill`.
        rows: prompts to be answered.
        slots: most rows in memory.
        finished: says whether an answer has ended.
        write: adds the next id to each of some rows, given their logits (B, V).
    """
    waiting = deque(sorted(rows, key=lambda row: -len(row.prompt)))  # stable: the same each time
    table = _Table(model, [waiting.popleft() for _ in range(min(slots, len(waiting)))], write)
    while True:
        free = [n for n, row in enumerate(table.rows) if finished(row)]
        if waiting and len(free) * _TOGETHER >= slots:
            places = free[: len(waiting)]
            table.refill(places, [waiting.popleft() for _ in places])
            continue  # some may have ended with their first token
        if len(free) == len(table.rows):
            return
        if not waiting and len(free) >= (1 - COMPACT_BELOW) * len(table.rows):
            table.keep([n for n, row in enumerate(table.rows) if not finished(row)])
            free = []
        table.step(sorted(set(range(len(table.rows))) - set(free)))


class _Table:
    """The slots: a row in each, and the cache that they share."""

    def __init__(
        self,
        model: "PreTrainedModel",
        rows: list[ActiveRow],
        write: Callable[[list[ActiveRow], "Tensor"], None],
    ) -> None:
        self.model, self.rows, self.write = model, rows, write
        self.cache, self.seen_BS = self._read(rows)

    def refill(self, places: list[int], rows: list[ActiveRow]) -> None:
        """Read new prompts into the slots at `places`."""
        cache, new_BS = self._read(rows)
        for place, row in zip(places, rows, strict=True):
            self.rows[place] = row
        needed = max(len(row.prompt) + len(row.written) - 1 for row in self.rows)
        if self.seen_BS.shape[1] > _SLACK * needed:
            self.seen_BS = self.seen_BS[:, -needed:]
            for layer in self.cache.layers:
                layer.cut(needed)
        self.seen_BS[places] = F.pad(new_BS, (self.seen_BS.shape[1] - new_BS.shape[1], 0))
        for layer, new in zip(self.cache.layers, cache.layers, strict=True):
            layer.put(places, new)

    def keep(self, places: list[int]) -> None:
        """Give the other slots up."""
        kept = torch.tensor(places, device=self.model.device)
        self.rows, self.seen_BS = [self.rows[n] for n in places], self.seen_BS[kept]
        self.cache.batch_select_indices(kept)

    def step(self, live: list[int]) -> None:
        """Write the next token of the rows at `live`; the others have ended and are carried."""
        self.seen_BS = F.pad(self.seen_BS, (0, 1), value=1)
        ids_B = torch.tensor([row.written[-1] for row in self.rows], device=self.model.device)
        position_B = self.seen_BS.new_tensor(
            [len(row.prompt) + len(row.written) - 1 for row in self.rows]
        )
        logits_BV = self._logits(ids_B[:, None], self.seen_BS, position_B[:, None], self.cache)
        self.write([self.rows[n] for n in live], logits_BV[live])

    def _read(self, rows: list[ActiveRow]) -> "tuple[DynamicCache, Tensor]":
        """Read prompts, the longest first, and write the first token of each."""
        cache, width = preallocated_cache(self.model), len(rows[0].prompt)
        padded = [[0] * (width - len(row.prompt)) + row.prompt for row in rows]
        seen = [[0] * (width - len(row.prompt)) + [1] * len(row.prompt) for row in rows]
        ids_BS, seen_BS = (torch.tensor(x, device=self.model.device) for x in (padded, seen))
        position_BS = (seen_BS.cumsum(-1) - 1).clamp(min=0)
        self.write(rows, self._logits(ids_BS, seen_BS, position_BS, cache))
        return cache, seen_BS

    def _logits(
        self, ids_BS: "Tensor", seen_BS: "Tensor", position_BS: "Tensor", cache: "DynamicCache"
    ) -> "Tensor":
        out = self.model(
            input_ids=ids_BS,
            attention_mask=seen_BS,
            position_ids=position_BS,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits_BV: Tensor = out.logits[:, -1].float()
        return logits_BV
