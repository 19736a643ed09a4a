"""The output head and the loss as one operation: no (B, S, V) tensor, and no second pass.

The valid rows are walked in chunks. Of each chunk the logits, the loss and its gradient with
respect to the hidden rows and the head's weight are computed at once in the forward pass, and the
logits are dropped: two products with the student's head (three where the head is trained, and one
more with a live teacher's) instead of the recomputation's one more each. The idea is that of Liger
Kernel's fused linear cross-entropy (Hsu et al. 2024). Products run in the model's precision, the
softmax in float32.

Shapes: N valid tokens, V vocabulary, D width, K stored ids, C outcomes (K + 1), T terms.
"""

# ruff: noqa: N815 (fields that are tensors carry shape suffixes too)

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tasks.divergences import Divergence, Hard, Term
from tasks.errors import UserError
from tasks.heads import Head

TINY = 1e-30
"""Stands for a probability of zero where its logarithm is taken."""


class TopK(NamedTuple):
    """Stored teacher distributions: the K most likely ids, and what is left for all others."""

    ids_NK: Tensor
    logp_NK: Tensor
    """Log-probabilities at T = 1."""
    leftover_NT: Tensor
    """For each of `temperatures`, log Σ p^(1/T) over the other ids."""
    temperatures: tuple[float, ...] = (1.0,)

    def at(self, temperature: float, tail: str) -> Tensor:
        """Return log p of the K ids and of the bucket of all others at a temperature, (N, C)."""
        scaled_NK = self.logp_NK / temperature
        if tail == "renormalise":
            empty_N1 = torch.full_like(scaled_NK[:, :1], TINY).log()
            return torch.cat([scaled_NK.log_softmax(-1), empty_N1], -1)
        if temperature not in self.temperatures:
            raise UserError(
                f"the stored signals have no leftover mass at temperature {temperature:g}",
                where=f"stored: {', '.join(f'{t:g}' for t in self.temperatures)}",
                mend=f"add {temperature:g} to capture.temperatures, or train at a stored one",
            )
        leftover_N = self.leftover_NT[:, self.temperatures.index(temperature)]
        outcomes_NC = torch.cat([scaled_NK, leftover_N[:, None]], -1)
        return outcomes_NC.log_softmax(-1).clamp_min(math.log(TINY))

    def rows(self, part: slice) -> "TopK":
        """Return the signals of some of the tokens."""
        some = (self.ids_NK[part], self.logp_NK[part], self.leftover_NT[part])
        return TopK(*some, self.temperatures)


class LiveTeacher(NamedTuple):
    """A teacher that is at hand: its last hidden rows and its head."""

    hidden_ND: Tensor
    head: Head

    def rows(self, part: slice) -> "LiveTeacher":
        """Return the hidden rows of some of the tokens."""
        return LiveTeacher(self.hidden_ND[part], self.head)


class Targets(NamedTuple):
    """What the student is to predict at each valid row."""

    ids_N: Tensor
    """The token that the training text has."""
    teacher: TopK | LiveTeacher | None = None

    def rows(self, part: slice) -> "Targets":
        """Return the targets of some of the tokens."""
        return Targets(self.ids_N[part], self.teacher and self.teacher.rows(part))


def fused_head_loss(
    hidden_ND: Tensor,
    head: Head,
    terms: Sequence[Term],
    targets: Targets,
    *,
    divisor: float | Tensor,
    chunk_tokens: int = 512,
) -> tuple[Tensor, Tensor]:
    """Return the loss, Σ over tokens and terms / `divisor`, and what each term gave per token.

    Differentiable with respect to the hidden rows and the head's weight and bias, whichever need
    it. Under autocast the products run in autocast's dtype, else in that of the hidden rows.

    Args:
        hidden_ND: the student's last hidden state at the valid positions alone.
        head: the student's head.
        terms: what the loss is made of.
        targets: what is to be predicted there.
        divisor: number of valid tokens of the whole update, over all micro-batches and workers.
        chunk_tokens: how many rows' logits exist at once; below 256 the products starve.

    Returns:
        The loss (a scalar), and weighted losses (N, T), detached.
    """
    loss, losses_NT = _FusedHead.apply(  # type: ignore[no-untyped-call]
        hidden_ND, head.weight_VD, head.bias_V, head, tuple(terms), targets, divisor, chunk_tokens
    )
    return loss, losses_NT


