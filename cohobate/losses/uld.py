"""Universal Logit Distillation: a student learns from a teacher of another tokenizer.

Both texts are cut where both tokenizers cut them; what lies between two such places is a group. The
distribution of a group is the one over its last token, times the probabilities of the tokens before
it (the chain rule), on either side. A token that has the same string in both vocabularies is
compared with itself, all others by rank.

Shapes: N valid tokens of the student, M of the teacher, G groups, V vocabulary (either side's),
J ids whose strings both have.
"""

# ruff: noqa: N815 (fields that are tensors carry shape suffixes too)

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

from pydantic import Field

from cohobate.losses.distances import kl, mixture
from cohobate.params import Section

if TYPE_CHECKING:
    from torch import Tensor

    from cohobate.losses.targets import Targets

TINY = 1e-8
"""The smallest probability whose logarithm is taken; sorted tails are full of zeros."""


class Side(NamedTuple):
    """One model's view of the groups."""

    log_NV: Tensor
    """Log-probabilities at its valid tokens, at the term's temperature."""
    ids_N: Tensor
    """The tokens of the text."""
    group_N: Tensor
    """Number of the group that each belongs to, from 0 and never falling."""

    @property
    def last_N(self) -> Tensor:  # noqa: N802
        """Whether a token is the last one of its group."""
        from torch.nn.functional import pad

        return pad(self.group_N[1:] != self.group_N[:-1], (0, 1), value=True)

    def merged(self) -> Tensor:
        """Return the probabilities of each group, (G, V)."""
        last_N = self.last_N
        label_N = self.log_NV.gather(-1, self.ids_N[:, None])[:, 0].masked_fill(last_N, 0)
        before_G = label_N.new_zeros(int(last_N.sum())).index_add(0, self.group_N, label_N)
        probabilities_GV: Tensor = (self.log_NV[last_N] + before_G[:, None]).exp()
        return probabilities_GV


class Uld(Section):
    """Σ |p − q| of sorted probabilities (ULD, Boizard et al. 2024, section 3); the strings that
    both vocabularies have are compared exactly, as in TRL's GOLD.

    With `shared: exact` the loss is w · JS over the shared strings + (1 − w) · L1 over the others
    sorted, w being the shared part of the teacher's vocabulary.
    """

    type: Literal["uld"]
    weight: float = Field(1.0, gt=0)
    """What this term counts in the sum of the terms."""
    temperature: float = Field(1.0, gt=0)
    """Of both softmaxes; no factor T², for this is no KL."""
    shared: Literal["exact", "sorted"] = "exact"
    """Compare what has the same string in both vocabularies directly, or everything by rank."""
    beta: float = Field(0.5, ge=0, le=1)
    """β of the Jensen-Shannon divergence over the shared strings (0 forward, 1 reverse KL)."""

    @property
    def softmax_temperature(self) -> float:
        """Temperature of the softmax."""
        return self.temperature

    def at(self, targets: Targets) -> Uld:
        """Return the term as it is at these tokens: the same."""
        return self

    def per_group(self, student: Side, teacher: Side, shared: tuple[Tensor, Tensor]) -> Tensor:
        """Return the loss of each group, (G,), without weight.

        Args:
            student: its view; differentiable.
            teacher: its view of the same groups.
            shared: the ids of the strings that both have, the student's and the teacher's, (J,).
        """
        q_GV, p_GV = student.merged(), teacher.merged()
        if self.shared == "sorted":
            return by_rank(q_GV, p_GV)
        matched_G = self._jensen_shannon(p_GV[:, shared[1]], q_GV[:, shared[0]])
        part = len(shared[0]) / p_GV.shape[-1]
        rest = (_without(x, ids) for x, ids in zip((q_GV, p_GV), shared, strict=True))
        return part * matched_G + (1 - part) * by_rank(*rest)

    def _jensen_shannon(self, p_GJ: Tensor, q_GJ: Tensor) -> Tensor:
        logp_GJ, logq_GJ = (x.clamp_min(TINY).log() for x in (p_GJ, q_GJ))
        if self.beta in (0, 1):
            return kl(logq_GJ, logp_GJ) if self.beta else kl(logp_GJ, logq_GJ)
        logm_GJ = mixture(logp_GJ, logq_GJ, self.beta)
        return self.beta * kl(logp_GJ, logm_GJ) + (1 - self.beta) * kl(logq_GJ, logm_GJ)


def by_rank(q_GV: Tensor, p_GV: Tensor) -> Tensor:
    """Return Σ |p − q| of both sorted, the narrower filled with zeros, (G,)."""
    from torch.nn.functional import pad

    width = max(q_GV.shape[-1], p_GV.shape[-1])
    q_GV, p_GV = (
        pad(x.sort(-1, descending=True).values, (0, width - x.shape[-1])) for x in (q_GV, p_GV)
    )
    return (q_GV - p_GV).abs().sum(-1)


def _without(x_GV: Tensor, ids_J: Tensor) -> Tensor:
    import torch

    kept_V = torch.ones(x_GV.shape[-1], dtype=torch.bool, device=x_GV.device)
    kept_V[ids_J] = False
    return x_GV[:, kept_V]


def groups_of(
    student: Sequence[tuple[int, int]], teacher: Sequence[tuple[int, int]]
) -> tuple[list[int], list[int]]:
    """Return the number of the group of each token, on both sides.

    A group ends where both sides have a token that ends at the same place of the text. A character
    may be several tokens, which then all have its span: only the last of them ends there.

    Args:
        student: the span of each token in the text of the answer, as the tokenizer gives it.
        teacher: the teacher's.
    """
    ends = [_ends(student, 0.5), _ends(teacher, 0.25)]  # no two inner ends are one
    common = sorted(set(ends[0]) & set(ends[1]))
    numbers: list[list[int]] = []
    for side in ends:
        found, group = [], 0
        for end in side:
            found.append(min(group, len(common) - 1))
            group += group < len(common) and end >= common[group]
        numbers.append(found)
    return numbers[0], numbers[1]


def _ends(spans: Sequence[tuple[int, int]], inner: float) -> list[float]:
    starts = [start for start, _ in spans[1:]] + [1 << 60]
    return [
        end if start >= end else end - inner for (_, end), start in zip(spans, starts, strict=True)
    ]
