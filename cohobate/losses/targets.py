"""What a student is to predict: the text's tokens, and what one or several teachers say there.

Shapes: N valid tokens, V vocabulary, D width, K stored ids, C outcomes (K + 1), M teachers.
"""

# ruff: noqa: N815 (fields that are tensors carry shape suffixes too)

import math
from collections.abc import Iterator
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from cohobate.errors import UserError
from cohobate.losses.distances import mixture
from cohobate.losses.sampled import SampledIds
from cohobate.models.lm_head import Head

TINY = 1e-30
"""Stands for a probability of zero where its logarithm is taken."""
BLOCK = 1 << 19
"""Numbers that elementwise work goes over at once on a CPU: 2 MB of them stay in the cache."""


class TopK(NamedTuple):
    """Stored teacher distributions: the K most likely ids, and what is left for all others."""

    ids_NK: Tensor
    logp_NK: Tensor
    """Log-probabilities at T = 1."""
    rest_logprob_NQ: Tensor
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
                fix=f"add {temperature:g} to capture.signals.temperatures, or use a stored one",
            )
        rest_logprob_N = self.rest_logprob_NQ[:, self.temperatures.index(temperature)]
        outcomes_NC = torch.cat([scaled_NK, rest_logprob_N[:, None]], -1)
        return outcomes_NC.log_softmax(-1).clamp_min(math.log(TINY))

    def label_logp(self, ids_N: Tensor, chunk_tokens: int) -> Tensor:
        """Return log p of given ids, (N,); of one that is not stored, the smallest that is."""
        is_it_NK = self.ids_NK == ids_N[:, None]
        floor_N = self.logp_NK.amin(-1)
        return torch.where(is_it_NK, self.logp_NK, -torch.inf).amax(-1).maximum(floor_N)

    def rows(self, part: slice | Tensor) -> "TopK":
        """Return the signals of some of the tokens."""
        some = (self.ids_NK[part], self.logp_NK[part], self.rest_logprob_NQ[part])
        return TopK(*some, self.temperatures)


class ProjectedTeacher(NamedTuple):
    """A chunk of a teacher that is at hand, its product with the head done."""

    product_NV: Tensor
    head: Head

    def tempered(self, temperature: float) -> Tensor:
        """Return the teacher's logits / T, (N, V) in float32."""
        narrow = self.product_NV.dtype in (torch.bfloat16, torch.float16)  # else no copy is made
        logits_NV = self.head.finished(self.product_NV if narrow else self.product_NV.clone())
        return logits_NV.div_(temperature) if temperature != 1 else logits_NV

    def projected(self) -> "ProjectedTeacher":
        """Return itself."""
        return self

    def rows(self, part: slice | Tensor) -> "ProjectedTeacher":
        """Return some of the tokens."""
        return ProjectedTeacher(self.product_NV[part], self.head)


class LiveTeacher(NamedTuple):
    """A teacher that is at hand: its last hidden rows (just computed, or stored) and its head."""

    hidden_ND: Tensor
    head: Head

    def projected(self) -> ProjectedTeacher:
        """Return the product of a chunk's rows with the head, (N, V) in their own dtype."""
        return ProjectedTeacher(self.head.product(self.hidden_ND), self.head)

    def label_logp(self, ids_N: Tensor, chunk_tokens: int) -> Tensor:
        """Return log p of given ids, (N,), some rows' logits at a time."""
        return label_logp(self.hidden_ND, self.head, ids_N, chunk_tokens)

    def rows(self, part: slice | Tensor) -> "LiveTeacher":
        """Return the hidden rows of some of the tokens."""
        return LiveTeacher(self.hidden_ND[part], self.head)


class LiveEnsemble(NamedTuple):
    """Teachers that are at hand, combined into one distribution at each token."""

    teachers: tuple[LiveTeacher | ProjectedTeacher, ...]
    weights_NT: Tensor
    """Of each teacher at each token; they sum to 1."""
    combine: Literal["probabilities", "logits"] = "probabilities"
    """What is averaged: distributions (a mixture), or logits."""

    def tempered(self, temperature: float) -> Tensor:
        """Return logits of the combined distribution at a temperature, (N, V) in float32."""
        total_NV: Tensor | None = None
        for teacher, weight_N in zip(self.teachers, self.weights_NT.unbind(-1), strict=True):
            (some,) = weight_N.nonzero(as_tuple=True)  # one teacher a row: no product in vain
            value_NV = teacher.rows(some).projected().tempered(temperature)
            if self.combine == "probabilities":
                value_NV = value_NV.softmax(-1)
            value_NV *= weight_N[some, None]
            if total_NV is None:
                total_NV = value_NV.new_zeros(len(weight_N), value_NV.shape[-1])
            total_NV.index_add_(0, some, value_NV)
        assert total_NV is not None, "at least one teacher"
        return total_NV if self.combine == "logits" else total_NV.clamp_min_(TINY).log_()

    def projected(self) -> "LiveEnsemble":
        """Return the same with each teacher's product done, where it says anything here."""
        done = tuple(
            teacher.projected() if weight_N.any() else teacher
            for teacher, weight_N in zip(self.teachers, self.weights_NT.unbind(-1), strict=True)
        )
        return self._replace(teachers=done)

    def rows(self, part: slice | Tensor) -> "LiveEnsemble":
        """Return the teachers' rows of some of the tokens."""
        some = tuple(teacher.rows(part) for teacher in self.teachers)
        return LiveEnsemble(some, self.weights_NT[part], self.combine)


