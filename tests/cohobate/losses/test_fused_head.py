"""The fused head against the plain computation: whole logits, log-softmax, autograd, float64."""

import pytest
import torch
from torch import Tensor

from cohobate.errors import UserError
from cohobate.losses import divergences as d
from cohobate.losses.divergences import Hard, Term
from cohobate.losses.fused_head import fused_head_loss
from cohobate.losses.live_teacher import LiveTeacher
from cohobate.losses.targets import Targets
from cohobate.losses.top_k import TopK
from cohobate.models.lm_head import Head

N, V, D, TEACHER_D, K = 9, 23, 5, 6, 4
TEMPERATURES = (0.7, 1.0, 2.0)
SOFT = [
    d.ForwardKL(),
    d.ReverseKL(temperature=2),
    d.JensenShannon(beta=0.3),
    d.SkewForwardKL(weight=0.5),
    d.SkewReverseKL(temperature=0.7),
    d.AdaptiveKL(),
    d.TotalVariation(),
    d.ForwardKL(temperature=3, tempers="outcomes"),
    d.JensenShannon(temperature=2, tempers="outcomes"),
]
MIXES: list[list[Term]] = [
    [Hard()],
    *([soft] for soft in SOFT),
    [d.ForwardKL(weight=0.7), Hard(weight=0.3)],
    [d.ForwardKL(weight=0.7, temperature=2), Hard(weight=0.3), d.ReverseKL(weight=0.1)],
    [d.ReverseKL(temperature=2, tempers="outcomes"), Hard(weight=0.3), d.ForwardKL(temperature=2)],
]


def _random(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=dtype)


def _teacher_logits() -> Tensor:
    return 2 * _random(N, TEACHER_D, seed=3) @ _random(V, TEACHER_D, seed=4).T


def _labels() -> Tensor:
    return torch.randint(V, (N,), generator=torch.Generator().manual_seed(5))


def _live() -> LiveTeacher:
    return LiveTeacher(2 * _random(N, TEACHER_D, seed=3), Head(_random(V, TEACHER_D, seed=4)))


def _stored(k: int = K) -> TopK:
    logp = _teacher_logits().log_softmax(-1)
    values, ids = logp.topk(k, -1)
    others = logp.scatter(-1, ids, -torch.inf)
    leftover = torch.stack([(others / t).logsumexp(-1) for t in TEMPERATURES], -1)
    return TopK(ids, values, leftover, TEMPERATURES)


def _reference(logits: Tensor, terms: list[Term], labels: Tensor, stored: TopK | None) -> Tensor:
    """Return the loss summed over tokens, from whole logits."""
    total = logits.new_zeros(())
    for term in terms:
        if isinstance(term, Hard):
            total += term.weight * torch.nn.functional.cross_entropy(
                logits, labels, reduction="sum"
            )
            continue
        t = term.temperature
        late = stored is not None and term.tempers == "outcomes"
        p, q = ((x / (1 if late else t)).softmax(-1) for x in (_teacher_logits(), logits))
        if stored is not None:  # the same distributions over K + 1 outcomes
            p, q = (_coarse(x, stored.ids_NK) for x in (p, q))
        if late:
            p, q = ((x.log() / t).softmax(-1) for x in (p, q))
        total += term.weight * t**2 * term.per_token(p.log(), q.log()).sum()
    return total


def _coarse(p: Tensor, ids: Tensor) -> Tensor:
    kept = p.gather(-1, ids)
    return torch.cat([kept, p.scatter(-1, ids, 0).sum(-1, keepdim=True)], -1)


