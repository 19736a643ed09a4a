"""What training takes is told before it is taken, and refused by name where it is not there."""

import json

import pytest

from cohobate.errors import UserError
from cohobate.losses.divergences import Hard
from cohobate.training import memory, trainer
from cohobate.training.hyperparameters import Hyperparameters
from cohobate.training.memory import (
    ACTIVATIONS,
    GRADIENTS,
    LOGITS,
    TEACHERS,
    ModelSize,
    TeacherSize,
    check_memory,
    peak_memory,
    size_of_model,
    trained_parameters,
)
from tests.cohobate.methods.test_on_policy import prompts

SMOL = ModelSize(134_515_008, 28_311_552, 30, 576, 1536, 9, 49_152)


def chosen(**fields) -> Hyperparameters:
    return Hyperparameters.model_validate({"updates": 1} | fields)


def test_the_weights_that_move_are_counted_as_torch_counts_them(make_model, tokenizer) -> None:
    from cohobate.training.model_setup import training_setup

    cases = [
        {},
        {"freeze": {"embeddings": False}},
        {"freeze": {"layers": 3}},
        {"adapter": {"type": "lora", "rank": 4}},
    ]
    for tied in (True, False):
        for case in cases:
            model, how = make_model(tokenizer, tie_word_embeddings=tied), chosen(**case)
            size = size_of_model(model)
            with training_setup(model, how, 10, seed=1):
                moving = sum(p.numel() for p in model.parameters() if p.requires_grad)
            assert size.tied == tied
            assert trained_parameters(size, how) == pytest.approx(moving, rel=0.1), (tied, case)


def test_each_choice_takes_its_part_off() -> None:
    usual = peak_memory(SMOL, chosen(), 512, [TeacherSize(SMOL)])
    assert (
        peak_memory(SMOL, chosen(adapter={"type": "lora"}), 512)[GRADIENTS] < usual[GRADIENTS] / 10
    )
    assert peak_memory(SMOL, chosen(optimiser="sgd"), 512)[GRADIENTS] == usual[GRADIENTS] / 3
    assert peak_memory(SMOL, chosen(micro_batch_size=8), 512)[ACTIVATIONS] == usual[ACTIVATIONS] / 4
    assert peak_memory(SMOL, chosen(chunk_tokens=128), 512, [TeacherSize(SMOL)])[LOGITS] == (
        usual[LOGITS] / 4
    )
    assert peak_memory(SMOL, chosen(), 512)[TEACHERS] == 0 < 2 * SMOL.parameters < usual[TEACHERS]


def test_a_teacher_is_held_twice_unless_it_is_large() -> None:
    maps = SMOL.parameters  # embeddings and head are one matrix, of which the head is packed
    assert SMOL.inference_bytes(2) == 2 * (SMOL.parameters + maps)
    large = ModelSize(7_000_000_000, 262_144_000, 32, 4096, 14336, 32, 32_000)
    assert large.inference_bytes(2) == 2 * large.parameters
    assert large.inference_bytes(0) == 0  # loaded already


def test_what_does_not_fit_is_refused_with_its_fix() -> None:
    parts = peak_memory(SMOL, chosen(batch_size=512), 1000, [TeacherSize(SMOL)])
    total = sum(parts.values())
    check_memory("kd", parts, total * 3 // 4 + 1, where="here")
    with pytest.raises(UserError, match="kd needs") as caught:
        check_memory("kd", parts, total * 3 // 4 - 1, where="params.yaml, train.kd")
    assert caught.value.where == "params.yaml, train.kd"
    assert "micro_batch_size" in (caught.value.fix or "")
    parts = peak_memory(SMOL, chosen(batch_size=1), 10)
    with pytest.raises(UserError) as caught:
        check_memory("kd", parts, 10**6, where="here")
    assert "lora" in (caught.value.fix or "")


def test_training_stops_before_it_begins_where_memory_is_short(
    model, tokenizer, monkeypatch
) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda: 1000)
    with pytest.raises(UserError, match="GiB") as caught:
        trainer.fit(model, prompts(), [Hard()], chosen(threads=1), seed=1, label="train kd, seed 1")
    assert caught.value.where == "train kd, seed 1"
    monkeypatch.setattr(memory, "available_memory", lambda: None)
    assert trainer.fit(model, prompts(), [Hard()], chosen(threads=1), seed=1, label="it")


def test_a_size_is_told_by_the_configuration(model, tokenizer) -> None:
    size = size_of_model(model)
    config = json.loads(model.config.to_json_string())
    assert size == ModelSize.of(config, model.num_parameters(), len(tokenizer) * 32, 4)
    assert size.with_layers(2).layers == 2
    body = size.parameters - size.embeddings
    assert size.with_layers(2).parameters == size.embeddings + body // 2
