"""Weights of the tokens of an update whose rows have several targets.

The loss is the sum over the targets of λ times the mean loss of that target's own tokens (Hsieh et
al. 2023, "Distilling Step-by-Step", equation 3), so that a long rationale does not outweigh a short
answer. Elsewhere the loss is the mean over all tokens, which is the same with one target.

Shapes: N valid tokens, G targets.
"""

from collections.abc import Sequence
from typing import Any

import torch

from cohobate import processes
from cohobate.data.examples import Example


class TargetWeights:
    """The targets of a training run, and the weight that each token's loss gets."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self.targets = sorted({example.target for example in examples})
        self.needed = any(example.target or example.weight != 1 for example in examples)

    def put(self, batches: Sequence[dict[str, Any]], rows: Sequence[Sequence[Example]]) -> None:
        """Give each micro-batch of an update its `weight_N`; `rows` are those of each."""
        if not self.needed:
            return
        counts_G = torch.zeros(len(self.targets))
        for row in (row for some in rows for row in some):
            counts_G[self.targets.index(row.target)] += row.length
        counts_G = processes.all_reduce_sum(counts_G)
        scales = (counts_G.sum() / counts_G.clamp_min(1)).tolist()
        for batch, some in zip(batches, rows, strict=True):
            weights = [row.weight * scales[self.targets.index(row.target)] for row in some]
            lengths = torch.tensor([row.length for row in some])
            batch["weight_N"] = torch.tensor(weights).repeat_interleave(lengths)
