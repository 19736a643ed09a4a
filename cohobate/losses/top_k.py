"""Soft targets of stored top-k signals: K ids, and one bucket for all others.

Losses are over C = K + 1 outcomes. No (N, V) tensor of the teacher exists.
"""

# ruff: noqa: N815 (fields that are tensors carry shape suffixes too)

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from cohobate.errors import UserError
from cohobate.losses.base_divergence import Divergence
from cohobate.losses.divergences import Hard
from cohobate.losses.functional import blend
from cohobate.losses.soft_targets import TINY, SoftTargets, TermGroup, subtract_labels


@dataclass(frozen=True, eq=False)
class TopK(SoftTargets):
    """Stored teacher distributions: the K most likely ids, and the mass of all others."""

    ids_NK: Tensor
    logp_NK: Tensor
    """Log-probabilities at T = 1."""
    rest_logprob_NQ: Tensor
    """For each of the Q `temperatures`, log Σ p^(1/T) over the other ids."""
    temperatures: tuple[float, ...] = (1.0,)

    def outcomes(self, temperature: float, tail: str) -> Tensor:
        """Return log p of the K ids and of the bucket of all others at a temperature, (N, C).

        Args:
            temperature: T of the softmax over the vocabulary.
            tail: `bucket`, or `renormalise` to leave the other ids out.

        Raises:
            UserError: the mass of the others was not stored for this temperature.
        """
        scaled_NK = self.logp_NK / temperature
        if tail == "renormalise":
            # an empty bucket, so that there are K + 1 outcomes here too
            empty_N1 = torch.full_like(scaled_NK[:, :1], TINY).log()
            return torch.cat([scaled_NK.log_softmax(-1), empty_N1], -1)
        if temperature not in self.temperatures:
            raise UserError(
                f"the stored signals have no mass of the other ids at temperature {temperature:g}",
                where=f"stored: {', '.join(f'{t:g}' for t in self.temperatures)}",
                fix=f"add {temperature:g} to capture.signals.temperatures, or use a stored one",
            )
        rest_N = self.rest_logprob_NQ[:, self.temperatures.index(temperature)]
        # Σ p^(1/T) over these K + 1 is the sum over the vocabulary, so this softmax is the one at T
        outcomes_NC = torch.cat([scaled_NK, rest_N[:, None]], -1)
        # finite: 0 · −∞ would be NaN in a divergence
        return outcomes_NC.log_softmax(-1).clamp_min(math.log(TINY))

    def label_logprobs(self, labels_N: Tensor, chunk_tokens: int) -> Tensor:
        """Return log p of given ids, (N,). An id that is not stored gets the smallest stored."""
        is_label_NK = self.ids_NK == labels_N[:, None]
        floor_N = self.logp_NK.amin(-1)
        # at most one of the K places is the label; all others are −∞ to the maximum
        return torch.where(is_label_NK, self.logp_NK, -torch.inf).amax(-1).maximum(floor_N)

    def select(self, tokens: slice | Tensor) -> "TopK":
        """Return the signals of some of the tokens."""
        tensors = (self.ids_NK[tokens], self.logp_NK[tokens], self.rest_logprob_NQ[tokens])
        return TopK(*tensors, self.temperatures)

    def loss_and_grad(
        self, logits_NV: Tensor, labels_N: Tensor, term_group: TermGroup
    ) -> tuple[list[Tensor], Tensor]:
        """Return losses and gradient through K + 1 outcomes.

        Only one pass of exp and one of scaling touch V. With g = d loss/d log q over the outcomes,
        G = Σ g, and q_rest = Σ of q outside the K ids, d loss/d z_i is g_i − q_i G for a stored
        id, and q_i (g_rest/q_rest − G) for any other.
        """
        max_N1 = logits_NV.amax(-1, keepdim=True)
        # both are read before the logits are overwritten
        label_N1 = logits_NV.gather(-1, labels_N[:, None]) - max_N1
        stored_NK = logits_NV.gather(-1, self.ids_NK) - max_N1
        # zeros in the places of the K ids, which have a tensor of their own: only the others remain
        exp_NV = logits_NV.sub_(max_N1).exp_().scatter_(-1, self.ids_NK, 0)
        # the rest is summed, not taken as 1 − Σ q_k, which would cancel
        rest_N1 = exp_NV.sum(-1, keepdim=True).clamp_min_(TINY)
        total_N1 = rest_N1 + stored_NK.exp().sum(-1, keepdim=True)
        logq_NC = torch.cat([stored_NK, rest_N1.log()], -1) - total_N1.log()
        losses, hard, grad_NC = [], 0.0, torch.zeros_like(logq_NC)
        for term in term_group.terms:
            if isinstance(term, Hard):
                losses.append(-term.weight * (label_N1 - total_N1.log())[:, 0])
                hard += term.weight
                continue
            assert isinstance(term, Divergence)
            # by term, as terms differ in what they do with the bucket
            logp_NC = self._outcomes_for(term, term_group.temperature).to(logq_NC.dtype)
            target_NC = blend(logp_NC, logq_NC, term_group.teacher_share)
            loss_N, term_NC = term.tempered_loss_and_grad(target_NC, logq_NC)
            losses.append(loss_N * term.scale)
            grad_NC.add_(term_NC, alpha=term.scale)
        minus_total_N1 = hard - grad_NC.sum(-1, keepdim=True)
        # q_i = e_i / total: the others share one factor of e_i, g_rest / rest + (hard − G) / total
        grad_NV = exp_NV.mul_(grad_NC[:, -1:] / rest_N1 + minus_total_N1 / total_N1)
        # the K ids are zeros in exp_NV: written, not added
        grad_NV.scatter_(-1, self.ids_NK, grad_NC[:, :-1] + logq_NC[:, :-1].exp() * minus_total_N1)
        return losses, subtract_labels(grad_NV, labels_N, hard)

    def _outcomes_for(self, term: Divergence, temperature: float) -> Tensor:
        if not term.on_stored_signals:
            raise UserError(
                f"{term.type} needs a live teacher: stored signals do not have all logits",
                where="terms",
                fix="targets: models/adapt/<teacher>, or capture.signals: {type: hidden}",
            )
        return self.outcomes(temperature, term.tail)


