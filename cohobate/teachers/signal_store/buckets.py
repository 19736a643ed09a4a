"""Stored signals of more ids than a student has: what is lost goes to the bucket of all others.

Shapes: N tokens, K stored ids, T temperatures.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def with_lost(
    rest_logprob_NQ: Tensor, logp_NK: Tensor, lacks_NK: Tensor, temperatures: Sequence[float]
) -> Tensor:
    """Return log Σ p^(1/T) over the other ids, those among them that the student lacks."""
    lost = [(logp_NK / t).masked_fill(~lacks_NK, -torch.inf).logsumexp(-1) for t in temperatures]
    return rest_logprob_NQ.logaddexp(torch.stack(lost, -1))


def unused(ids_NK: Tensor, lacks_NK: Tensor, size: int) -> Tensor:
    """Return ids that no place of the row has yet, one for each place that lacks its own.

    The highest ids of a byte-pair vocabulary were merged last: they are the rarest.
    """
    k = ids_NK.shape[1]
    rare = torch.arange(size - 2 * k, size)  # of these at least k are free in every row
    taken = torch.zeros(len(ids_NK), 2 * k + 1, dtype=torch.bool)
    taken.scatter_(1, (ids_NK - rare[0] + 1).clamp_min(0), True)
    free_NK = rare[taken[:, 1:].to(torch.uint8).argsort(dim=1, stable=True)[:, :k]]
    return free_NK.gather(1, (lacks_NK.cumsum(1) - 1).clamp_min(0))
