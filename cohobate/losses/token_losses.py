"""Loss and grad of a chunk's logits, token by token: what the fused head does between products.

Shapes: N valid tokens, V vocabulary, K stored ids, C outcomes (K + 1), T terms.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor

from cohobate.errors import UserError
from cohobate.losses.divergences import Divergence, Hard
from cohobate.losses.sampled import SampledIds, against_draws
from cohobate.losses.targets import (
    TINY,
    CrossTokenizerTargets,
    LiveEnsemble,
    ProjectedTeacher,
    StoredEnsemble,
    Targets,
    TopK,
)
from cohobate.losses.uld import Side, Uld

ResponseTerm = Divergence | Hard | Uld


def loss_and_grad(
    logits_NV: Tensor, terms: Sequence[ResponseTerm], targets: Targets, *, compiled: bool = False
) -> tuple[Tensor, Tensor]:
    """Return the weighted loss of each term (N, T) and the grad of their sum, d/d logits (N, V).

    Terms of one temperature share their softmax. The logits are overwritten.
    """
    groups = defaultdict(list)
    for number, term in enumerate(terms):
        groups[1.0 if isinstance(term, Hard) else term.softmax_temperature].append(number)
    losses_NF = logits_NV.new_empty(len(logits_NV), len(terms))
    grad_NV = None
    for temperature, numbers in groups.items():
        some: list[ResponseTerm] = [terms[n].at(targets) for n in numbers]
        last = temperature == next(reversed(groups))
        scaled_NV = logits_NV.div_(temperature) if last else logits_NV / temperature
        losses, grad = _against(scaled_NV, some, targets, temperature, compiled)
        losses_NF[:, numbers] = torch.stack(losses, -1)
        grad = grad.div_(temperature) if temperature != 1 else grad
        grad_NV = grad if grad_NV is None else grad_NV.add_(grad)
    assert grad_NV is not None, "a loss needs at least one term"
    return losses_NF, grad_NV


def _against(
    logits_NV: Tensor,
    terms: list[ResponseTerm],
    targets: Targets,
    temperature: float,
    compiled: bool,
) -> tuple[list[Tensor], Tensor]:
    teacher = targets.teacher
    if any(isinstance(term, Uld) for term in terms):
        return _against_crossed(logits_NV, terms, targets, temperature)
    if not any(isinstance(term, Divergence) for term in terms):
        return _against_stored(logits_NV, terms, targets._replace(teacher=None), temperature)
    if isinstance(teacher, ProjectedTeacher | LiveEnsemble):
        fixed = targets.share == 1 and targets.alpha_N is None  # else compiled anew each time
        dense = _compiled() if compiled and fixed else against_dense
        return dense(logits_NV, teacher.tempered(temperature), targets.ids_N, terms, targets.share)
    if isinstance(teacher, SampledIds):
        if targets.share != 1:
            raise UserError("a target that moves needs more than draws", where="progressive")
        return against_draws(logits_NV, terms, targets.ids_N, teacher)
    if isinstance(teacher, StoredEnsemble):
        return _against_several(logits_NV, terms, targets, temperature)
    if teacher is None:
        raise UserError("a soft term needs a teacher's distributions", where="terms")
    return _against_stored(logits_NV, terms, targets, temperature)


def against_dense(
    logits_NV: Tensor, teacher_NV: Tensor, ids_N: Tensor, terms: list[ResponseTerm], share: float
) -> tuple[list[Tensor], Tensor]:
    """Return losses and grad over the whole vocabulary; both logits are divided by T already."""
    logp_NV, logq_NV = teacher_NV.log_softmax(-1), logits_NV.log_softmax(-1)
    targets = Targets(ids_N, share=share)
    logp_NV = targets.blend(logp_NV, logq_NV)
    losses, hard, grad_NV = [], 0.0, None
    for term in terms:
        if isinstance(term, Hard):
            losses.append(-term.weight * logq_NV.gather(-1, ids_N[:, None])[:, 0])
            hard += term.weight
            continue
        assert isinstance(term, Divergence)
        scale = term.weight * term.temperature**2
        loss_N, grad = term.over_outcomes(logp_NV, logq_NV)
        losses.append(loss_N * scale)
        grad = grad * scale if scale != 1 else grad
        grad_NV = grad if grad_NV is None else grad_NV + grad
    assert grad_NV is not None, "no soft term"
    # d log q_j/d z_i = [i = j] − q_i
    grad_NV = grad_NV.addcmul(logq_NV.exp(), hard - grad_NV.sum(-1, keepdim=True))
    return losses, _minus_label(grad_NV, ids_N, hard)


@cache
def _compiled() -> Callable[..., tuple[list[Tensor], Tensor]]:
    return torch.compile(against_dense, dynamic=True)


def _against_crossed(
    logits_NV: Tensor, terms: list[ResponseTerm], targets: Targets, temperature: float
) -> tuple[list[Tensor], Tensor]:
    """Return losses, a group's at its last token, and the grad by autograd over this chunk."""
    teacher = targets.teacher
    if not isinstance(teacher, CrossTokenizerTargets):
        raise UserError("uld needs a live teacher of its own tokenizer", where="terms")
    theirs = Side(teacher.logp(temperature), teacher.ids_M, teacher.group_M)
    losses = []
    with torch.enable_grad():
        leaf_NV = logits_NV.requires_grad_()
        ours = Side(leaf_NV.log_softmax(-1), targets.ids_N, teacher.group_N)
        total = leaf_NV.new_zeros(())
        for term in terms:
            if isinstance(term, Uld):
                loss_G = term.weight * term.per_group(ours, theirs, teacher.shared)
                loss_N = torch.zeros_like(leaf_NV[:, 0]).masked_scatter(ours.last_N, loss_G)
            else:
                loss_N = -term.weight * ours.log_NV.gather(-1, targets.ids_N[:, None])[:, 0]
            losses.append(loss_N.detach())
            total = total + loss_N.sum()
        (grad_NV,) = torch.autograd.grad(total, leaf_NV)
    return losses, grad_NV


