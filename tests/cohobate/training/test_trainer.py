"""The trainer against transformers' own loss, and at its edges."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from cohobate.data.examples import Example
from cohobate.errors import UserError
from cohobate.losses.divergences import ForwardKL, Hard
from cohobate.training import model_setup
from cohobate.training.hyperparameters import Freeze, Hyperparameters

ALL = Freeze(embeddings=False)


def examples(rows: int = 24, words: int = 50) -> list[Example]:
    rng = np.random.default_rng(0)
    drawn = []
    for n in range(rows):
        length = int(rng.integers(4, 14))
        ids = rng.integers(5, words, length).astype(np.int32)
        drawn.append(Example.with_answer(f"row-{n}", ids, int(rng.integers(1, length))))
    return drawn


def settings(**changes: Any) -> Hyperparameters:
    options = {"updates": 4, "batch_size": 8, "threads": 1, "precision": "float32", "warmup": 0}
    return Hyperparameters(**(options | changes))


def train(model: Any, rows: list[Example], chosen: Hyperparameters, **options: Any) -> list[Any]:
    from cohobate.training.trainer import fit

    return fit(model, rows, [Hard()], chosen, **({"seed": 1, "label": "a test"} | options))


def digest(model: Any) -> str:
    sha256 = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        sha256.update(name.encode() + weight.numpy().tobytes())
    return sha256.hexdigest()


def labels_of(rows: list[Example], width: int) -> torch.Tensor:
    labels = torch.full((len(rows), width), -100)
    for n, row in enumerate(rows):
        for start, end in row.spans:
            labels[n, start:end] = torch.tensor(row.ids[start:end])
    return labels


def hugging_face_loss(model: Any, rows: list[Example]) -> torch.Tensor:
    width = max(len(row.ids) for row in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    for n, row in enumerate(rows):
        ids[n, : len(row.ids)] = torch.tensor(row.ids)
    loss: torch.Tensor = model(input_ids=ids, labels=labels_of(rows, width)).loss
    return loss


def plain_loss(model: Any, rows: list[Example]) -> float:
    with torch.no_grad():
        return float(hugging_face_loss(model, rows))


def with_earlier_turns(rows: list[Example]) -> list[Example]:
    """Rows of which a token in the middle of the prompt is learnt too, where it has one."""
    return [
        replace(row, spans=((1, 2), *row.spans)) if row.prompt_length > 2 else row for row in rows
    ]


@pytest.mark.parametrize("turns", [1, 2])
@pytest.mark.parametrize("tied", [True, False])
def test_loss_and_gradient_are_those_of_transformers(make_model, tokenizer, tied, turns) -> None:
    from cohobate.training.batches import MicroBatches
    from cohobate.training.model_loss import CausalLMLoss

    model, rows = make_model(tokenizer, tie_word_embeddings=tied), examples(8)
    if turns == 2:
        rows = with_earlier_turns(rows)
        assert {len(row.spans) for row in rows} == {1, 2}
    expected = hugging_face_loss(model, rows)
    gradients = torch.autograd.grad(expected, list(model.parameters()))
    batch = MicroBatches(rows, [range(8)], 8, None)[0]
    loss, losses = CausalLMLoss(model, [Hard()])(**batch, divisor=len(batch["labels_N"]))
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(losses.mean(), expected.detach())
    grads = torch.autograd.grad(loss, list(model.parameters()))
    for gradient, reference in zip(grads, gradients, strict=True):
        torch.testing.assert_close(gradient, reference, rtol=1e-4, atol=3e-6)


def test_the_history_says_loss_rate_and_stage_of_each_update(model, capfd) -> None:
    rows = examples(8)
    expected = plain_loss(model, rows)
    history = train(model, rows, settings(learning_rate=0.01, schedule="linear"))
    assert history[0].loss == pytest.approx(expected, rel=1e-5)
    assert [u.step for u in history] == [1, 2, 3, 4]
    assert [u.learning_rate for u in history] == pytest.approx([0.01, 0.0075, 0.005, 0.0025])
    assert history[-1].loss < history[0].loss
    out, err = capfd.readouterr()
    assert out == "" and all(line.startswith("a test ") for line in err.splitlines())


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_same_seed_gives_the_same_bytes(make_model, tokenizer, precision) -> None:
    digests = []
    for seed in (1, 1, 2):
        model = make_model(tokenizer, attention_dropout=0.1)
        torch.rand(7)  # whatever was drawn before must not matter
        train(model, examples(), settings(precision=precision, micro_batch_size=4), seed=seed)
        digests.append(digest(model))
    assert digests[0] == digests[1] != digests[2]


def test_accumulated_micro_batches_are_one_large_batch(make_model, tokenizer) -> None:
    models = [make_model(tokenizer) for _ in range(2)]
    chosen = {"learning_rate": 0.01, "freeze": ALL}
    one = train(models[0], examples(), settings(**chosen))
    many = train(models[1], examples(), settings(micro_batch_size=3, **chosen))
    assert [u.loss for u in many] == pytest.approx([u.loss for u in one], rel=1e-5)
    for a, b in zip(*(m.state_dict().values() for m in models), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_one_valid_token_is_enough(model) -> None:
    row = Example.with_answer("one", np.array([7, 8, 9], dtype=np.int32), 2)
    expected = plain_loss(model, [row])
    history = train(model, [row], settings(updates=1, batch_size=1))
    assert history[0].loss == pytest.approx(expected, rel=1e-5)


def test_a_batch_without_any_valid_token_changes_nothing(model) -> None:
    before = digest(model)
    row = Example.with_answer("none", np.array([7, 8, 9], dtype=np.int32), 3)
    history = train(model, [row], settings(updates=2, batch_size=2, learning_rate=0.1))
    assert [u.loss for u in history] == [0, 0]
    assert digest(model) == before


def test_masked_rows_do_not_dilute_the_loss(model) -> None:
    rows = examples(4)
    expected = float(hugging_face_loss(model, rows))
    masked = Example.with_answer("none", np.arange(5, 15, dtype=np.int32), 10)
    history = train(model, [*rows, *[masked] * 4], settings(updates=1))
    assert history[0].loss == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("tied", "frozen", "still"),
    [
        (True, Freeze(), {"embed_tokens", "lm_head"}),
        (False, Freeze(), {"embed_tokens"}),
        (False, Freeze(head=True, layers=2), {"embed_tokens", "lm_head", "layers.0", "layers.1"}),
        (True, ALL, set()),
    ],
)
def test_frozen_weights_stay(make_model, tokenizer, tied, frozen, still) -> None:
    model = make_model(tokenizer, tie_word_embeddings=tied)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    train(model, examples(), settings(freeze=frozen, learning_rate=0.01))
    for name, weight in model.state_dict().items():
        expected = any(part in name for part in still)
        assert torch.equal(weight, before[name]) == expected, name
    assert all(weight.requires_grad for weight in model.parameters())


def test_ids_of_mere_padding_are_no_outcomes(make_model, tokenizer) -> None:
    words = len(tokenizer)
    model = make_model(tokenizer, vocab_size=words + 20, tie_word_embeddings=False)
    padding = model.lm_head.weight[words:].clone()
    history = train(model, examples(8), settings(learning_rate=0.01), vocabulary=words)
    assert torch.equal(model.lm_head.weight[words:], padding)
    small = make_model(tokenizer, vocab_size=words + 20, tie_word_embeddings=False)
    logits = small.get_decoder()(torch.tensor([[5, 6]])).last_hidden_state @ small.lm_head.weight.T
    assert logits.shape[-1] == words + 20
    small.lm_head.weight.data[words:] = 0
    small.lm_head.bias = torch.nn.Parameter(torch.zeros(words + 20))
    small.lm_head.bias.data[words:] = -1e9
    assert history[0].loss == pytest.approx(plain_loss(small, examples(8)), rel=1e-5)


def test_a_loss_that_is_not_finite_names_its_rows(model) -> None:
    rows = examples(8, words=50)
    bad = Example.with_answer("the-bad-one", np.array([5, 60, 7], dtype=np.int32), 2)
    model.get_input_embeddings().weight.data[60] = torch.nan
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.nan_to_num())  # untied
    with pytest.raises(UserError, match="loss is not finite") as caught:
        train(model, [*rows, bad], settings(batch_size=9, micro_batch_size=2, updates=3))
    assert caught.value.where.endswith("update 1, rows the-bad-one")


def test_a_gradient_that_is_not_finite_names_the_rows_of_its_update(model) -> None:
    model.model.norm.weight.register_hook(lambda gradient: gradient * torch.inf)
    before = digest(model)
    with pytest.raises(UserError, match="gradient is not finite") as caught:
        train(model, examples(3), settings(batch_size=3))
    assert all(f"row-{n}" in caught.value.where for n in range(3))
    assert digest(model) == before


def test_a_head_that_is_not_linear_is_refused(model) -> None:
    model.lm_head.register_forward_hook(lambda module, inputs, logits: logits**2)
    with pytest.raises(UserError, match="does more"):
        train(model, examples(), settings())


def test_more_blocks_than_there_are_cannot_be_frozen(model) -> None:
    with pytest.raises(UserError, match="has 4"):
        train(model, examples(), settings(freeze=Freeze(layers=5)))


def test_soft_terms_need_signals(model) -> None:
    from cohobate.training.trainer import fit

    with pytest.raises(UserError, match="signals"):
        fit(model, examples(), [ForwardKL()], settings(), seed=1, label="a test")


@pytest.mark.parametrize("attention", ["auto", "eager"])
@pytest.mark.parametrize("by_rows", [True, False])
def test_attention_is_what_trains_fastest_and_set_back(
    attention: str, by_rows: bool, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    original: Callable[..., Any] = model.set_attn_implementation
    monkeypatch.setattr(
        model, "set_attn_implementation", lambda name: (seen.append(name), original(name))
    )
    monkeypatch.setattr(model_setup, "has_row_attention", lambda model: by_rows)
    train(model, examples(), settings(updates=1, attention=attention))
    learns = "sdpa" if attention == "auto" and by_rows else "eager"
    seen = [name for name in seen if name != "row_attention"]  # which is sdpa by rows
    assert seen[-2:] == [learns, "sdpa"] and model.config._attn_implementation == "sdpa"


def test_activations_that_are_computed_again_give_the_same_numbers_in_less_memory(
    make_model: Callable[..., Any], tokenizer: Any
) -> None:
    losses, kept = [], []
    for again in (False, True):
        saved: list[int] = []

        def count(tensor: torch.Tensor, saved: list[int] = saved) -> torch.Tensor:
            saved.append(tensor.nbytes)
            return tensor

        model = make_model(tokenizer)
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            history = train(model, examples(), settings(activation_checkpointing=again))
        assert not model.is_activation_checkpointing
        losses.append([update.loss for update in history])
        kept.append(sum(saved))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert kept[1] < kept[0]


def test_attention_that_is_not_installed_is_refused(model: Any) -> None:
    with pytest.raises(UserError, match="cannot attend by flash_attention_2") as caught:
        train(model, examples(), settings(attention="flash_attention_2"))
    assert "attention: auto" in caught.value.fix