@pytest.mark.parametrize("chunk", [2, 512])
@pytest.mark.parametrize("source", ["live", "stored"])
@pytest.mark.parametrize("terms", MIXES, ids=lambda x: "+".join(t.type for t in x))
def test_loss_and_gradients_are_those_of_the_plain_computation(
    terms: list[Term], source: str, chunk: int
) -> None:
    stored = _stored() if source == "stored" else None
    hidden, weight, bias = (_random(*s, seed=i).requires_grad_() for i, s in enumerate(SHAPES))
    expected = _reference(hidden @ weight.T + bias, terms, _labels(), stored) / 7
    grads = torch.autograd.grad(expected, [hidden, weight, bias])
    loss, losses = fused_head_loss(
        hidden,
        Head(weight, bias),
        terms,
        Targets(_labels(), stored or _live()),
        divisor=7,
        chunk_tokens=chunk,
    )
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(losses.sum() / 7, expected.detach(), rtol=1e-10, atol=1e-12)
    actual = torch.autograd.grad(loss, [hidden, weight, bias])
    for grad, reference in zip(actual, grads, strict=True):
        torch.testing.assert_close(grad, reference, rtol=1e-8, atol=1e-11)


SHAPES = [(N, D), (V, D), (V,)]


@pytest.mark.parametrize("source", ["live", "stored"])
@pytest.mark.usefixtures("one_thread")
def test_gradcheck(source: str) -> None:
    targets = Targets(_labels(), _stored() if source == "stored" else _live()).select(slice(3))
    hidden, weight = (_random(*s, seed=i).requires_grad_() for i, s in enumerate([(3, D), (V, D)]))
    terms = [d.ForwardKL(temperature=2), d.ReverseKL(), d.JensenShannon(), Hard()]

    def loss(hidden: Tensor, weight: Tensor) -> Tensor:
        return fused_head_loss(hidden, Head(weight), terms, targets, divisor=3, chunk_tokens=2)[0]

    assert torch.autograd.gradcheck(loss, (hidden, weight))


@pytest.mark.parametrize("beta", [0, 0.3, 1])
@pytest.mark.parametrize("temperature", [1, 2])
def test_gradients_are_those_of_trl(beta: float, temperature: float) -> None:
    from trl.experimental.gkd import GKDTrainer

    student, teacher = (0.3 * _random(40, 300, seed=s, dtype=torch.float32) for s in (1, 2))
    logits = student.requires_grad_()
    labels = torch.zeros(1, 40, dtype=torch.long)
    loss = GKDTrainer.generalized_jsd_loss(
        logits[None], teacher[None], labels, beta=beta, temperature=temperature
    )
    (expected,) = torch.autograd.grad(loss, logits)
    # an identity for a head: hidden rows are the logits; TRL knows no factor T²
    eye = Head(torch.eye(300))
    term = d.JensenShannon(beta=beta, temperature=temperature, weight=temperature**-2)
    targets = Targets(labels[0], LiveTeacher(teacher, eye))
    ours, _ = fused_head_loss(logits, eye, [term], targets, divisor=40)
    (actual,) = torch.autograd.grad(ours, logits)
    torch.testing.assert_close(ours, loss, rtol=1e-5, atol=1e-6)
    assert ((actual - expected).norm() / expected.norm()) < 1e-5


def test_soft_capping_scaling_and_padding_of_the_vocabulary() -> None:
    hidden, weight = (_random(*s, seed=i).requires_grad_() for i, s in enumerate(SHAPES[:2]))
    real = V - 3
    labels = _labels().clamp_max(real - 1)
    logits = 4 * torch.tanh(0.5 * (hidden @ weight[:real].T) / 4)
    expected = torch.autograd.grad(
        torch.nn.functional.cross_entropy(logits, labels), [hidden, weight]
    )
    head = Head(weight[:real], scale=0.5, softcap=4.0)
    loss, _ = fused_head_loss(hidden, head, [Hard()], Targets(labels), divisor=N, chunk_tokens=4)
    for actual, reference in zip(
        torch.autograd.grad(loss, [hidden, weight]), expected, strict=True
    ):
        torch.testing.assert_close(actual, reference)


