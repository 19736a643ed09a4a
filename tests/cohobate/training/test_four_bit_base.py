"""Low-rank updates over a base in 4 bits."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from cohobate.data.records import INIT_STUDENT, TRAIN
from cohobate.errors import UserError
from cohobate.methods.train import Method
from cohobate.models import checkpoints
from cohobate.models.model_size import size_of_model
from cohobate.params import ParamsError, validated
from cohobate.training import checkpointing, packages
from cohobate.training.hyperparameters import Hyperparameters
from cohobate.training.memory import WEIGHTS, peak_memory
from cohobate.training.packages import check_packages
from tasks.train.stage import run
from tests.cohobate.training.test_processes import KD, difference, history, start
from tests.cohobate.training.test_sharded import SLOW, distance, weights
from tests.cohobate.training.workers import phase, together

__all__ = ["start"]  # a fixture
LORA = {"type": "lora", "rank": 2}
NF4 = KD | SLOW | {"adapter": LORA | {"base_precision": "nf4"}}


@pytest.fixture
def wide(start: None, make_model: Any, tokenizer: Any) -> None:
    """A student whose layers have multiples of 64 inputs."""
    pytest.importorskip("bitsandbytes")
    size = {"hidden_size": 64, "intermediate_size": 128}
    model = make_model(tokenizer, seed=2, layers=2, **size)
    checkpoints.save(model, tokenizer, INIT_STUDENT, {})


def test_it_learns_what_updates_of_the_rounded_weights_do(
    wide: None, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COHOBATE_PRECISION", "float32")  # of what is not in 4 bits
    from cohobate.training.four_bit_base import four_bit_blocks

    before = weights_of(INIT_STUDENT)
    run("it", phase(NF4), seeds=[1])
    four_bit, published = history(), weights()
    model, _ = checkpoints.load(INIT_STUDENT)
    body = size_of_model(model).body
    with four_bit_blocks(model):
        assert sum(weight.nbytes for weight in model.model.layers.parameters()) < 0.6 * body
    shutil.rmtree(INIT_STUDENT)
    checkpoints.save(model, tokenizer, INIT_STUDENT, {})
    # half of the widest step between two of the sixteen values, of the largest weight of a block
    rounded = weights_of(INIT_STUDENT)
    for name, weight in before.items():
        largest = weight.abs().flatten()
        if "proj" in name:
            largest = largest.view(-1, 64).amax(-1, keepdim=True).expand(-1, 64).flatten()
            assert not torch.equal(weight, rounded[name])
        assert ((weight - rounded[name]).abs().flatten() <= 0.153 * largest).all(), name
    shutil.rmtree(TRAIN)
    shutil.rmtree(checkpointing.TRAINING, ignore_errors=True)
    run("it", phase(KD | SLOW | {"adapter": LORA}), seeds=[1])
    assert difference(four_bit, history(), "loss") < 1e-5
    assert distance(published, weights()) < 1e-5


def weights_of(folder: Path) -> dict[str, Any]:
    model, _ = checkpoints.load(folder)
    return {name: weight.detach() for name, weight in model.named_parameters()}


def test_widths_that_come_back_wrong_are_refused(start: None) -> None:
    pytest.importorskip("bitsandbytes")
    (message,) = together(NF4, 1)
    assert "has 32 inputs, no multiple of 64" in message


def test_it_goes_on_where_it_was(wide: None) -> None:
    assert together(NF4, 1) == [""]
    clean = (TRAIN / "it/seed-1/model.safetensors").read_bytes()
    shutil.rmtree(TRAIN)
    shutil.rmtree(sorted(checkpointing.TRAINING.rglob("update-*"))[-1])
    assert together(NF4, 1) == [""]
    assert (TRAIN / "it/seed-1/model.safetensors").read_bytes() == clean


def test_the_estimate_of_memory_has_4_bits_a_weight(make_model: Any, tokenizer: Any) -> None:
    size = size_of_model(make_model(tokenizer))
    base = {
        name: peak_memory(
            size,
            Hyperparameters(
                updates=1, precision="float32", adapter=LORA | {"base_precision": name}
            ),
            64,
        )[WEIGHTS]
        for name in ("float32", "bfloat16", "nf4")
    }
    assert base["nf4"] < base["bfloat16"] < base["float32"]
    narrow = Hyperparameters(updates=1, precision="bfloat16", adapter=NF4["adapter"])
    assert torch.finfo(torch.float32).bits * size.body / 8 > peak_memory(size, narrow, 64)[WEIGHTS]


def test_what_it_does_not_go_with_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ParamsError, match="a base in 4 bits is not divided"):
        validated(Method, NF4 | {"sharding": "on"}, "train.it")
    monkeypatch.setattr(packages, "is_installed", lambda package: False)
    with pytest.raises(UserError, match="nf4 needs the package bitsandbytes") as caught:
        check_packages({"train.it": phase(NF4)})
    assert caught.value.where == "params.yaml, train.it.adapter.base_precision"
