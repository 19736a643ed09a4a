"""Soft targets over the whole vocabulary: hidden states of a teacher, and its head."""

# ruff: noqa: N815 (fields that are tensors carry shape suffixes too)

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

import torch
from torch import Tensor

from cohobate.losses.base_divergence import Divergence
from cohobate.losses.distillm2 import DistiLLM2
from cohobate.losses.divergences import Hard
from cohobate.losses.functional import blend
from cohobate.losses.soft_targets import (
    TINY,
    ResponseTerm,
    SoftTargets,
    TermGroup,
    subtract_labels,
)
from cohobate.models.lm_head import Head


class DenseTargets(SoftTargets):
    """Targets that give logits over the whole vocabulary."""

    def tempered(self, temperature: float) -> Tensor:
        """Return the teacher's logits / T, (N, V) in float32; the caller may overwrite them."""
        raise NotImplementedError

    def loss_and_grad(
        self, logits_NV: Tensor, labels_N: Tensor, term_group: TermGroup
    ) -> tuple[list[Tensor], Tensor]:
        """Return losses and gradient by `dense_loss_and_grad`."""
        terms, teacher_share = term_group.terms, term_group.teacher_share
        # a teacher's share or an α that changes from call to call would be compiled anew each time
        fixed = teacher_share == 1 and not any(isinstance(term, DistiLLM2) for term in terms)
        dense = _compiled() if term_group.compiled and fixed else dense_loss_and_grad
        teacher_NV = self.tempered(term_group.temperature)
        return dense(logits_NV, teacher_NV, labels_N, terms, teacher_share)


@dataclass(frozen=True, eq=False)
class ProjectedTeacher(DenseTargets):
    """A chunk of a live teacher with its product h Wᵀ done."""

    product_NV: Tensor
    """In the dtype of the hidden states; bias, scale and cap are still to come."""
    head: Head

    def tempered(self, temperature: float) -> Tensor:
        """Return the teacher's logits / T, (N, V) in float32."""
        # terms of another temperature need the product again: `finished` may overwrite it, except
        # where it widens a 16-bit product into a new tensor
        narrow = self.product_NV.dtype in (torch.bfloat16, torch.float16)
        logits_NV = self.head.finished(self.product_NV if narrow else self.product_NV.clone())
        return logits_NV.div_(temperature) if temperature != 1 else logits_NV

    def select(self, tokens: slice | Tensor) -> "ProjectedTeacher":
        """Return the products of some of the tokens."""
        return ProjectedTeacher(self.product_NV[tokens], self.head)


@dataclass(frozen=True, eq=False)
class LiveTeacher(DenseTargets):
    """Last hidden states of a teacher, just computed or read from a signal store, and its head."""

    hidden_ND: Tensor
    head: Head

    def project(self) -> ProjectedTeacher:
        """Return the product of a chunk's hidden states with the head."""
        return ProjectedTeacher(self.head.product(self.hidden_ND), self.head)

    def tempered(self, temperature: float) -> Tensor:
        """Return the teacher's logits / T, (N, V) in float32."""
        return self.project().tempered(temperature)

    def label_logprobs(self, labels_N: Tensor, chunk_tokens: int) -> Tensor:
        """Return the log-probabilities of given ids, (N,); logits of `chunk_tokens` at a time."""
        return label_logprobs(self.hidden_ND, self.head, labels_N, chunk_tokens)

    def select(self, tokens: slice | Tensor) -> "LiveTeacher":
        """Return the hidden states of some of the tokens."""
        return LiveTeacher(self.hidden_ND[tokens], self.head)