def test_a_frozen_head_gets_no_gradient_and_is_cast_once() -> None:
    hidden, head = _random(N, D, seed=0).requires_grad_(), Head(_random(V, D, seed=1))
    loss, _ = fused_head_loss(hidden, head, [Hard()], Targets(_labels()), divisor=N)
    loss.backward()
    assert head.weight_VD.grad is None and hidden.grad is not None
    assert head.weight(torch.bfloat16) is head.weight(torch.bfloat16)


def test_a_trained_head_is_cast_anew_after_each_step() -> None:
    head = Head(_random(V, D, seed=1).requires_grad_())
    before = head.weight(torch.bfloat16).clone()
    with torch.no_grad():
        head.weight_VD.mul_(2)
    assert torch.equal(head.weight(torch.bfloat16), 2 * before)


def test_no_valid_token_gives_a_loss_of_zero_and_gradients_of_zero() -> None:
    hidden, weight = (_random(*s, seed=i).requires_grad_() for i, s in enumerate(SHAPES[:2]))
    none = Targets(_labels()[:0])
    loss, losses = fused_head_loss(hidden[:0], Head(weight), [Hard()], none, divisor=1)
    loss.backward()
    assert loss == 0 and losses.shape == (0, 1)
    assert weight.grad is not None and hidden.grad is not None
    assert not weight.grad.any() and not hidden.grad.any()


def test_stored_signals_of_the_whole_vocabulary_are_the_live_teacher() -> None:
    hidden, head = _random(N, D, seed=0), Head(_random(V, D, seed=1))
    terms = [d.ForwardKL(weight=0.6, temperature=2), Hard(weight=0.4)]
    sources = [_stored(k=V), _live()]
    live, stored = (
        fused_head_loss(hidden, head, terms, Targets(_labels(), s), divisor=N)[0] for s in sources
    )
    torch.testing.assert_close(live, stored)


def test_renormalised_top_k_is_cross_entropy_with_the_scaled_k() -> None:
    stored, logits = _stored(), _random(N, V, seed=0)
    p = stored.logp_NK.softmax(-1)
    logq = logits.log_softmax(-1).gather(-1, stored.ids_NK)
    expected = (p * (p.log() - logq)).sum()
    term = d.ForwardKL(tail="renormalise")
    head = Head(torch.eye(V, dtype=torch.float64))
    loss, _ = fused_head_loss(logits, head, [term], Targets(_labels(), stored), divisor=1)
    torch.testing.assert_close(loss, expected)


def test_bf16_under_autocast_stays_near_the_float64_loss() -> None:
    hidden = _random(64, 32, seed=0, dtype=torch.float32).requires_grad_()
    weight = _random(500, 32, seed=1, dtype=torch.float32) / 4
    labels = torch.randint(500, (64,), generator=torch.Generator().manual_seed(2))
    expected = torch.nn.functional.cross_entropy(hidden.double() @ weight.double().T, labels)
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = fused_head_loss(hidden, Head(weight), [Hard()], Targets(labels), divisor=64)
    loss.backward()
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), expected, rtol=5e-3, atol=0)
    (reference,) = torch.autograd.grad(expected, hidden)
    assert hidden.grad is not None
    assert (hidden.grad - reference).norm() / reference.norm() < 0.02


def test_a_temperature_that_was_not_stored_is_refused_by_name() -> None:
    with pytest.raises(UserError, match="temperature 3"):
        fused_head_loss(
            _random(N, D, seed=0),
            Head(_random(V, D, seed=1)),
            [d.ForwardKL(temperature=3)],
            Targets(_labels(), _stored()),
            divisor=1,
        )


def test_a_soft_term_without_a_teacher_is_refused() -> None:
    with pytest.raises(UserError, match="teacher"):
        fused_head_loss(
            _random(N, D, seed=0),
            Head(_random(V, D, seed=1)),
            [d.ForwardKL()],
            Targets(_labels()),
            divisor=1,
        )