@dataclass(frozen=True, eq=False)
class StoredEnsemble(SoftTargets):
    """Stored signals of several teachers: the loss is the weighted mean of the losses against each.

    With one teacher a token that is exact for every divergence. With a mixture of several it has
    the gradient of the forward KL from the mixture.
    """

    teachers: tuple[TopK, ...]
    weights_NT: Tensor
    """Weight of each teacher at each token; they sum to 1."""

    def select(self, tokens: slice | Tensor) -> "StoredEnsemble":
        """Return the signals of some of the tokens."""
        teachers = tuple(teacher.select(tokens) for teacher in self.teachers)
        return StoredEnsemble(teachers, self.weights_NT[tokens])

    def loss_and_grad(
        self, logits_NV: Tensor, labels_N: Tensor, term_group: TermGroup
    ) -> tuple[list[Tensor], Tensor]:
        """Return the mean of the losses against each teacher's signals, by the weights."""
        losses = [logits_NV.new_zeros(len(logits_NV)) for _ in term_group.terms]
        grad_NV = torch.zeros_like(logits_NV)
        for teacher, weight_N in zip(self.teachers, self.weights_NT.unbind(-1), strict=True):
            (tokens,) = weight_N.nonzero(as_tuple=True)
            # an index copies: each teacher overwrites logits of its own
            teacher_losses, teacher_NV = teacher.select(tokens).loss_and_grad(
                logits_NV[tokens], labels_N[tokens], term_group
            )
            for loss_N, teacher_N in zip(losses, teacher_losses, strict=True):
                loss_N.index_add_(0, tokens, teacher_N * weight_N[tokens])
            grad_NV.index_add_(0, tokens, teacher_NV.mul_(weight_N[tokens, None]))
        return losses, grad_NV
