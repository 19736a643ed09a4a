"""Checkpoints: whole or not at all, the same bytes anywhere, and damage called by its name."""

import json
import shutil
import tempfile
from pathlib import Path

import pytest
import torch

from cohobate import sealed_folder
from cohobate.errors import UserError
from cohobate.models import checkpoints

FILES = (
    "model.safetensors",
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "provenance.json",
    "manifest.json",
)


def test_what_is_loaded_is_what_was_saved(model, checkpoint, tokenizer):
    loaded, its_tokenizer = checkpoints.load(checkpoint)
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, loaded.state_dict()[name]), name
    assert its_tokenizer.get_vocab() == tokenizer.get_vocab()
    assert its_tokenizer.chat_template == tokenizer.chat_template
    assert not loaded.training
    assert {path.name for path in checkpoint.iterdir()} == set(FILES)


def test_half_precision_is_stored_as_said_and_tied_weights_once(model, tokenizer, tmp_path):
    folder = tmp_path / "half"
    checkpoints.save(model, tokenizer, folder, {}, precision="bfloat16")
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
    size = sum(p.numel() for p in model.parameters())
    assert (folder / "model.safetensors").stat().st_size < 2 * size + 10_000
    loaded, _ = checkpoints.load(folder)
    expected = model.lm_head.weight.to(torch.bfloat16).float()
    assert torch.equal(loaded.lm_head.weight, expected)
    assert model.dtype == torch.float32  # the caller's model is left as it was


def test_the_same_model_is_the_same_bytes_from_any_folder(checkpoint, tokenizer, tmp_path):
    prints = set()
    for place in (tmp_path / "one", Path(tempfile.mkdtemp(dir=tmp_path)) / "two"):
        shutil.copytree(checkpoint, place / "source")
        model, its_tokenizer = checkpoints.load(place / "source")
        its_tokenizer(["a", "abc"], padding=True)  # leaves padding set in the tokenizer
        prints.add(checkpoints.save(model, its_tokenizer, place / "again", {"from": "a test"}))
        written = b"".join(p.read_bytes() for p in (place / "again").glob("*.json*"))
        assert str(tmp_path).encode() not in written
    assert len(prints) == 1


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["missing", "truncated", "altered"])
def test_damage_is_called_by_the_name_of_the_file(checkpoint, name, damage):
    path = checkpoint / name
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    else:
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    if name == "manifest.json" and damage == "missing":
        with pytest.raises(UserError, match=r"manifest\.json is missing"):
            sealed_folder.verify(checkpoint)
        return
    with pytest.raises(UserError, match=f"{name} is .*{damage}"):
        checkpoints.load(checkpoint)


def test_weights_that_are_not_there_are_refused(checkpoint):
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 5}))
    (checkpoint / "manifest.json").unlink()  # a folder from elsewhere has none
    with pytest.raises(UserError, match=r"missing or misshapen.*layers\.4"):
        checkpoints.load(checkpoint)


def test_a_failed_save_leaves_the_earlier_checkpoint(model, tokenizer, checkpoint, monkeypatch):
    before = sealed_folder.verify(checkpoint)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(model), "save_pretrained", full)
    with pytest.raises(UserError, match="disk is full"):
        checkpoints.save(model, tokenizer, checkpoint, {})
    assert sealed_folder.verify(checkpoint) == before
    assert [path.name for path in checkpoint.parent.iterdir()] == [checkpoint.name]


def test_what_a_killed_process_left_is_cleared(model, tokenizer, checkpoint):
    leftover = checkpoint.with_name(f".{checkpoint.name}.partial")
    leftover.mkdir()
    (leftover / "half.safetensors").write_bytes(b"half")
    checkpoints.save(model, tokenizer, checkpoint, {"round": 2})
    assert [path.name for path in checkpoint.parent.iterdir()] == [checkpoint.name]
    assert not (checkpoint / "half.safetensors").exists()


def test_a_copy_holds_the_same_model(checkpoint, tmp_path):
    (checkpoint / "summary.json").write_text("{}")
    (checkpoint / "pytorch_model.bin").write_bytes(b"a pickle")
    checkpoints.copy(checkpoint, tmp_path / "copy", {"from": "elsewhere"})
    names = {path.name for path in (tmp_path / "copy").iterdir()}
    assert names == set(FILES)  # neither the pickle nor another stage's summary
    weights = "model.safetensors"
    assert (tmp_path / "copy" / weights).read_bytes() == (checkpoint / weights).read_bytes()


def test_a_saved_model_stops_at_the_chat_templates_end_of_turn(
    make_model, make_tokenizer, tmp_path
) -> None:
    template = "{% for m in messages %}{{ m['content'] }}<|user|>{% endfor %}"
    tokenizer = make_tokenizer(chat_template=template)
    checkpoints.save(make_model(tokenizer), tokenizer, tmp_path / "model", {})
    config = json.loads((tmp_path / "model/generation_config.json").read_text())
    ids = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|user|>")]
    assert config["eos_token_id"] == sorted(ids)