class StoredEnsemble(NamedTuple):
    """Stored signals of teachers: the loss is the weighted mean of the losses against each.

    With one teacher a token that is exact for every divergence; with a mixture of several it has
    the gradient of the forward KL from the mixture.
    """

    teachers: tuple[TopK, ...]
    weights_NT: Tensor

    def rows(self, part: slice | Tensor) -> "StoredEnsemble":
        """Return the signals of some of the tokens."""
        some = tuple(teacher.rows(part) for teacher in self.teachers)
        return StoredEnsemble(some, self.weights_NT[part])


class CrossTokenizerTargets(NamedTuple):
    """A live teacher of another tokenizer: its rows at its own tokens, aligned in groups."""

    hidden_MD: Tensor
    head: Head
    ids_M: Tensor
    """The text in the teacher's tokens."""
    group_N: Tensor
    """Group of each of the student's tokens, never falling."""
    group_M: Tensor
    """Group of each of the teacher's."""
    shared: tuple[Tensor, Tensor]
    """The student's and the teacher's ids of the strings that both have."""

    def logp(self, temperature: float) -> Tensor:
        """Return the teacher's log-probabilities at a temperature, (M, V)."""
        logits_MV = self.head.logits(self.hidden_MD)
        return (logits_MV / temperature).log_softmax(-1)

    def rows(self, part: slice | Tensor) -> "CrossTokenizerTargets":
        """Return some whole groups, by the student's tokens; they are numbered from 0 again."""
        group_N = self.group_N[part]
        first, last = group_N[0], group_N[-1]
        chosen_M = (self.group_M >= first) & (self.group_M <= last)
        return self._replace(
            hidden_MD=self.hidden_MD[chosen_M],
            ids_M=self.ids_M[chosen_M],
            group_N=group_N - first,
            group_M=self.group_M[chosen_M] - first,
        )


Teacher = (
    TopK
    | SampledIds
    | LiveTeacher
    | ProjectedTeacher
    | LiveEnsemble
    | StoredEnsemble
    | CrossTokenizerTargets
)


class Targets(NamedTuple):
    """What the student is to predict at each valid row."""

    ids_N: Tensor
    """The token that the training text has."""
    teacher: Teacher | None = None
    share: float = 1.0
    """The target is share · teacher + (1 − share) · the student's own distribution, detached."""

    alpha_N: Tensor | None = None
    """Where a term has an α of its own for each row: that of each token."""
    by_student_N: Tensor | None = None
    """Whether the student wrote the token's row."""
    weight_N: Tensor | None = None
    """What each token's loss counts; 1 where not given."""

    def blend(self, logp_NC: Tensor, logq_NC: Tensor) -> Tensor:
        """Return the log-probabilities of the target."""
        return logp_NC if self.share == 1 else mixture(logp_NC, logq_NC.detach(), self.share)

    def projected(self) -> "Targets":
        """Return the same with a live teacher's product done."""
        if isinstance(self.teacher, LiveTeacher | LiveEnsemble):
            return self._replace(teacher=self.teacher.projected())
        return self

    def block_tokens(self, vocabulary: int) -> int:
        """Return over how many tokens elementwise work is done at once: what a cache holds."""
        if self.ids_N.device.type != "cpu" or isinstance(self.teacher, CrossTokenizerTargets):
            return len(self.ids_N)
        return max(1, BLOCK // vocabulary)

    def parts(self, chunk_tokens: int) -> Iterator[slice]:
        """Yield spans of about so many tokens, a group of a crossed teacher always whole."""
        start, end = 0, len(self.ids_N)
        while start < end:
            stop = min(start + chunk_tokens, end)
            if isinstance(self.teacher, CrossTokenizerTargets) and stop < end:
                group_N = self.teacher.group_N
                begins, ends = (
                    int(torch.searchsorted(group_N, group_N[stop], side=side))
                    for side in ("left", "right")
                )
                stop = begins if begins > start else ends
            yield slice(start, stop)
            start = stop

    def rows(self, part: slice | Tensor) -> "Targets":
        """Return the targets of some of the tokens."""
        of_tokens = ("ids_N", "alpha_N", "by_student_N", "weight_N")
        some = {name: getattr(self, name) for name in of_tokens}
        cut = {name: x[part] for name, x in some.items() if x is not None}
        return self._replace(**cut, teacher=self.teacher and self.teacher.rows(part))


def label_logp(hidden_ND: Tensor, head: Head, ids_N: Tensor, chunk_tokens: int) -> Tensor:
    """Return log-probabilities of given ids, (N,), detached; `chunk_tokens` rows at a time."""
    return torch.cat(
        [
            hidden_ND.new_empty(0, dtype=torch.float32),
            *_labels(hidden_ND, head, ids_N, chunk_tokens),
        ]
    )


@torch.no_grad()
def _labels(hidden_ND: Tensor, head: Head, ids_N: Tensor, chunk_tokens: int) -> Iterator[Tensor]:
    weight_VD = head.weight(hidden_ND.dtype)
    with torch.autocast(hidden_ND.device.type, enabled=False):
        for rows_ND, ids in zip(
            torch.split(hidden_ND, chunk_tokens), torch.split(ids_N, chunk_tokens), strict=True
        ):
            logits_NV = head.finished(rows_ND @ weight_VD.T)  # cast once, where it learns
            label_N = logits_NV.gather(-1, ids[:, None])[:, 0]
            yield label_N - logits_NV.logsumexp(-1)
