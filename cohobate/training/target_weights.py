"""Token weights of updates whose rows have weights, or auxiliary targets such as rationales.

The loss is the sum over the targets of λ times the mean loss of that target's own tokens (Hsieh et
al. 2023, "Distilling Step-by-Step", equation 3), so that a long rationale does not outweigh a short
answer. Elsewhere the loss is the mean over all tokens, which is the same with one target.
"""

from collections.abc import Sequence
from typing import Any

import torch

from cohobate import processes
from cohobate.data.examples import Example


class TargetWeights:
    """The auxiliary targets of a training run, and the weight of each token's loss."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self.targets = sorted({example.target for example in examples})
        self.needed = any(example.target or example.weight != 1 for example in examples)

    def add_to(self, batches: Sequence[dict[str, Any]], rows: Sequence[Sequence[Example]]) -> None:
        """Add `weight_N` to each micro-batch of an update; `rows` are the rows of each.

        G counts the targets.
        """
        if not self.needed:
            return
        counts_G = torch.zeros(len(self.targets))
        for row in (row for batch_rows in rows for row in batch_rows):
            counts_G[self.targets.index(row.target)] += row.length
        counts_G = processes.all_reduce_sum(counts_G)
        # the loss divides by all T tokens: T / T_g makes it the mean over the T_g of a target
        scales = (counts_G.sum() / counts_G.clamp_min(1)).tolist()
        for batch, batch_rows in zip(batches, rows, strict=True):
            weights = [row.weight * scales[self.targets.index(row.target)] for row in batch_rows]
            lengths = torch.tensor([row.length for row in batch_rows])
            batch["weight_N"] = torch.tensor(weights).repeat_interleave(lengths)