def _against_several(
    logits_NV: Tensor, terms: list[ResponseTerm], targets: Targets, temperature: float
) -> tuple[list[Tensor], Tensor]:
    """Return the mean of the losses against each teacher's signals, by the teachers' weights."""
    several = targets.teacher
    assert isinstance(several, StoredEnsemble)
    losses = [logits_NV.new_zeros(len(logits_NV)) for _ in terms]
    grad_NV = torch.zeros_like(logits_NV)
    for teacher, weight_N in zip(several.teachers, several.weights_NT.unbind(-1), strict=True):
        (some,) = weight_N.nonzero(as_tuple=True)
        part = targets._replace(teacher=teacher).rows(some)
        found, grad = _against_stored(logits_NV[some], terms, part, temperature)
        for loss_N, one in zip(losses, found, strict=True):
            loss_N.index_add_(0, some, one * weight_N[some])
        grad_NV.index_add_(0, some, grad.mul_(weight_N[some, None]))
    return losses, grad_NV


def _against_stored(
    logits_NV: Tensor, terms: list[ResponseTerm], targets: Targets, temperature: float
) -> tuple[list[Tensor], Tensor]:
    """Loss and grad through K + 1 outcomes: only one pass of exp and one of scaling touch V.

    With g = d loss/d log q over the outcomes, G = Σ g, and q_rest = Σ of q outside the K ids:
    d loss/d z_i is g_i − q_i G for a stored id, and q_i (g_rest/q_rest − G) for any other. The
    rest is summed, not taken as 1 − Σ q_k, which would cancel.
    """
    teacher = targets.teacher
    ids_NK = targets.ids_N.new_empty(len(logits_NV), 0)
    if isinstance(teacher, TopK):
        ids_NK = teacher.ids_NK
    top_N1 = logits_NV.amax(-1, keepdim=True)
    label_N1 = logits_NV.gather(-1, targets.ids_N[:, None]) - top_N1
    stored_NK = logits_NV.gather(-1, ids_NK) - top_N1
    exp_NV = logits_NV.sub_(top_N1).exp_().scatter_(-1, ids_NK, 0)
    rest_N1 = exp_NV.sum(-1, keepdim=True).clamp_min_(TINY)
    total_N1 = rest_N1 + stored_NK.exp().sum(-1, keepdim=True)
    logq_NC = torch.cat([stored_NK, rest_N1.log()], -1) - total_N1.log()
    losses, hard, grad_NC = [], 0.0, torch.zeros_like(logq_NC)
    for term in terms:
        if isinstance(term, Hard):
            losses.append(-term.weight * (label_N1 - total_N1.log())[:, 0])
            hard += term.weight
            continue
        assert isinstance(term, Divergence) and isinstance(teacher, TopK)
        if not term.on_stored_signals:
            raise UserError(f"{term.type} needs a live teacher: stored signals have not all logits")
        scale = term.weight * term.temperature**2
        logp_NC = targets.blend(teacher.at(temperature, term.tail).to(logq_NC.dtype), logq_NC)
        loss_N, grad = term.over_outcomes(logp_NC, logq_NC)
        losses.append(loss_N * scale)
        grad_NC.add_(grad, alpha=scale)
    pull_N1 = hard - grad_NC.sum(-1, keepdim=True)
    grad_NV = exp_NV.mul_(grad_NC[:, -1:] / rest_N1 + pull_N1 / total_N1)
    grad_NV.scatter_(-1, ids_NK, grad_NC[:, :-1] + logq_NC[:, :-1].exp() * pull_N1)
    return losses, _minus_label(grad_NV, targets.ids_N, hard)


def _minus_label(grad_NV: Tensor, ids_N: Tensor, hard: float) -> Tensor:
    if hard:
        grad_NV.scatter_add_(-1, ids_N[:, None], torch.full_like(grad_NV[:, :1], -hard))
    return grad_NV
