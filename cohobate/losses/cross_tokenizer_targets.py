"""Soft targets of a live teacher that has another tokenizer than the student.

M is the number of the teacher's tokens, as N is of the student's.
"""

# ruff: noqa: N815 (fields that are tensors carry shape suffixes too)

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from cohobate.losses.divergences import Hard
from cohobate.losses.soft_targets import SoftTargets, TermGroup
from cohobate.losses.uld import AlignedText, Uld
from cohobate.models.lm_head import Head


@dataclass(frozen=True, eq=False)
class CrossTokenizerTargets(SoftTargets):
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

    other_tokenizer: ClassVar[bool] = True

    def select(self, tokens: slice | Tensor) -> "CrossTokenizerTargets":
        """Return some whole groups, by the student's tokens; groups are numbered from 0 again."""
        # `tokens` are whole groups (`chunk_end`), so the teacher has the same ones
        group_N = self.group_N[tokens]
        first, last = group_N[0], group_N[-1]
        in_part_M = (self.group_M >= first) & (self.group_M <= last)
        return replace(
            self,
            hidden_MD=self.hidden_MD[in_part_M],
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
        scaled_MV = self.head.logits(self.hidden_MD) / term_group.temperature
        teacher = AlignedText(scaled_MV.log_softmax(-1), self.ids_M, self.group_M)
        losses = []
        # the head calls this inside an autograd function, where gradients are off
        with torch.enable_grad():
            leaf_NV = logits_NV.requires_grad_()
            student = AlignedText(leaf_NV.log_softmax(-1), labels_N, self.group_N)
            total = leaf_NV.new_zeros(())
            for term in term_group.terms:
                if isinstance(term, Uld):
                    loss_G = term.weight * term.per_group(student, teacher, self.shared_ids)
                    # groups and their last tokens are in the same order
                    loss_N = torch.zeros_like(leaf_NV[:, 0]).masked_scatter(student.last_N, loss_G)
                else:
                    assert isinstance(term, Hard)
                    loss_N = term.weight * term.per_token(student.logp_NV, labels_N)
                losses.append(loss_N.detach())
                total = total + loss_N.sum()
            (grad_NV,) = torch.autograd.grad(total, leaf_NV)
        return losses, grad_NV
