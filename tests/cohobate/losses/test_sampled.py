"""Losses against draws: the plain computation in float64, and no bias."""

import pytest
import torch

from cohobate.errors import UserError
from cohobate.losses.divergences import ForwardKL, Hard, ReverseKL
from cohobate.losses.fused_head import fused_head_loss
from cohobate.losses.sampled_ids import SampledIds
from cohobate.losses.targets import Targets
from cohobate.models.lm_head import Head
from cohobate.teachers.signal_store.forms import StoredDraws

N, V, D = 7, 30, 5


def normal(*shape: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def labels() -> torch.Tensor:
    return torch.randint(V, (N,), generator=torch.Generator().manual_seed(5))


def teacher_logits() -> torch.Tensor:
    return 2 * normal(N, V, seed=1)


def draws(temperature: float, count: int, seed: int) -> SampledIds:
    form = StoredDraws(type="sampled", draws=count, temperature=temperature)
    rng = torch.rand(N, count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    measured = form.measure(Head(torch.eye(V, dtype=torch.float64)), teacher_logits(), rng)
    signals = form.unpack(form.pack(measured, V), V)
    return form.targets(signals | {"entropy_N": measured["entropy_N"]}, None)


@pytest.mark.parametrize("chunk", [2, 512])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_loss_and_gradients_are_those_of_the_plain_computation(temperature, chunk) -> None:
    hidden, weight = (normal(*s, seed=i).requires_grad_() for i, s in enumerate([(N, D), (V, D)]))
    teacher = draws(temperature, 20, seed=3)
    share = torch.zeros(N, V, dtype=torch.float64)
    share.scatter_add_(-1, teacher.ids_NK, teacher.share_NK.double())
    logq = (hidden @ weight.T / temperature).log_softmax(-1)
    soft = -(share * logq).sum() - teacher.entropy_N.sum()
    hard = torch.nn.functional.cross_entropy(hidden @ weight.T, labels(), reduction="sum")
    expected = (0.7 * temperature**2 * soft + 0.3 * hard) / 4
    terms = [ForwardKL(weight=0.7, temperature=temperature), Hard(weight=0.3)]
    loss, _ = fused_head_loss(
        hidden, Head(weight), terms, Targets(labels(), teacher), divisor=4, chunk_tokens=chunk
    )
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    for actual, grad in zip(
        torch.autograd.grad(loss, [hidden, weight]),
        torch.autograd.grad(expected, [hidden, weight]),
        strict=True,
    ):
        torch.testing.assert_close(actual, grad, rtol=1e-6, atol=1e-7)


def test_the_mean_over_draws_is_the_whole_divergence() -> None:
    logits = normal(N, V, seed=0).requires_grad_()
    eye = Head(torch.eye(V, dtype=torch.float64))
    p, logq = teacher_logits().softmax(-1), logits.log_softmax(-1)
    expected = (p * (p.log() - logq)).sum()
    (grad,) = torch.autograd.grad(expected, logits)
    losses, grads = [], []
    for seed in range(400):
        targets = Targets(labels(), draws(1.0, 8, seed))
        loss, _ = fused_head_loss(logits, eye, [ForwardKL()], targets, divisor=1)
        losses.append(loss.detach())
        grads.append(torch.autograd.grad(loss, logits)[0])
    assert abs(torch.stack(losses).mean() - expected) < 0.02 * expected
    one_off, mean_off = (
        (x - grad).norm() / grad.norm() for x in (grads[0], torch.stack(grads).mean(0))
    )
    assert mean_off < 0.03 and one_off > 0.1


def test_slices_of_the_distribution_are_each_drawn_from_once() -> None:
    """A share is never off by more than one draw at each end of its slice."""
    share = torch.zeros(N, V).scatter_add_(
        -1, (teacher := draws(1.0, 100, seed=0)).ids_NK, teacher.share_NK
    )
    assert (share - teacher_logits().softmax(-1)).abs().max() <= 0.02


@pytest.mark.parametrize("term", [ReverseKL(), ForwardKL(temperature=2)])
def test_what_draws_cannot_give_is_refused_by_name(term) -> None:
    with pytest.raises(UserError, match=f"{term.type} at temperature .* no unbiased estimate"):
        fused_head_loss(
            normal(N, D, seed=0),
            Head(normal(V, D, seed=1)),
            [term],
            Targets(labels(), draws(1.0, 8, seed=0)),
            divisor=1,
        )
