"""Top-k signals of a teacher that has more ids than the student: the bucket of all other ids."""

from collections.abc import Sequence

import torch
from torch import Tensor


def with_mass_of(
    chosen_NK: Tensor, logp_NK: Tensor, rest_logprob_NQ: Tensor, temperatures: Sequence[float]
) -> Tensor:
    """Return log Σ p^(1/T) over the bucket once the chosen of the K ids belong to it, (N, Q)."""
    chosen = [(logp_NK / t).masked_fill(~chosen_NK, -torch.inf).logsumexp(-1) for t in temperatures]
    return rest_logprob_NQ.logaddexp(torch.stack(chosen, -1))


def unused_ids(ids_NK: Tensor, lacks_NK: Tensor, size: int) -> Tensor:
    """Return ids that are not among a token's K, one for each place where `lacks_NK` is true.

    The highest ids of a byte-pair vocabulary were merged last: they are the rarest.
    """
    k = ids_NK.shape[1]
    rare = torch.arange(size - 2 * k, size)  # at least k of these 2 k are free in every row
    # column 0 collects the ids below them, and is dropped
    taken = torch.zeros(len(ids_NK), 2 * k + 1, dtype=torch.bool)
    taken.scatter_(1, (ids_NK - rare[0] + 1).clamp_min(0), True)
    # a stable sort puts the free ones first
    free_NK = rare[taken[:, 1:].to(torch.uint8).argsort(dim=1, stable=True)[:, :k]]
    # the first place that lacks an id takes the first free one, and so on
    return free_NK.gather(1, (lacks_NK.cumsum(1) - 1).clamp_min(0))
