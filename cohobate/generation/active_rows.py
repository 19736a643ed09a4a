"""Rows of a batch while they are decoded: their tokens so far, and the choice of the next one."""

import random
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from cohobate.generation.requests import Completion, Decoding, Request

if TYPE_CHECKING:
    from torch import Tensor

_LIKELIEST = 128
"""Ids among which a draw is looked for first."""
COMPACT_BELOW = 0.75
"""Finished rows leave the batch once no more than this share of it is active."""


class ActiveRow:
    """A request and the tokens generated for it so far."""

    def __init__(self, request: Request, max_tokens: int, decoding: Decoding) -> None:
        self.prompt, self.max_tokens, self.images = request.ids, max_tokens, request.images
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
        return Completion(self.generated, finish, mean, self.signals, self.logprobs)

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

    p_BV = (logits_BV.double() / decoding.temperature).softmax(-1)
    drawn_B1 = torch.tensor(draws, dtype=torch.float64, device=logits_BV.device)[:, None]
    total_B1 = p_BV.sum(-1, keepdim=True)
    # nearly every draw falls among the likeliest ids: sorting all ids takes ten times as long
    likeliest = p_BV.topk(min(_LIKELIEST, p_BV.shape[-1]))
    token_B, is_inside_B = _among(*likeliest, total_B1, drawn_B1, decoding.top_p)
    beyond = (~is_inside_B).nonzero()[:, 0]
    if len(beyond):
        everything = p_BV[beyond].sort(dim=-1, descending=True)
        rest_B, _ = _among(*everything, total_B1[beyond], drawn_B1[beyond], decoding.top_p)
        token_B[beyond] = rest_B
    return token_B


def _among(
    falling_p_BK: "Tensor",
    ids_BK: "Tensor",
    total_B1: "Tensor",
    drawn_B1: "Tensor",
    top_p: float,
) -> "tuple[Tensor, Tensor]":
    """Return the sampled ids (B,), and for each whether it is certain from these ids alone.

    Args:
        falling_p_BK: probabilities of the likeliest ids, or of all, falling, (B, K).
        ids_BK: the ids.
        total_B1: the mass of all ids.
        drawn_B1: random numbers from 0 to 1.
        top_p: share of the mass from which to sample.
    """
    import torch

    up_to_BK = falling_p_BK.cumsum(-1)
    # the ids before it have top_p already; the one that crosses it stays in
    outside_BK = up_to_BK - falling_p_BK >= top_p
    mass_BK = falling_p_BK.masked_fill(outside_BK, 0.0).cumsum(-1)
    is_cut_B = outside_BK[:, -1]
    # all that is left: known where top_p cuts within these ids, or cuts nothing
    left_B1 = torch.where(is_cut_B[:, None], mass_BK[:, -1:], total_B1)
    # drawn · Σ of what is left stands in for a normalisation; right: no draw hits an id of no mass
    rank_B1 = torch.searchsorted(mass_BK, drawn_B1 * left_B1, right=True)
    is_known_B = is_cut_B if top_p < 1 else torch.ones_like(is_cut_B)
    is_inside_B = is_known_B & (rank_B1[:, 0] < mass_BK.shape[-1])
    # rounding must not point behind the last id that is left
    last_B1 = (~outside_BK).sum(-1, keepdim=True) - 1
    return ids_BK.gather(1, torch.minimum(rank_B1, last_B1))[:, 0], is_inside_B