def test_extreme_logits_stay_finite() -> None:
    hidden = torch.tensor([[400.0, -400.0, 0.0], [-400.0, 400.0, 0.0]], requires_grad=True)
    stored = TopK(torch.tensor([[1], [1]]), torch.zeros(2, 1), torch.full((2, 1), -30.0))
    terms = [d.ForwardKL(), d.ReverseKL(), d.JensenShannon(), Hard()]
    loss, _ = fused_head_loss(
        hidden, Head(torch.eye(3)), terms, Targets(torch.tensor([1, 0]), stored), divisor=2
    )
    loss.backward()
    assert loss.isfinite() and hidden.grad is not None and hidden.grad.isfinite().all()


class Largest(torch.utils._python_dispatch.TorchDispatchMode):
    """Notes the largest tensor that any operation gives."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        outputs = function(*args, **(kwargs or {}))
        for x in torch.utils._pytree.tree_leaves(outputs):
            if isinstance(x, Tensor):
                self.elements = max(self.elements, x.numel())
        return outputs


@pytest.mark.parametrize("source", ["live", "stored"])
@pytest.mark.parametrize("terms", MIXES, ids=lambda x: "+".join(t.type for t in x))
def test_no_tensor_is_as_large_as_all_logits(terms: list[Term], source: str) -> None:
    tokens, vocabulary, chunk = 64, 200, 8
    hidden, weight = _random(tokens, D, seed=0).requires_grad_(), _random(vocabulary, D, seed=1)
    teacher = LiveTeacher(_random(tokens, D, seed=2), Head(_random(vocabulary, D, seed=3)))
    stored = TopK(
        torch.arange(K).expand(tokens, K),
        torch.full((tokens, K), -2.0, dtype=torch.float64),
        torch.full((tokens, 3), -1.0, dtype=torch.float64),
        TEMPERATURES,
    )
    targets = Targets(
        torch.zeros(tokens, dtype=torch.long), teacher if source == "live" else stored
    )
    with Largest() as seen:
        loss, _ = fused_head_loss(
            hidden, Head(weight.requires_grad_()), terms, targets, divisor=1, chunk_tokens=chunk
        )
        loss.backward()
    assert chunk * vocabulary <= seen.elements <= 2 * chunk * vocabulary


def test_logit_mse_is_of_centred_logits() -> None:
    hidden, weight = (_random(*s, seed=i).requires_grad_() for i, s in enumerate(SHAPES[:2]))
    z, t = hidden @ weight.T + 5, _teacher_logits()
    gap = (z - z.mean(-1, keepdim=True)) - (t - t.mean(-1, keepdim=True))
    expected = gap.square().mean(-1).sum() / N
    grads = torch.autograd.grad(expected, [hidden, weight])
    for temperature in (1, 2):  # the factor T² takes back what T shrinks
        term = d.LogitMse(temperature=temperature)
        loss, _ = fused_head_loss(
            hidden, Head(weight), [term], Targets(_labels(), _live()), divisor=N, chunk_tokens=4
        )
        torch.testing.assert_close(loss, expected)
        for actual, grad in zip(torch.autograd.grad(loss, [hidden, weight]), grads, strict=True):
            torch.testing.assert_close(actual, grad)
    with pytest.raises(UserError, match="logit_mse needs a live teacher"):
        fused_head_loss(
            hidden, Head(weight), [d.LogitMse()], Targets(_labels(), _stored()), divisor=N
        )


@pytest.mark.slow
@pytest.mark.parametrize("terms", MIXES[1:8], ids=lambda x: "+".join(t.type for t in x))
def test_the_compiled_path_gives_the_same_numbers(terms: list[Term]) -> None:
    hidden, head = _random(N, D, seed=0), Head(_random(V, D, seed=1).requires_grad_())
    actual = []
    for compiled in (False, True):
        loss, _ = fused_head_loss(
            hidden, head, terms, Targets(_labels(), _live()), divisor=N, compiled=compiled
        )
        actual.append((loss, *torch.autograd.grad(loss, head.weight_VD)))
    torch.testing.assert_close(*actual, rtol=1e-9, atol=1e-12)
