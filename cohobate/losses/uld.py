"""Universal Logit Distillation (ULD): the loss between models of two tokenizers.

Both token sequences are cut into groups that end at the same characters of the text (`align`). The
distribution of a group is the one over its last token, times the probabilities of the tokens before
it (the chain rule), on either side. A token that stands for the same bytes in both
vocabularies is compared with itself, and so is what closes an answer; all others by rank.

M is the number of the teacher's tokens, as N is of the student's; J is the number of tokens that
both vocabularies have. V is either side's vocabulary.
"""

# ruff: noqa: N815 (fields that are tensors carry shape suffixes too)

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

from pydantic import Field

from cohobate.losses.functional import kl, mixture
from cohobate.params import Section

if TYPE_CHECKING:
    from torch import Tensor

TINY = 1e-8
"""The smallest probability whose logarithm is taken; sorted tails are full of zeros."""


class AlignedText(NamedTuple):
    """One model's log-probabilities over the text, and the groups of its tokens."""

    logp_NV: Tensor
    """At the term's temperature."""
    ids_N: Tensor
    """The tokens of the text."""
    group_N: Tensor
    """Number of each token's group, from 0 and never falling."""

    @property
    def last_N(self) -> Tensor:  # noqa: N802
        """Whether a token is the last one of its group."""
        return last_of_groups(self.group_N)

    def group_probabilities(self) -> Tensor:
        """Return the distribution of each group, (G, V)."""
        last_N = self.last_N
        # log p of the tokens before the last one, added up by group
        label_N = self.logp_NV.gather(-1, self.ids_N[:, None])[:, 0].masked_fill(last_N, 0)
        before_G = label_N.new_zeros(int(last_N.sum())).index_add(0, self.group_N, label_N)
        p_GV: Tensor = (self.logp_NV[last_N] + before_G[:, None]).exp()
        return p_GV


def last_of_groups(group_N: Tensor) -> Tensor:
    """Return whether each token is the last one of its group, (N,)."""
    from torch.nn.functional import pad

    # a token is the last where the next one is in another group, or there is none
    return pad(group_N[1:] != group_N[:-1], (0, 1), value=True)[: len(group_N)]


class Uld(Section):
    """Universal logit distillation: w · JS(p, q) over shared strings + (1−w) · Σ |p↓ − q↓| over
    the others, p↓ being p sorted; w is the shared part of the teacher's vocabulary.

    Boizard et al. 2024, "Towards Cross-Tokenizer Distillation: the Universal Logit Distillation
    Loss for LLMs", section 3, is the second part alone, over the whole vocabularies
    (`shared: sorted`). The first part and the alignment are those of TRL's GOLD.

    Takes the student's (N, V) and the teacher's (M, V); returns (G,).
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

    def per_group(
        self, student: AlignedText, teacher: AlignedText, shared_ids: tuple[Tensor, Tensor]
    ) -> Tensor:
        """Return the loss of each group, (G,), without weight.

        Args:
            student: its log-probabilities; differentiable.
            teacher: its log-probabilities, in the same groups.
            shared_ids: the student's and the teacher's ids of the strings that both have, (J,).
        """
        q_GV, p_GV = student.group_probabilities(), teacher.group_probabilities()
        if self.shared == "sorted":
            return by_rank(q_GV, p_GV)
        shared_G = self.jensen_shannon(p_GV[:, shared_ids[1]], q_GV[:, shared_ids[0]])
        # w: the shared part of the teacher's vocabulary
        share = len(shared_ids[0]) / p_GV.shape[-1]
        rest = (_without(x, ids) for x, ids in zip((q_GV, p_GV), shared_ids, strict=True))
        return share * shared_G + (1 - share) * by_rank(*rest)

    def jensen_shannon(self, p_GJ: Tensor, q_GJ: Tensor) -> Tensor:
        """Return the divergence of probabilities that need not sum to 1, (G,)."""
        logp_GJ, logq_GJ = (x.clamp_min(TINY).log() for x in (p_GJ, q_GJ))
        if self.beta in (0, 1):
            return kl(logq_GJ, logp_GJ) if self.beta else kl(logp_GJ, logq_GJ)
        logm_GJ = mixture(logp_GJ, logq_GJ, self.beta)
        return self.beta * kl(logp_GJ, logm_GJ) + (1 - self.beta) * kl(logq_GJ, logm_GJ)


def by_rank(q_GV: Tensor, p_GV: Tensor) -> Tensor:
    """Return Σ |p − q| of both sorted, (G,); the smaller vocabulary is filled with zeros."""
    from torch.nn.functional import pad

    width = max(q_GV.shape[-1], p_GV.shape[-1])
    q_GV, p_GV = (
        pad(x.sort(-1, descending=True).values, (0, width - x.shape[-1])) for x in (q_GV, p_GV)
    )
    return (q_GV - p_GV).abs().sum(-1)


def _without(x_GV: Tensor, ids_J: Tensor) -> Tensor:
    import torch

    keep_V = torch.ones(x_GV.shape[-1], dtype=torch.bool, device=x_GV.device)
    keep_V[ids_J] = False
    return x_GV[:, keep_V]


def align(
    student: Sequence[tuple[int, int]], teacher: Sequence[tuple[int, int]]
) -> tuple[list[int], list[int]]:
    """Return the group number of each token, for the student and for the teacher.

    A group ends where both sides have a token that ends at the same character of the text. A
    character may be several tokens, which then all have its span: only the last of them ends there.

    Args:
        student: the span of each of its tokens in the answer's text, as the tokenizer gives it.
        teacher: the same of the teacher's tokens.
    """
    # ends within a character get a fraction of each side's own, so that no two of them are equal
    ends = [_ends(student, 0.5), _ends(teacher, 0.25)]
    # a group ends at each of these; the tokens behind the last one belong to the last group
    common = sorted(set(ends[0]) & set(ends[1]))
    numbers: list[list[int]] = []
    for side in ends:
        side_numbers, group = [], 0
        for end in side:
            side_numbers.append(min(group, len(common) - 1))
            # a token that reaches the next common end is the last of its group
            group += group < len(common) and end >= common[group]
        numbers.append(side_numbers)
    return numbers[0], numbers[1]


def _ends(spans: Sequence[tuple[int, int]], inner: float) -> list[float]:
    starts = [start for start, _ in spans[1:]] + [1 << 60]
    # a token that the next one overlaps ends inside a character: its end is moved inwards
    return [
        end if start >= end else end - inner for (_, end), start in zip(spans, starts, strict=True)
    ]
