"""Rows of a batch while they are being decoded: what was written, and the choice of the next token.

Shapes: B rows, V vocabulary, K top-k.
"""

import random
from typing import TYPE_CHECKING

from cohobate.generation.requests import Completion, Decoding, Request

if TYPE_CHECKING:
    from torch import Tensor

COMPACT_BELOW = 0.75
"""Finished rows are cut out of the batch once only this share is still being written."""


class ActiveRow:
    """A request while it is being answered."""

    def __init__(self, request: Request, room: int, decoding: Decoding) -> None:
        self.prompt, self.room = request.ids, room
        self.written: list[int] = []
        self.logprobs: list[float] = []
        self.top: list[tuple[Tensor, Tensor]] = []
        self.rng = random.Random(f"{decoding.seed}/{request.draw}")

    def finished(self, stop: frozenset[int]) -> bool:
        """Say whether the answer has ended."""
        return len(self.written) >= self.room or (bool(self.written) and self.written[-1] in stop)

    def completion(self, stop: frozenset[int]) -> Completion:
        """Return what was written."""
        ended = bool(self.written) and self.written[-1] in stop
        mean = sum(self.logprobs) / len(self.logprobs) if self.logprobs else None
        return Completion(self.written, "stop" if ended else "length", mean, self.top)


def append_tokens(
    rows: list[ActiveRow], logits_BV: "Tensor", decoding: Decoding, top_k: int
) -> None:
    """Add the next id to each row."""
    logp_BV = logits_BV.log_softmax(-1)
    if decoding.temperature == 0:
        chosen_B = logits_BV.argmax(-1)  # not of logp, where rounding can make a tie
    else:
        chosen_B = _sampled(logits_BV, decoding, [row.rng.random() for row in rows])
    chosen_logp = logp_BV.gather(1, chosen_B[:, None])[:, 0].tolist()
    for row, token, logprob in zip(rows, chosen_B.tolist(), chosen_logp, strict=True):
        row.written.append(token)
        row.logprobs.append(logprob)
    if top_k:
        top_BK = logp_BV.topk(top_k, dim=-1)
        for row, ids_K, logp_K in zip(rows, top_BK.indices, top_BK.values, strict=True):
            row.top.append((ids_K, logp_K))


def _sampled(logits_BV: "Tensor", decoding: Decoding, draws: list[float]) -> "Tensor":
    """Draw by the inverse of the cumulative distribution: one number a row decides its token."""
    import torch

    falling = (logits_BV.double() / decoding.temperature).softmax(-1).sort(dim=-1, descending=True)
    outside_BV = falling.values.cumsum(-1) - falling.values >= decoding.top_p
    mass_BV = falling.values.masked_fill(outside_BV, 0.0).cumsum(-1)
    drawn_B1 = torch.tensor(draws, dtype=torch.float64, device=logits_BV.device)[:, None]
    rank_B1 = torch.searchsorted(mass_BV, drawn_B1 * mass_BV[:, -1:], right=True)
    last_B1 = (~outside_BV).sum(-1, keepdim=True) - 1
    return falling.indices.gather(1, torch.minimum(rank_B1, last_B1))[:, 0]
