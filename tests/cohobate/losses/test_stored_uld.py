"""ULD from stored top-k signals: the live loss with all ids, a loss over fewer outcomes with K."""

from typing import Any

import pytest
import torch
from torch import Tensor

from cohobate.losses.cross_tokenizer_targets import (
    CrossTokenizerTargets,
    StoredCrossTokenizerTargets,
)
from cohobate.losses.divergences import Hard
from cohobate.losses.fused_head import fused_head_loss
from cohobate.losses.targets import Targets
from cohobate.losses.top_k import TopK
from cohobate.losses.uld import Uld
from cohobate.models.lm_head import Head

SHARED = (torch.tensor([1, 3, 4, 7]), torch.tensor([0, 2, 5, 6]))
GROUPS = (torch.tensor([0, 0, 1, 2]), torch.tensor([0, 1, 2, 2]))
IDS_M, LABELS = torch.tensor([3, 1, 4, 2]), torch.tensor([5, 6, 7, 8])


def random(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(*shape, generator=generator, dtype=torch.float64)


def stored(logits_MV: Tensor, k: int, temperature: float = 1.0) -> StoredCrossTokenizerTargets:
    logp_MV = logits_MV.log_softmax(-1)
    logp_MK, ids_MK = logp_MV.topk(k, -1)
    scaled_MV = (logp_MV / temperature).scatter(-1, ids_MK, -1e9)
    rest_M1 = scaled_MV.logsumexp(-1, keepdim=True).clamp_min(-30)
    top = TopK(ids_MK, logp_MK, rest_M1, (temperature,))
    return StoredCrossTokenizerTargets(top, logits_MV.shape[-1], IDS_M, *GROUPS, SHARED)


def live(logits_MV: Tensor) -> CrossTokenizerTargets:
    eye = Head(torch.eye(logits_MV.shape[-1], dtype=logits_MV.dtype))
    return CrossTokenizerTargets(logits_MV, eye, IDS_M, *GROUPS, SHARED)


def loss_and_grad(teacher: Any, student: Tensor, term: Uld, chunk: int = 512) -> tuple[Any, ...]:
    leaf = student.clone().requires_grad_()
    eye = Head(torch.eye(student.shape[-1], dtype=student.dtype))
    targets = Targets(LABELS, teacher)
    loss, losses = fused_head_loss(leaf, eye, [term], targets, divisor=3, chunk_tokens=chunk)
    return loss.detach(), torch.autograd.grad(loss, leaf)[0], losses[:, 0]


@pytest.mark.parametrize("size", [9, 15])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize(
    "term", [{"shared": "exact"}, {"shared": "exact", "beta": 0}, {"shared": "sorted"}]
)
def test_all_ids_stored_give_the_live_loss(size: int, temperature: float, term: dict) -> None:
    uld = Uld.model_validate({"type": "uld", "temperature": temperature} | term)
    teacher, student = random(4, size, seed=2), random(4, 11, seed=1)
    expected = loss_and_grad(live(teacher), student, uld)
    for chunk in (1, 512):  # groups stay whole
        actual = loss_and_grad(stored(teacher, size, temperature), student, uld, chunk)
        for one, other in zip(actual, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("shared", ["exact", "sorted"])
@pytest.mark.parametrize("k", [2, 4, 7])
def test_with_fewer_ids_the_loss_is_off_by_less_than_the_rest(shared: Any, k: int) -> None:
    uld = Uld(type="uld", shared=shared)
    # the two tokens before a group's last are among the K
    teacher, student = 2 * random(4, 9, seed=2), random(4, 11, seed=1)
    teacher[2, 4] += 20
    exact, coarse = (
        loss_and_grad(one, student, uld)[2] for one in (live(teacher), stored(teacher, k))
    )
    rest_M = 1 - teacher.softmax(-1).topk(k, -1).values.sum(-1)
    rest_G = rest_M[torch.tensor([0, 1, 3])]
    gap_G = (coarse - exact)[torch.tensor([1, 2, 3])].abs()
    # by rank: twice the mass that moves; the divergence of the shared part is not linear in it
    assert (gap_G <= 2 * rest_G + 0.7 * rest_G.sqrt() + 1e-9).all()


def test_a_group_of_which_the_store_knows_no_probability_has_no_loss() -> None:
    teacher = random(4, 9, seed=2)
    # the label of the third group's first token is the teacher's least likely id
    teacher[2, 4] = -50
    uld = Uld(type="uld")
    _, grad, losses = loss_and_grad(stored(teacher, 4), random(4, 11, seed=1), uld)
    assert losses[3] == 0 and not grad[3].any()
    assert losses[1] > 0 and losses[2] > 0


@pytest.mark.usefixtures("one_thread")
def test_gradcheck() -> None:
    targets = Targets(LABELS, stored(random(4, 9, seed=2), 5, 2.0))
    hidden, weight = random(4, 3, seed=3).requires_grad_(), random(11, 3, seed=4).requires_grad_()
    terms = [Uld(type="uld", temperature=2), Hard(weight=0.5)]

    def loss(hidden: Tensor, weight: Tensor) -> Tensor:
        return fused_head_loss(hidden, Head(weight), terms, targets, divisor=4, chunk_tokens=3)[0]

    assert torch.autograd.gradcheck(loss, (hidden, weight))