@dataclass(frozen=True, eq=False)
class LiveEnsemble(DenseTargets):
    """Live teachers combined into one distribution at each token."""

    teachers: tuple[LiveTeacher | ProjectedTeacher, ...]
    weights_NT: Tensor
    """Weight of each teacher at each token; they sum to 1."""
    average: Literal["probabilities", "logits"] = "probabilities"
    """What is averaged: distributions (a mixture), or logits."""

    def tempered(self, temperature: float) -> Tensor:
        """Return logits of the combined distribution at a temperature, (N, V) in float32."""
        total_NV: Tensor | None = None
        for teacher, weight_N in zip(self.teachers, self.weights_NT.unbind(-1), strict=True):
            # only the tokens where the teacher counts: with one teacher a row, no product in vain
            (tokens,) = weight_N.nonzero(as_tuple=True)
            value_NV = teacher.select(tokens).tempered(temperature)
            if self.average == "probabilities":
                value_NV = value_NV.softmax(-1)
            value_NV *= weight_N[tokens, None]
            # made here, as the vocabulary is known once one teacher has given its logits
            if total_NV is None:
                total_NV = value_NV.new_zeros(len(weight_N), value_NV.shape[-1])
            total_NV.index_add_(0, tokens, value_NV)
        assert total_NV is not None, "at least one teacher"
        # a probability that underflowed to 0 has no logarithm
        return total_NV if self.average == "logits" else total_NV.clamp_min_(TINY).log_()

    def project(self) -> "LiveEnsemble":
        """Return the same with the product of each teacher that counts at any of the tokens."""
        # a teacher that counts at no token stays as it is: `tempered` takes none of its rows
        teachers = tuple(
            teacher.project() if isinstance(teacher, LiveTeacher) and weight_N.any() else teacher
            for teacher, weight_N in zip(self.teachers, self.weights_NT.unbind(-1), strict=True)
        )
        return replace(self, teachers=teachers)

    def select(self, tokens: slice | Tensor) -> "LiveEnsemble":
        """Return the targets of some of the tokens."""
        teachers = tuple(teacher.select(tokens) for teacher in self.teachers)
        return LiveEnsemble(teachers, self.weights_NT[tokens], self.average)


def dense_loss_and_grad(
    logits_NV: Tensor,
    teacher_NV: Tensor,
    labels_N: Tensor,
    terms: Sequence[ResponseTerm],
    teacher_share: float,
) -> tuple[list[Tensor], Tensor]:
    """Return losses and gradient over the whole vocabulary; both logits are divided by T."""
    logp_NV, logq_NV = teacher_NV.log_softmax(-1), logits_NV.log_softmax(-1)
    # a progressive target: the student's share in it is detached
    logp_NV = blend(logp_NV, logq_NV, teacher_share)
    losses, hard, grad_NV = [], 0.0, None
    for term in terms:
        if isinstance(term, Hard):
            losses.append(term.weight * term.per_token(logq_NV, labels_N))
            hard += term.weight
            continue
        assert isinstance(term, Divergence)
        scale = term.scale
        loss_N, term_NV = term.tempered_loss_and_grad(logp_NV, logq_NV)
        losses.append(loss_N * scale)
        term_NV = term_NV * scale if scale != 1 else term_NV
        grad_NV = term_NV if grad_NV is None else grad_NV + term_NV
    assert grad_NV is not None, "no soft term"
    # from log q to the logits: d log q_j/d z_i = [i = j] − q_i; hard terms add hard · (q − 1[y])
    grad_NV = grad_NV.addcmul(logq_NV.exp(), hard - grad_NV.sum(-1, keepdim=True))
    return losses, subtract_labels(grad_NV, labels_N, hard)


@cache
def _compiled() -> Callable[..., tuple[list[Tensor], Tensor]]:
    # dynamic: a last, shorter chunk is not compiled anew
    return torch.compile(dense_loss_and_grad, dynamic=True)


def label_logprobs(hidden_ND: Tensor, head: Head, labels_N: Tensor, chunk_tokens: int) -> Tensor:
    """Return log-probabilities of given ids, (N,), detached; logits of `chunk_tokens` at a time."""
    return torch.cat(
        [
            hidden_ND.new_empty(0, dtype=torch.float32),
            *_label_logprobs(hidden_ND, head, labels_N, chunk_tokens),
        ]
    )


@torch.no_grad()
def _label_logprobs(
    hidden_ND: Tensor, head: Head, labels_N: Tensor, chunk_tokens: int
) -> Iterator[Tensor]:
    weight_VD = head.weight(hidden_ND.dtype)  # a head that learns is cast once, not in each chunk
    with torch.autocast(hidden_ND.device.type, enabled=False):
        for chunk_ND, chunk_N in zip(
            torch.split(hidden_ND, chunk_tokens), torch.split(labels_N, chunk_tokens), strict=True
        ):
            logits_NV = head.finished(chunk_ND @ weight_VD.T)
            label_N = logits_NV.gather(-1, chunk_N[:, None])[:, 0]
            yield label_N - logits_NV.logsumexp(-1)
