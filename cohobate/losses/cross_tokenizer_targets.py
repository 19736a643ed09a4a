"""Soft targets of a teacher that has another tokenizer than the student, live or stored.

M is the number of the teacher's tokens, as N is of the student's.
"""

# ruff: noqa: N815 (fields that are tensors carry shape suffixes too)

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from cohobate.losses.divergences import Hard
from cohobate.losses.soft_targets import SoftTargets, TermGroup
from cohobate.losses.stored_uld import StoredText, stored_group_losses
from cohobate.losses.top_k import TopK
from cohobate.losses.uld import AlignedText, Uld
from cohobate.models.lm_head import Head

GroupLosses = Callable[[Uld, AlignedText], Tensor]
"""Losses of a term in each group, (G,), from the student's side."""


class AlignedTargets(SoftTargets):
    """Targets at the teacher's own tokens of the text, aligned with the student's in groups."""

    group_N: Tensor
    group_M: Tensor
    ids_M: Tensor
    shared_ids: tuple[Tensor, Tensor]
    other_tokenizer: ClassVar[bool] = True

    @abstractmethod
    def at(self, tokens_M: Tensor) -> Self:
        """Return the same with the teacher's distributions of some of its tokens alone."""

    @abstractmethod
    def group_losses(self, temperature: float) -> GroupLosses:
        """Return the function that compares a student's groups with the teacher's."""

    def select(self, tokens: slice | Tensor) -> Self:
        """Return some whole groups, by the student's tokens; groups are numbered from 0 again."""
        # `tokens` are whole groups (`chunk_end`), so the teacher has the same ones
        group_N = self.group_N[tokens]
        first, last = group_N[0], group_N[-1]
        in_part_M = (self.group_M >= first) & (self.group_M <= last)
        return replace(  # type: ignore[type-var]
            self.at(in_part_M),
            ids_M=self.ids_M[in_part_M],
            group_N=group_N - first,
            group_M=self.group_M[in_part_M] - first,
        )

    def chunk_end(self, start: int, stop: int) -> int:
        """Return the end of the last group that ends by `stop`; of a longer group its own end."""
        if stop == len(self.group_N):
            return stop
        # the group that `stop` would cut: its first token, and the one after its last
        first, end = (
            int(torch.searchsorted(self.group_N, self.group_N[stop], side=side))
            for side in ("left", "right")
        )
        # the chunk ends before that group, unless it begins with it
        return first if first > start else end

    def loss_and_grad(
        self, logits_NV: Tensor, labels_N: Tensor, term_group: TermGroup
    ) -> tuple[list[Tensor], Tensor]:
        """Return losses, that of a group at its last token, and the gradient by autograd."""
        group_losses = self.group_losses(term_group.temperature)
        losses = []
        # the head calls this inside an autograd function, where gradients are off
        with torch.enable_grad():
            leaf_NV = logits_NV.requires_grad_()
            student = AlignedText(leaf_NV.log_softmax(-1), labels_N, self.group_N)
            total = leaf_NV.new_zeros(())
            for term in term_group.terms:
                if isinstance(term, Uld):
                    loss_G = term.weight * group_losses(term, student)
                    # groups and their last tokens are in the same order
                    loss_N = torch.zeros_like(leaf_NV[:, 0]).masked_scatter(student.last_N, loss_G)
                else:
                    assert isinstance(term, Hard)
                    loss_N = term.weight * term.per_token(student.logp_NV, labels_N)
                losses.append(loss_N.detach())
                total = total + loss_N.sum()
            (grad_NV,) = torch.autograd.grad(total, leaf_NV)
        return losses, grad_NV


@dataclass(frozen=True, eq=False)
class CrossTokenizerTargets(AlignedTargets):
    """Hidden states of a teacher at its own tokens of the text, aligned with the student's in
    groups (`uld.align`)."""

    hidden_MD: Tensor
    head: Head
    ids_M: Tensor
    """The text in the teacher's tokens."""
    group_N: Tensor
    """Group of each of the student's tokens, never falling."""
    group_M: Tensor
    """Group of each of the teacher's tokens, never falling."""
    shared_ids: tuple[Tensor, Tensor]
    """The student's and the teacher's ids of the J strings that both vocabularies have, (J,)."""

    def at(self, tokens_M: Tensor) -> CrossTokenizerTargets:
        """Return the same with the hidden states of some tokens."""
        return replace(self, hidden_MD=self.hidden_MD[tokens_M])

    def group_losses(self, temperature: float) -> GroupLosses:
        """Return the comparison over both whole vocabularies."""
        scaled_MV = self.head.logits(self.hidden_MD) / temperature
        teacher = AlignedText(scaled_MV.log_softmax(-1), self.ids_M, self.group_M)
        return lambda term, student: term.per_group(student, teacher, self.shared_ids)


@dataclass(frozen=True, eq=False)
class StoredCrossTokenizerTargets(AlignedTargets):
    """Stored signals of a teacher at its own tokens of the text: K ids, and the mass of the rest
    (cohobate/losses/stored_uld.py)."""

    stored: TopK
    vocabulary: int
    """Number of the teacher's ids."""
    ids_M: Tensor
    group_N: Tensor
    group_M: Tensor
    shared_ids: tuple[Tensor, Tensor]
    """These four as in `CrossTokenizerTargets`."""

    def at(self, tokens_M: Tensor) -> StoredCrossTokenizerTargets:
        """Return the same with the signals of some tokens."""
        return replace(self, stored=self.stored.select(tokens_M))

    def group_losses(self, temperature: float) -> GroupLosses:
        """Return the comparison over the stored ids and the bucket of all others."""
        logp_MC = self.stored.outcomes(temperature, "bucket")
        teacher = StoredText(self.stored.ids_NK, logp_MC, self.ids_M, self.group_M, self.vocabulary)
        return lambda term, student: stored_group_losses(term, student, teacher, self.shared_ids)
