"""Weights that stay in their files until they are sharded."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from cohobate.models import checkpoints
from cohobate.models.mapped_weights import cast, format_of, is_mapped, settle, stored_format
from cohobate.training.adapters import Lora

LARGE = {"hidden_size": 256, "intermediate_size": 1024}


@pytest.fixture
def folder(make_model: Callable[..., Any], tokenizer: Any, tmp_path: Path) -> Path:
    checkpoints.save(make_model(tokenizer), tokenizer, tmp_path / "m", {}, precision="bfloat16")
    return tmp_path / "m"


def own_memory() -> int:
    """Return the bytes of this process that are no pages of files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon"))


def test_settled_weights_are_those_that_are_loaded(folder: Path) -> None:
    plain, _ = checkpoints.load(folder)
    mapped, _ = checkpoints.load(folder, mapped=True)
    assert stored_format(folder) == "bfloat16"
    assert is_mapped(mapped) and not is_mapped(plain)
    assert mapped.dtype is torch.bfloat16 and format_of(mapped) is torch.float32
    settle(mapped)
    assert not is_mapped(mapped)
    loaded = dict(plain.named_parameters()) | dict(plain.named_buffers())
    for name, tensor in [*mapped.named_parameters(), *mapped.named_buffers()]:
        assert tensor.dtype is loaded[name].dtype and torch.equal(tensor, loaded[name]), name
    # still one matrix
    assert mapped.get_input_embeddings().weight is mapped.get_output_embeddings().weight


def test_the_format_is_set_later(folder: Path) -> None:
    mapped, _ = checkpoints.load(folder, mapped=True)
    cast(mapped, torch.bfloat16)
    settle(mapped)
    assert {weight.dtype for weight in mapped.parameters()} == {torch.bfloat16}


def test_low_rank_updates_begin_as_over_loaded_weights(folder: Path) -> None:
    """PEFT rounds what it draws to the format of the weights beside it."""
    lora = Lora(type="lora", rank=2)
    drawn = []
    for mapped in (False, True):
        model, _ = checkpoints.load(folder, mapped=mapped)
        with lora.attach(model, [], seed=3):
            state = {n: w.detach().clone() for n, w in model.named_parameters() if "lora_A" in n}
            drawn.append(state)
            settle(model)
            assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    assert drawn[0].keys() == drawn[1].keys()
    assert all(torch.equal(drawn[0][name], drawn[1][name]) for name in drawn[0])


def test_files_of_several_formats_are_read(folder: Path) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    weights["model.norm.weight"] = weights["model.norm.weight"].float()
    save_file(weights, path, {"format": "pt"})
    (folder / "manifest.json").unlink()
    model, _ = checkpoints.load(folder, mapped=True)
    assert stored_format(folder) is None
    assert not is_mapped(model) and model.dtype is torch.float32


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_mapped_weights_take_no_memory(
    make_model: Callable[..., Any], tokenizer: Any, tmp_path: Path, precision: Any
) -> None:
    model = make_model(tokenizer, layers=16, **LARGE)
    bytes_of_file = sum(w.numel() for w in model.parameters()) * (2 if precision[0] == "b" else 4)
    checkpoints.save(model, tokenizer, tmp_path / "m", {}, precision=precision)
    checkpoints.load(tmp_path / "m", mapped=True)  # what is imported and allocated once
    child = os.fork()
    if child == 0:
        before = own_memory()
        model, _ = checkpoints.load(tmp_path / "m", mapped=True)
        (tmp_path / "grown").write_text(str(own_memory() - before))
        os._exit(0)
    os.waitpid(child, 0)
    assert int((tmp_path / "grown").read_text()) < 0.2 * bytes_of_file