class _FusedHead(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0917
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        head: Head,
        terms: tuple[Term, ...],
        targets: Targets,
        divisor: float | Tensor,
        chunk_tokens: int,
    ) -> tuple[Tensor, Tensor]:
        device = hidden_ND.device.type
        dtype = hidden_ND.dtype
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
        wide = torch.promote_types(dtype, torch.float32)
        with torch.autocast(device, enabled=False):
            product_VD = head.weight(dtype)
            slope_ND = torch.empty_like(hidden_ND, dtype=dtype)
            slope_VD = _zeros(weight_VD, wide) if ctx.needs_input_grad[1] else None
            slope_V = _zeros(bias_V, wide) if ctx.needs_input_grad[2] else None
            losses_NT = hidden_ND.new_empty(len(hidden_ND), len(terms), dtype=wide)
            for start in range(0, len(hidden_ND), chunk_tokens):
                part = slice(start, start + chunk_tokens)
                rows_ND = hidden_ND[part].detach().to(dtype)
                logits_NV = head.logits(rows_ND, product_VD)
                capped_NV = logits_NV.clone() if head.softcap else logits_NV
                losses_NT[part], slope_NV = loss_and_slope(logits_NV, terms, targets.rows(part))
                slope_NV = head.slope_below(capped_NV, slope_NV).div_(divisor)
                if slope_V is not None:
                    slope_V += slope_NV.sum(0)
                slope_NV = slope_NV.to(dtype)
                slope_ND[part] = slope_NV @ product_VD
                if slope_VD is not None:
                    slope_VD += slope_NV.T @ rows_ND
        ctx.slopes = (slope_ND.to(hidden_ND.dtype), slope_VD, slope_V)
        ctx.mark_non_differentiable(losses_NT)
        return losses_NT.sum() / divisor, losses_NT

    @staticmethod
    def backward(ctx: Any, slope: Tensor, _: Tensor) -> Any:  # type: ignore[override]
        slopes = [None if s is None else s * slope for s in ctx.slopes]
        return *slopes, None, None, None, None, None


