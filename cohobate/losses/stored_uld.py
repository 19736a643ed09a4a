"""Universal Logit Distillation from stored top-k signals of a teacher of another tokenizer.

A store has the K most likely of the teacher's ids at each of its tokens, and the mass of all others
as one number. So the loss is that of `Uld` over fewer outcomes: each stored id by itself, and the
others as one bucket, of which no more is compared than its mass. With K the whole vocabulary it is
`Uld`'s own. With fewer ids

    shared strings    each stored id against the student's id of that string; the bucket against all
                      shared ids of the student whose string is not stored
    by rank           the stored ids are the teacher's first ranks; each against the student's of
                      the same rank, and the bucket against the sum of all later ranks

Which part of the rest has a shared string is not stored. It is divided between both comparisons as
the stored mass is; with that mass the difference from `Uld` vanishes.

A group's probability is that of its last token times those of the tokens before it. Where one of
these is not among the K, the store does not know the group's probability: its loss is 0.

M is the number of the teacher's tokens, J that of the strings that both vocabularies have.
"""

# ruff: noqa: N815 (fields that are tensors carry shape suffixes too)

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from cohobate.losses.uld import AlignedText, Uld, last_of_groups

if TYPE_CHECKING:
    from torch import Tensor


class StoredGroups(NamedTuple):
    """What a store knows of the teacher's distribution of each group."""

    ids_GK: Tensor
    p_GK: Tensor
    rest_G: Tensor
    """Mass of the ids that are not stored."""
    known_G: Tensor
    """Whether all tokens before the group's last one are stored."""


class StoredText(NamedTuple):
    """A teacher's stored log-probabilities over the text, and the groups of its tokens."""

    ids_MK: Tensor
    logp_MC: Tensor
    """Of the K ids and of the rest, at the term's temperature; C is K + 1."""
    ids_M: Tensor
    """The tokens of the text."""
    group_M: Tensor
    """Number of each token's group, from 0 and never falling."""
    vocabulary: int
    """Number of the teacher's ids."""

    def groups(self) -> StoredGroups:
        """Return the distribution of each group, over the stored ids and the rest."""
        last_M = last_of_groups(self.group_M)
        is_label_MK = self.ids_MK == self.ids_M[:, None]
        # at most one of the K is the label
        label_M = self.logp_MC[:, :-1].masked_fill(~is_label_MK, 0).sum(-1).masked_fill(last_M, 0)
        unknown_M = ~is_label_MK.any(-1) & ~last_M
        count = int(last_M.sum())
        before_G = label_M.new_zeros(count).index_add(0, self.group_M, label_M)
        unknown_G = label_M.new_zeros(count).index_add(0, self.group_M, unknown_M.to(label_M.dtype))
        p_GC = (self.logp_MC[last_M] + before_G[:, None]).exp()
        return StoredGroups(self.ids_MK[last_M], p_GC[:, :-1], p_GC[:, -1], unknown_G == 0)


def stored_group_losses(
    term: Uld, student: AlignedText, teacher: StoredText, shared_ids: tuple[Tensor, Tensor]
) -> Tensor:
    """Return the loss of each group, (G,), without weight; 0 where the store does not know it.

    Args:
        term: its kind of comparison, and β.
        student: its log-probabilities; differentiable.
        teacher: the stored log-probabilities, in the same groups.
        shared_ids: the student's and the teacher's ids of the strings that both have, (J,).
    """
    import torch

    q_GV, groups = student.group_probabilities(), teacher.groups()
    if term.shared == "sorted":
        every_GK = torch.ones_like(groups.p_GK, dtype=torch.bool)
        return _by_rank(q_GV, groups.p_GK, every_GK, groups.rest_G) * groups.known_G
    student_J, teacher_J = shared_ids
    # the student's id of each of the teacher's; −1: no shared string
    student_of_V = torch.full((teacher.vocabulary,), -1, device=student_J.device)
    student_of_V[teacher_J] = student_J
    of_student_GK = student_of_V[groups.ids_GK]
    is_shared_GK = of_student_GK >= 0
    mass_GK = groups.p_GK * is_shared_GK
    part_G = mass_GK.sum(-1) / groups.p_GK.sum(-1).clamp_min(torch.finfo(mass_GK.dtype).tiny)
    rest_shared_G = groups.rest_G * part_G

    shared_V = torch.zeros(q_GV.shape[-1], dtype=torch.bool, device=q_GV.device)
    shared_V[student_J] = True
    # shared ids that are not stored; an id that is not shared is written to a place behind the last
    places_GK = torch.where(is_shared_GK, of_student_GK, q_GV.shape[-1])
    stored_GV = torch.zeros(len(q_GV), q_GV.shape[-1] + 1, dtype=torch.bool, device=q_GV.device)
    stored_GV = stored_GV.scatter(-1, places_GK, True)[:, :-1]
    others_G = (q_GV * (shared_V & ~stored_GV)).sum(-1)
    q_GK = q_GV.gather(-1, of_student_GK.clamp_min(0)) * is_shared_GK
    shared_G = term.jensen_shannon(
        torch.cat([mass_GK, rest_shared_G[:, None]], -1), torch.cat([q_GK, others_G[:, None]], -1)
    )
    own_GV = q_GV[:, ~shared_V]
    rest_G = groups.rest_G - rest_shared_G
    ranked_G = _by_rank(own_GV, groups.p_GK, ~is_shared_GK, rest_G)
    share = len(student_J) / teacher.vocabulary
    return (share * shared_G + (1 - share) * ranked_G) * groups.known_G


def _by_rank(q_GV: Tensor, p_GK: Tensor, counts_GK: Tensor, rest_G: Tensor) -> Tensor:
    """Return Σ |p − q| over the ranks that are stored, and |rest − Σ q| of all later ones, (G,).

    Args:
        q_GV: the student's probabilities.
        p_GK: the teacher's stored ones.
        counts_GK: which of these are compared by rank.
        rest_G: mass of the teacher's other ids.
    """
    import torch
    from torch.nn.functional import pad

    p_GK = (p_GK * counts_GK).sort(-1, descending=True).values
    q_GV = q_GV.sort(-1, descending=True).values
    k = p_GK.shape[-1]
    q_GV = pad(q_GV, (0, max(0, k - q_GV.shape[-1])))
    is_stored_GK = torch.arange(k, device=p_GK.device) < counts_GK.sum(-1, keepdim=True)
    ranked_G = ((q_GV[:, :k] - p_GK).abs() * is_stored_GK).sum(-1)
    later_G = (q_GV[:, :k] * ~is_stored_GK).sum(-1) + q_GV[:, k:].sum(-1)
    return ranked_G + (later_G - rest_G).abs()
