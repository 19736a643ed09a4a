"""Continuous batching: the next prompt takes the slot of a row that has ended.

For answers of different length. Where all rows of a batch start together, a few long answers keep
it going while it shrinks to rows too few to keep the processor busy. Here rows end and begin at
different times and are at different positions: each is aligned to the right of one cache, what lies
left of it is masked, and it has position ids of its own. Masked keys have weight 0, so that greedy
answers are those of one-by-one decoding (token-identical in float32).

Longest prompts first: no prompt is then ever longer than the cache. Its columns left of all rows
are cut off now and then.
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

_TOGETHER = 8  # new prompts are read once one slot in so many is free: a pass for each costs more
_SLACK = 1.25  # the cache is cut once it has so many times the columns that it needs


def can_batch_continuously(model: "PreTrainedModel") -> bool:
    """Say whether a model's rows can sit at different positions of one cache."""
    parameters = inspect.signature(model.forward).parameters
    plain = all(type(layer) is PreallocatedLayer for layer in preallocated_cache(model).layers)
    return plain and "position_ids" in parameters and "attention_mask" in parameters


def decode_continuously(
    model: "PreTrainedModel",
    rows: list[ActiveRow],
    slots: int,
    finished: Callable[[ActiveRow], bool],
    append: Callable[[list[ActiveRow], "Tensor"], None],
) -> None:
    """Decode all rows, `slots` of them at a time.

    Args:
        model: one that `can_batch_continuously`.
        rows: the requests.
        slots: most rows in memory.
        finished: says whether a row has ended.
        append: appends the next token to some rows, given their logits (B, V).
    """
    waiting = deque(sorted(rows, key=lambda row: -len(row.prompt)))  # stable: the same each time
    batch = _Slots(model, [waiting.popleft() for _ in range(min(slots, len(waiting)))], append)
    while True:
        free = [n for n, row in enumerate(batch.rows) if finished(row)]
        if waiting and len(free) * _TOGETHER >= slots:
            # all free slots at once, or as many as prompts are left
            places = free[: len(waiting)]
            batch.refill(places, [waiting.popleft() for _ in places])
            continue  # some may have ended with their first token
        if len(free) == len(batch.rows):
            return
        # no prompt left: the batch shrinks, now and then, as each cut copies the cache
        if not waiting and len(free) >= (1 - COMPACT_BELOW) * len(batch.rows):
            batch.keep([n for n, row in enumerate(batch.rows) if not finished(row)])
            free = []
        batch.step(sorted(set(range(len(batch.rows))) - set(free)))


class _Slots:
    """The slots: a row in each, and the cache that they share."""

    def __init__(
        self,
        model: "PreTrainedModel",
        rows: list[ActiveRow],
        append: Callable[[list[ActiveRow], "Tensor"], None],
    ) -> None:
        self.model, self.rows, self.append = model, rows, append
        self.cache, self.mask_BS = self._read(rows)

    def refill(self, places: list[int], rows: list[ActiveRow]) -> None:
        """Read new prompts into the slots at `places`."""
        cache, new_BS = self._read(rows)
        for place, row in zip(places, rows, strict=True):
            self.rows[place] = row
        # the newest token of a row is not in the cache before the next step
        needed = max(len(row.prompt) + len(row.generated) - 1 for row in self.rows)
        if self.mask_BS.shape[1] > _SLACK * needed:
            self.mask_BS = self.mask_BS[:, -needed:]
            for layer in self.cache.layers:
                layer.cut(needed)
        # aligned to the right, where all rows have their newest token
        self.mask_BS[places] = F.pad(new_BS, (self.mask_BS.shape[1] - new_BS.shape[1], 0))
        for layer, new in zip(self.cache.layers, cache.layers, strict=True):
            layer.put(places, new)

    def keep(self, places: list[int]) -> None:
        """Keep these slots alone."""
        kept = torch.tensor(places, device=self.model.device)
        self.rows, self.mask_BS = [self.rows[n] for n in places], self.mask_BS[kept]
        self.cache.batch_select_indices(kept)

    def step(self, active: list[int]) -> None:
        """Decode the next token of the rows at `active`; the others have ended and stay unread."""
        # one column for all, also for slots whose row has ended: what they compute is not read
        self.mask_BS = F.pad(self.mask_BS, (0, 1), value=1)
        ids_B = torch.tensor([row.generated[-1] for row in self.rows], device=self.model.device)
        position_B = self.mask_BS.new_tensor(
            [len(row.prompt) + len(row.generated) - 1 for row in self.rows]
        )
        logits_BV = self._logits(ids_B[:, None], self.mask_BS, position_B[:, None], self.cache)
        self.append([self.rows[n] for n in active], logits_BV[active])

    def _read(self, rows: list[ActiveRow]) -> "tuple[DynamicCache, Tensor]":
        """Read prompts, the longest first, and append the first token of each."""
        cache, width = preallocated_cache(self.model), len(rows[0].prompt)
        padded = [[0] * (width - len(row.prompt)) + row.prompt for row in rows]
        mask = [[0] * (width - len(row.prompt)) + [1] * len(row.prompt) for row in rows]
        ids_BS, mask_BS = (torch.tensor(x, device=self.model.device) for x in (padded, mask))
        # each row counts from its own first token; padding gets 0, and is masked
        position_BS = (mask_BS.cumsum(-1) - 1).clamp(min=0)
        self.append(rows, self._logits(ids_BS, mask_BS, position_BS, cache))
        return cache, mask_BS

    def _logits(
        self, ids_BS: "Tensor", mask_BS: "Tensor", position_BS: "Tensor", cache: "DynamicCache"
    ) -> "Tensor":
        out = self.model(
            input_ids=ids_BS,
            attention_mask=mask_BS,
            position_ids=position_BS,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits_BV: Tensor = out.logits[:, -1].float()
        return logits_BV
