"""Quantisation-aware training; `uv pip install -e '.[qat]'` brings what it needs."""

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from cohobate.errors import UserError
from cohobate.training.quantization_aware import FakeQuantisation
from tests.cohobate.training.test_trainer import examples, settings, train

INT4 = FakeQuantisation(type="int4", group_size=16)


@pytest.mark.parametrize(("kind", "low", "high"), [("int8", -128, 127), ("int4", -8, 7)])
def test_linear_maps_compute_with_rounded_weights(
    model: Any, kind: str, low: int, high: int
) -> None:
    pytest.importorskip("torchao")
    layer = model.model.layers[0].mlp
    plain = layer.up_proj.weight.detach().clone()
    with FakeQuantisation(type=kind, group_size=16).prepare(model):
        rounded = layer.up_proj(torch.eye(32)).T.double().reshape(64, 2, 16)
    groups = plain.double().reshape(64, 2, 16)
    scale = groups.abs().amax(-1, keepdim=True) / ((high - low) / 2)
    integers = rounded / scale
    torch.testing.assert_close(integers, integers.round(), rtol=0, atol=1e-4)
    assert integers.round().min() >= low and integers.round().max() <= high
    assert ((rounded - groups).abs() <= 0.5001 * scale).all()  # each is the nearest there is
    assert type(layer.up_proj) is nn.Linear and torch.equal(layer.up_proj.weight, plain)


def test_head_and_embeddings_stay_as_they_are(make_model: Any, tokenizer: Any) -> None:
    pytest.importorskip("torchao")
    model = make_model(tokenizer, tie_word_embeddings=False)
    with INT4.prepare(model):
        assert type(model.lm_head) is nn.Linear
        assert type(model.get_input_embeddings()) is nn.Embedding
        assert type(model.model.layers[0].mlp.up_proj) is not nn.Linear


def test_a_student_learns_to_compute_in_integers(make_model: Any, tokenizer: Any) -> None:
    pytest.importorskip("torchao")
    chosen = {"updates": 150, "learning_rate": 0.003}
    losses = {}
    for name, how in (("plain", {}), ("aware", {"quantisation": INT4})):
        model = make_model(tokenizer)
        train(model, examples(), settings(**chosen, **how))
        with INT4.prepare(model):
            losses[name] = train(model, examples(24), settings(updates=1, batch_size=24))[0].loss
    assert losses["aware"] < 0.8 * losses["plain"]


def test_rounded_weights_are_what_the_forward_pass_computes_with(model: Any) -> None:
    pytest.importorskip("torchao")
    with INT4.model_copy(update={"publish": "rounded"}).prepare(model):
        rounded = model.model.layers[0].mlp.up_proj(torch.eye(32)).T.detach().clone()
    layer = model.model.layers[0].mlp.up_proj
    assert type(layer) is nn.Linear and torch.equal(layer.weight, rounded)


def test_a_width_that_the_groups_do_not_divide_is_refused(model: Any) -> None:
    pytest.importorskip("torchao")
    with (
        pytest.raises(UserError, match="32 inputs, no multiple of 24"),
        FakeQuantisation(type="int4", group_size=24).prepare(model),
    ):
        pass


def test_without_torchao_it_says_how_to_get_it(model: Any, monkeypatch: Any) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torchao.quantization", None)
    with pytest.raises(UserError, match="needs torchao"), INT4.prepare(model):
        pass


def test_with_lora_it_is_refused() -> None:
    with pytest.raises(ValidationError, match="use either lora"):
        settings(adapter={"type": "lora"}, quantisation=INT4)
