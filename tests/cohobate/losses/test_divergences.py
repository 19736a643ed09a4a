"""The divergences against float64 references written out in numpy, and against TRL's."""

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from cohobate.losses import divergences as d
from cohobate.losses.divergences import Term

ROWS, IDS = 7, 11


def _logits(seed: int, scale: float = 3.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(ROWS, IDS, generator=generator, dtype=torch.float64) * scale


LOGP, LOGQ = _logits(0).log_softmax(-1), _logits(1).log_softmax(-1)
P, Q = LOGP.exp().numpy(), LOGQ.exp().numpy()


def _kl(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    return np.sum(p * np.log(p / q), axis=-1)


def _jensen_shannon(beta: float) -> np.ndarray:
    m = beta * P + (1 - beta) * Q
    return beta * _kl(P, m) + (1 - beta) * _kl(Q, m)


def _adaptive(mass: float) -> np.ndarray:
    losses = []
    for p, q in zip(P, Q, strict=True):
        head, total = [], 0.0
        for outcome in np.argsort(-p):
            total += p[outcome]
            if head and total > mass:
                break
            head.append(outcome)
        share = np.abs(p - q)[head].sum() / np.abs(p - q).sum()
        losses.append(share * _kl(p, q) + (1 - share) * _kl(q, p))
    return np.array(losses)


def _logit_mse() -> np.ndarray:
    centred = [x - x.mean(-1, keepdims=True) for x in (np.log(P), np.log(Q))]
    return ((centred[0] - centred[1]) ** 2).mean(-1)


REFERENCES = [
    (d.ForwardKL(), _kl(P, Q)),
    (d.ReverseKL(), _kl(Q, P)),
    (d.JensenShannon(beta=0.5), _jensen_shannon(0.5)),
    (d.JensenShannon(beta=0.1), _jensen_shannon(0.1)),
    (d.JensenShannon(beta=0), _kl(P, Q)),
    (d.JensenShannon(beta=1), _kl(Q, P)),
    (d.SkewForwardKL(alpha=0.1), _kl(P, 0.1 * P + 0.9 * Q)),
    (d.SkewForwardKL(alpha=0), _kl(P, Q)),
    (d.SkewReverseKL(alpha=0.1), _kl(Q, 0.9 * P + 0.1 * Q)),
    (d.AdaptiveKL(), _adaptive(0.5)),
    (d.AdaptiveKL(head_mass=0.9), _adaptive(0.9)),
    (d.TotalVariation(), np.abs(P - Q).sum(-1) / 2),
    (d.LogitMse(), _logit_mse()),
]


@pytest.mark.parametrize(("divergence", "reference"), REFERENCES, ids=lambda x: repr(x)[:40])
def test_agrees_with_a_float64_reference(divergence: d.Divergence, reference: np.ndarray) -> None:
    np.testing.assert_allclose(divergence.per_token(LOGP, LOGQ).numpy(), reference, rtol=1e-12)
    single = divergence.per_token(LOGP.float(), LOGQ.float()).numpy()
    np.testing.assert_allclose(single, reference, rtol=1e-5)


@pytest.mark.parametrize("divergence", [r[0] for r in REFERENCES], ids=lambda x: repr(x)[:40])
def test_slope_is_the_derivative_of_per_token(divergence: d.Divergence) -> None:
    leaf = LOGQ.clone().requires_grad_()
    loss = divergence.per_token(LOGP, leaf)
    (expected,) = torch.autograd.grad(loss.sum(), leaf)
    actual, grad = divergence.loss_and_grad(LOGP, LOGQ)
    torch.testing.assert_close(actual, loss.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(grad, expected, rtol=1e-12, atol=1e-15)
    if not isinstance(divergence, d.AdaptiveKL):  # whose shares are constants to the gradient
        assert torch.autograd.gradcheck(lambda x: divergence.per_token(LOGP, x), leaf)


@pytest.mark.parametrize("divergence", [r[0] for r in REFERENCES], ids=lambda x: repr(x)[:40])
def test_is_zero_where_the_student_is_the_teacher(divergence: d.Divergence) -> None:
    assert divergence.per_token(LOGP, LOGP).abs().max() < 1e-15


def test_an_impossible_outcome_costs_nothing_and_poisons_nothing() -> None:
    never = torch.tensor([[0.0, np.log(1e-30)]])
    for divergence, _ in REFERENCES:
        loss, grad = divergence.loss_and_grad(never, torch.tensor([[0.5, 0.5]]).log())
        assert loss.isfinite().all() and grad.isfinite().all(), divergence


@pytest.mark.parametrize("name", ["reverse_kl", "jensen_shannon", "skew_reverse_kl", "adaptive_kl"])
def test_top_k_without_a_tail_is_refused_where_it_collapses(name: str) -> None:
    with pytest.raises(ValidationError, match="leave the stored ids"):
        TypeAdapter(Term).validate_python({"type": name, "tail": "renormalise"})


def test_top_k_without_a_tail_is_there_to_reproduce_others() -> None:
    term = TypeAdapter(Term).validate_python({"type": "forward_kl", "tail": "renormalise"})
    assert isinstance(term, d.ForwardKL)


def test_weights_are_named_by_what_they_weigh() -> None:
    with pytest.raises(ValidationError, match="alpha"):
        TypeAdapter(Term).validate_python({"type": "forward_kl", "alpha": 0.5})