def _zeros(like: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if like is None else torch.zeros_like(like, dtype=dtype)


def loss_and_slope(
    logits_NV: Tensor, terms: Sequence[Term], targets: Targets
) -> tuple[Tensor, Tensor]:
    """Return the weighted loss of each term (N, T) and the slope of their sum, d/d logits (N, V).

    Terms of one temperature share their softmax. The logits are overwritten.
    """
    groups = defaultdict(list)
    for number, term in enumerate(terms):
        groups[1.0 if isinstance(term, Hard) else term.softmax_temperature].append(number)
    losses_NT = logits_NV.new_empty(len(logits_NV), len(terms))
    slope_NV = None
    for temperature, numbers in groups.items():
        some = [terms[n] for n in numbers]
        last = temperature == next(reversed(groups))
        scaled_NV = logits_NV.div_(temperature) if last else logits_NV / temperature
        dense = isinstance(targets.teacher, LiveTeacher) and any(_is_soft(t) for t in some)
        against = _against_live if dense else _against_stored
        losses, slope = against(scaled_NV, some, targets, temperature)
        losses_NT[:, numbers] = torch.stack(losses, -1)
        slope = slope.div_(temperature) if temperature != 1 else slope
        slope_NV = slope if slope_NV is None else slope_NV.add_(slope)
    assert slope_NV is not None, "a loss needs at least one term"
    return losses_NT, slope_NV


def _is_soft(term: Term) -> bool:
    return isinstance(term, Divergence)


def _against_live(
    logits_NV: Tensor, terms: list[Term], targets: Targets, temperature: float
) -> tuple[list[Tensor], Tensor]:
    teacher = targets.teacher
    assert isinstance(teacher, LiveTeacher)
    weight_VD = teacher.head.weight(teacher.hidden_ND.dtype)
    logp_NV = teacher.head.logits(teacher.hidden_ND, weight_VD).div_(temperature).log_softmax(-1)
    logq_NV = logits_NV.log_softmax(-1)
    losses, hard, slope_NV = [], 0.0, torch.zeros_like(logq_NV)
    for term in terms:
        if isinstance(term, Hard):
            losses.append(-term.weight * logq_NV.gather(-1, targets.ids_N[:, None])[:, 0])
            hard += term.weight
            continue
        scale = term.weight * term.temperature**2
        loss_N, slope = term.over_outcomes(logp_NV, logq_NV)
        losses.append(loss_N * scale)
        slope_NV.add_(slope, alpha=scale)
    # d log q_j/d z_i = [i = j] − q_i
    slope_NV.addcmul_(logq_NV.exp_(), hard - slope_NV.sum(-1, keepdim=True))
    return losses, _minus_label(slope_NV, targets.ids_N, hard)


def _against_stored(
    logits_NV: Tensor, terms: list[Term], targets: Targets, temperature: float
) -> tuple[list[Tensor], Tensor]:
    """Loss and slope through K + 1 outcomes: only one pass of exp and one of scaling touch V.

    With g = d loss/d log q over the outcomes, G = Σ g, and q_rest = Σ of q outside the K ids:
    d loss/d z_i is g_i − q_i G for a stored id, and q_i (g_rest/q_rest − G) for any other. The
    rest is summed, not taken as 1 − Σ q_k, which would cancel.
    """
    ids_NK = targets.ids_N.new_empty(len(logits_NV), 0)
    if any(_is_soft(term) for term in terms):
        if not isinstance(targets.teacher, TopK):
            raise UserError("a soft term needs a teacher's distributions", where="terms")
        ids_NK = targets.teacher.ids_NK
    top_N1 = logits_NV.amax(-1, keepdim=True)
    label_N1 = logits_NV.gather(-1, targets.ids_N[:, None]) - top_N1
    stored_NK = logits_NV.gather(-1, ids_NK) - top_N1
    exp_NV = logits_NV.sub_(top_N1).exp_().scatter_(-1, ids_NK, 0)
    rest_N1 = exp_NV.sum(-1, keepdim=True).clamp_min_(TINY)
    total_N1 = rest_N1 + stored_NK.exp().sum(-1, keepdim=True)
    logq_NC = torch.cat([stored_NK, rest_N1.log()], -1) - total_N1.log()
    losses, hard, slope_NC = [], 0.0, torch.zeros_like(logq_NC)
    for term in terms:
        if isinstance(term, Hard):
            losses.append(-term.weight * (label_N1 - total_N1.log())[:, 0])
            hard += term.weight
            continue
        assert isinstance(targets.teacher, TopK)
        scale = term.weight * term.temperature**2
        logp_NC = targets.teacher.at(temperature, term.tail).to(logq_NC.dtype)
        loss_N, slope = term.over_outcomes(logp_NC, logq_NC)
        losses.append(loss_N * scale)
        slope_NC.add_(slope, alpha=scale)
    pull_N1 = hard - slope_NC.sum(-1, keepdim=True)
    slope_NV = exp_NV.mul_(slope_NC[:, -1:] / rest_N1 + pull_N1 / total_N1)
    slope_NV.scatter_(-1, ids_NK, slope_NC[:, :-1] + logq_NC[:, :-1].exp() * pull_N1)
    return losses, _minus_label(slope_NV, targets.ids_N, hard)


def _minus_label(slope_NV: Tensor, ids_N: Tensor, hard: float) -> Tensor:
    if hard:
        slope_NV.scatter_add_(-1, ids_N[:, None], torch.full_like(slope_NV[:, :1], -hard))
    return slope_NV
