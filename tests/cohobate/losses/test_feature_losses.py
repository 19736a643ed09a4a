"""Features against their formulas written out, and as terms of a phase."""

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from cohobate.data.examples import Example
from cohobate.errors import UserError
from cohobate.fast.forward_pass import forward
from cohobate.losses import feature_losses as f
from cohobate.losses.divergences import ForwardKL
from cohobate.losses.feature_losses import FeatureTerm, TokenPositions
from cohobate.losses.layer_matching import LayerMatching, layer_pairs
from cohobate.teachers.target_sources import LiveSource
from cohobate.training.batches import MicroBatches
from cohobate.training.model_loss import CausalLMLoss
from tests.cohobate.teachers.test_target_sources import examples, logits_of

B, S, D, H = 3, 5, 6, 4
POSITIONS = TokenPositions(torch.tensor([1, 2, 5, 6, 7, 13]), S)  # rows 0, 1 and 2


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def picked(x_BSD: Tensor) -> np.ndarray:
    return np.stack([x_BSD[n // S, n % S].double().numpy() for n in POSITIONS.positions_N.tolist()])


def term(**fields: object) -> f.Feature:
    feature: f.Feature = TypeAdapter(FeatureTerm).validate_python(fields)
    return feature


def maps(heads: int, seed: int) -> Tensor:
    """Causal attention maps, (B, H, S, S)."""
    later = torch.ones(S, S).triu(1).bool()
    return random(B, heads, S, S, seed=seed).masked_fill(later, -torch.inf).softmax(-1)


def test_hidden_states() -> None:
    x, y = random(B, S, D, seed=0), random(B, S, D, seed=1)
    a, b = picked(x), picked(y)
    mse = term(type="hidden_mse").compare(x, y, POSITIONS)
    np.testing.assert_allclose(mse.numpy(), ((a - b) ** 2).mean(-1), rtol=1e-5)
    cosine = term(type="hidden_cosine").compare(x, y, POSITIONS)
    norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    np.testing.assert_allclose(cosine.numpy(), 1 - (a * b).sum(-1) / norms, rtol=1e-5)


@pytest.mark.parametrize("heads", ["average", "match"])
@pytest.mark.parametrize("distance", ["kl", "mse"])
def test_attention_maps(heads: str, distance: str) -> None:
    x, y = maps(2, seed=0), maps(4, seed=1)
    actual = term(type="attention", heads=heads, distance=distance).compare(x, y, POSITIONS)
    expected = []
    for n in POSITIONS.positions_N.tolist():
        q, p = (m[n // S, :, n % S, : n % S + 1].double().numpy() for m in (x, y))
        p = p.reshape(2, 2, -1).mean(1) if heads == "match" else p.mean(0, keepdims=True)
        q = q if heads == "match" else q.mean(0, keepdims=True)
        each = (p * np.log(p / q)).sum(-1) if distance == "kl" else ((p - q) ** 2).mean(-1)
        expected.append(each.mean())
    np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-4, atol=1e-7)


def test_value_relations() -> None:
    x, y = random(B, S, 2, 3, seed=0), random(B, S, 4, 5, seed=1)
    actual = term(type="value_relation").compare(x, y, POSITIONS)
    expected = []
    for n in POSITIONS.positions_N.tolist():
        row, at, each = n // S, n % S, []
        for head in range(2):
            sides = []
            for values in (x, y):
                v = values[row].reshape(S, 2, -1)[:, head].double().numpy()
                scores = v[: at + 1] @ v[at] / np.sqrt(v.shape[-1])
                sides.append(np.exp(scores) / np.exp(scores).sum())
            q, p = sides
            each.append((p * np.log(p / q)).sum())
        expected.append(np.mean(each))
    np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-4, atol=1e-6)


def huber(x: np.ndarray) -> np.ndarray:
    return np.where(np.abs(x) < 1, x**2 / 2, np.abs(x) - 0.5)


def row_means(x: Tensor) -> np.ndarray:
    owner = POSITIONS.positions_N.numpy() // S
    return np.stack([picked(x)[owner == row].mean(0) for row in range(B)])


def test_relational_distances_and_angles() -> None:
    x, y = random(B, S, D, seed=0), random(B, S, D + 2, seed=1)
    actual = term(type="rkd", distance=0.5, angle=3).compare(x, y, POSITIONS)
    spread, corners = [], []
    for side in (row_means(x), row_means(y)):
        far = np.array([np.linalg.norm(side[i] - side[j]) for i in range(B) for j in range(i)])
        spread.append(far / far.mean())
        cube = np.zeros((B, B, B))
        for i in range(B):
            for j in range(B):
                for k in range(B):
                    if i not in (j, k):
                        u, v = side[j] - side[i], side[k] - side[i]
                        cube[i, j, k] = u @ v / np.linalg.norm(u) / np.linalg.norm(v)
        corners.append(cube)
    expected = 0.5 * huber(spread[0] - spread[1]).mean() + 3 * huber(corners[0] - corners[1]).mean()
    np.testing.assert_allclose(actual.numpy(), [expected] * 6, rtol=1e-4)


def test_similarities_are_preserved() -> None:
    x, y = random(B, S, D, seed=0), random(B, S, D + 2, seed=1)
    actual = term(type="spkd").compare(x, y, POSITIONS)
    q, p = (m @ m.T for m in map(row_means, (x, y)))
    q, p = (g / np.linalg.norm(g, axis=-1, keepdims=True) for g in (q, p))
    np.testing.assert_allclose(actual.numpy(), [((q - p) ** 2).sum() / B**2] * 6, rtol=1e-4)


def test_a_batch_of_one_row_has_no_relations() -> None:
    alone = TokenPositions(torch.tensor([1, 2]), S)
    x, y = random(B, S, D, seed=0).requires_grad_(), random(B, S, D, seed=1)
    loss = term(type="rkd").compare(x, y, alone)
    loss.sum().backward()
    assert loss.tolist() == [0, 0] and x.grad is not None and not x.grad.any()


@pytest.mark.parametrize("depths", [(2, 4), (3, 4), (5, 30), (4, 2), (1, 7), (6, 6)])
def test_the_uniform_map_ends_with_the_last_pair(depths: tuple[int, int]) -> None:
    pairs = layer_pairs("uniform", *depths)
    assert pairs[-1] == (depths[0], (depths[1],))
    chosen = [of_teacher[0] for _, of_teacher in pairs]
    assert chosen == sorted(chosen) and chosen[0] >= 1


def test_the_other_maps() -> None:
    assert layer_pairs("last", 2, 5) == [(2, (5,))]
    assert layer_pairs("top", 2, 5) == [(1, (4,)), (2, (5,))]
    assert layer_pairs(((0, 0), (2, 3)), 2, 5) == [(0, (0,)), (2, (3,))]
    assert layer_pairs("learned", 1, 3) == [(1, (1, 2, 3))]
    with pytest.raises(UserError, match="no such pair"):
        layer_pairs(((1, 6),), 2, 5)
    with pytest.raises(UserError, match="teacher of 5 blocks"):
        layer_pairs("top", 5, 2)


EVERY = [
    {"type": "hidden_mse"},
    {"type": "hidden_mse", "layers": "learned"},
    {"type": "hidden_cosine", "layers": [[0, 0], [2, 3]]},
    {"type": "attention", "heads": "match"},
    {"type": "attention", "distance": "mse", "layers": "top"},
    {"type": "value_relation"},
    {"type": "rkd"},
    {"type": "spkd", "balance": True},
]


@pytest.fixture
def pair(make_model, tokenizer):
    """A student, and a teacher that is deeper, wider and has more heads; both eager."""
    models = (
        make_model(tokenizer, layers=2),
        make_model(
            tokenizer,
            seed=1,
            layers=4,
            hidden_size=64,
            num_attention_heads=8,
            num_key_value_heads=4,
        ),
    )
    for model in models:
        model.set_attn_implementation("eager")
    return models


def loss_fn_of(pair, tokenizer, fields, terms=()) -> CausalLMLoss:
    student, teacher = pair
    matching = LayerMatching([term(**x) for x in fields], student, teacher, seed=0)
    live = LiveSource({"main": teacher}, len(tokenizer), matching=matching)
    return CausalLMLoss(student, terms, 5, live)


def step_of(loss_fn: CausalLMLoss) -> tuple[Tensor, Tensor]:
    batch = MicroBatches(examples(), [range(6)], 6, loss_fn.target_source)[0]
    losses: tuple[Tensor, Tensor] = loss_fn(**batch, divisor=len(batch["labels_N"]))
    return losses


@pytest.mark.parametrize("fields", EVERY, ids=lambda x: "-".join(map(str, x.values())))
def test_every_feature_teaches_the_student(pair, tokenizer, fields) -> None:
    loss_fn = loss_fn_of(pair, tokenizer, [fields], [ForwardKL()])
    optimizer = torch.optim.AdamW(loss_fn.parameters(), lr=3e-3)
    before = None
    for _ in range(12):
        loss, losses_NF = step_of(loss_fn)
        before = losses_NF.mean(0) if before is None else before
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss_fn.names == ["forward_kl", fields["type"]]
    torch.testing.assert_close(losses_NF.sum(-1).mean(), loss.detach())
    if not fields.get("balance"):
        assert losses_NF.mean(0)[1] < 0.95 * before[1]
    assert all(p.grad is None for p in pair[1].parameters())


def test_features_alone_make_a_phase_and_balance_with_nothing_else(pair, tokenizer) -> None:
    loss, losses_NF = step_of(loss_fn_of(pair, tokenizer, [{"type": "hidden_mse"}]))
    assert losses_NF.shape[1] == 1 and float(loss.detach()) > 0


def test_balanced_features_weigh_as_much_as_the_response(pair, tokenizer) -> None:
    fields = {"type": "hidden_mse", "balance": True, "weight": 0.5}
    _, losses_NF = step_of(loss_fn_of(pair, tokenizer, [fields], [ForwardKL()]))
    response, feature = losses_NF.mean(0).tolist()
    assert feature == pytest.approx(0.5 * response, rel=1e-5)


def test_the_loss_does_not_depend_on_padding_or_micro_batches(pair, tokenizer) -> None:
    fields = [{"type": "hidden_cosine"}, {"type": "attention"}, {"type": "value_relation"}]
    loss_fn = loss_fn_of(pair, tokenizer, fields)
    whole, _ = step_of(loss_fn)
    tokens = sum(row.length for row in examples())
    parts = MicroBatches(examples(), [range(6)], 1, loss_fn.target_source)
    total = sum(float(loss_fn(**parts[n], divisor=tokens)[0].detach()) for n in range(6))
    assert total == pytest.approx(float(whole.detach()), rel=1e-4)


def test_projections_are_trained_and_not_saved(pair, tokenizer, tmp_path) -> None:
    loss_fn = loss_fn_of(pair, tokenizer, [{"type": "hidden_mse"}])
    step_of(loss_fn)[0].backward()
    projections = dict(loss_fn.matching.projections.named_parameters())
    assert len(projections) == 2 and all(p.grad.any() for p in projections.values())
    assert all(p.shape == (64, 32) for p in projections.values())
    loss_fn.model.save_pretrained(tmp_path)
    assert type(loss_fn.model).from_pretrained(tmp_path).num_parameters() == (
        loss_fn.model.num_parameters()
    )


def test_the_weights_of_a_learned_map_are_reported(pair, tokenizer) -> None:
    loss_fn = loss_fn_of(pair, tokenizer, [{"type": "hidden_mse", "layers": "learned"}])
    report = loss_fn.matching.report()
    assert report == {f"hidden_mse of layer {n}": [0.25] * 4 for n in (1, 2)}
    step_of(loss_fn)[0].backward()
    assert all(mix.grad.any() for mix in loss_fn.matching.mixes.values())


def test_a_model_that_hides_its_maps_is_refused(make_model, tokenizer) -> None:
    model = make_model(tokenizer)
    for block in model.model.layers:
        block.self_attn.v_proj, block.self_attn.qkv = None, block.self_attn.v_proj
    with pytest.raises(UserError, match="no value projection"):
        forward(model, torch.tensor([[5, 6]]), torch.tensor([1]), frozenset({"values"}))


def test_looking_changes_nothing(make_model, tokenizer) -> None:
    model, row = make_model(tokenizer), examples()[0]
    ids = torch.from_numpy(row.ids[None].astype(np.int64))
    seen = forward(model, ids, torch.arange(ids.numel()), frozenset({"hidden", "values"}))
    assert len(seen.hidden) == 5 and len(seen.values) == 4
    assert seen.values[0].shape == (1, len(row.ids), 2, 8)
    torch.testing.assert_close(seen.hidden[-1][0], seen.last_hidden_ND)
    assert logits_of(model, row).isfinite().all()


def test_a_feature_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValidationError, match="hidden_mse"):
        term(type="hidden_mae")


def test_a_batch_without_any_valid_token_has_no_loss(pair, tokenizer) -> None:
    loss_fn = loss_fn_of(pair, tokenizer, EVERY, [ForwardKL()])
    masked = [Example.with_answer("none", np.arange(5, 12, dtype=np.int32), 7)] * 3
    loss, losses_NF = loss_fn(
        **MicroBatches(masked, [range(3)], 3, loss_fn.target_source)[0], divisor=1
    )
    loss.backward()
    assert float(loss) == 0 and losses_NF.shape == (0, 9)
    assert all(p.grad is None or not p.grad.any() for p in loss_fn.parameters())
