"""Rows of a batch while they are decoded: their tokens so far, and the choice of the next one."""

import random
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from cohobate.generation.requests import Completion, Decoding, Request

if TYPE_CHECKING:
    from torch import Tensor

COMPACT_BELOW = 0.75
"""Finished rows leave the batch once no more than this share of it is active."""


class ActiveRow:
    """A request and the tokens generated for it so far."""

    def __init__(self, request: Request, max_tokens: int, decoding: Decoding) -> None:
        self.prompt, self.max_tokens = request.ids, max_tokens
        self.generated: list[int] = []
        self.logprobs: list[float] = []
        self.signals: list[Mapping[str, Tensor]] = []
        # of the prompt and sample alone: the batch does not decide what is drawn
        self.rng = random.Random(f"{decoding.seed}/{request.draw}")

    def finished(self, stop: frozenset[int]) -> bool:
        """Say whether the completion has ended."""
        return len(self.generated) >= self.max_tokens or self._stopped(stop)

    def completion(self, stop: frozenset[int]) -> Completion:
        """Return the generated tokens."""
        mean = sum(self.logprobs) / len(self.logprobs) if self.logprobs else None
        finish: Literal["stop", "length"] = "stop" if self._stopped(stop) else "length"
        return Completion(self.generated, finish, mean, self.signals)

    def _stopped(self, stop: frozenset[int]) -> bool:
        return bool(self.generated) and self.generated[-1] in stop


def append_tokens(rows: list[ActiveRow], logits_BV: "Tensor", decoding: Decoding) -> None:
    """Choose the next token of each row and append it."""
    logp_BV = logits_BV.log_softmax(-1)
    if decoding.temperature == 0:
        token_B = logits_BV.argmax(-1)  # of the logits: rounding in log_softmax can make a tie
    else:
        token_B = _sampled(logits_BV, decoding, [row.rng.random() for row in rows])
    token_logp = logp_BV.gather(1, token_B[:, None])[:, 0].tolist()
    for row, token, logprob in zip(rows, token_B.tolist(), token_logp, strict=True):
        row.generated.append(token)
        row.logprobs.append(logprob)


def append_signals(rows: list[ActiveRow], signals: "Mapping[str, Tensor]") -> None:
    """Append to each row what was measured of the distribution of its next token."""
    for row, *values in zip(rows, *(each.unbind() for each in signals.values()), strict=True):
        row.signals.append(dict(zip(signals, values, strict=True)))


def _sampled(logits_BV: "Tensor", decoding: Decoding, draws: list[float]) -> "Tensor":
    """Sample by the inverse of the cumulative distribution, with one random number a row.

    In float64: in float32 the sum over a large vocabulary is not exact enough.
    """
    import torch

    falling = (logits_BV.double() / decoding.temperature).softmax(-1).sort(dim=-1, descending=True)
    # the ids before it have top_p already; the one that crosses it stays in
    outside_BV = falling.values.cumsum(-1) - falling.values >= decoding.top_p
    mass_BV = falling.values.masked_fill(outside_BV, 0.0).cumsum(-1)
    drawn_B1 = torch.tensor(draws, dtype=torch.float64, device=logits_BV.device)[:, None]
    # drawn · Σ of what is left stands in for a normalisation; right: no draw hits an id of no mass
    rank_B1 = torch.searchsorted(mass_BV, drawn_B1 * mass_BV[:, -1:], right=True)
    # rounding must not point behind the last id that is left
    last_B1 = (~outside_BV).sum(-1, keepdim=True) - 1
    return falling.indices.gather(1, torch.minimum(rank_B1, last_B1))[:, 0]
