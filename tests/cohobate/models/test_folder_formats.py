"""Folders of models as they lie on hubs and disks: each is told by its files, with what to do."""

import json
import re
from pathlib import Path

import pytest

from cohobate.errors import UserError
from cohobate.models import checkpoints, hub
from cohobate.models.model_info import read_model_info

LORA = {"peft_type": "LORA", "base_model_name_or_path": "org/base", "r": 4}
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 93000000\n"


def folder_of(tmp_path: Path, files: dict[str, bytes | dict]) -> Path:
    """Write a folder `m` of these files."""
    folder = tmp_path / "m"
    folder.mkdir()
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        (folder / name).write_bytes(data)
    return folder


LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
SHARDS = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
INDEX = {"weight_map": dict(zip("ab", SHARDS, strict=True))}


def quantised(**how) -> dict[str, bytes | dict]:
    return {"config.json": LLAMA | how, "model.safetensors": b""}


@pytest.mark.parametrize(
    ("files", "what", "fix"),
    [
        ({}, "the folder is empty", "download"),
        ({"q.gguf": b"GGUF"}, "holds GGUF", r"name the file itself: .*/m/q\.gguf"),
        (
            {"adapter_config.json": LORA, "adapter_model.safetensors": b""},
            "a LoRA adapter of org/base",
            "merge_and_unload",
        ),
        (
            {"config.json": LLAMA, "pytorch_model.bin": b"PK"},
            "pickles",
            r"save_pretrained\('.*/m-safetensors'\)",
        ),
        ({"config.json": LLAMA, "model.onnx": b""}, "an ONNX model", "safetensors"),
        ({"config.json": LLAMA, "onnx/model.onnx": b""}, "an ONNX model", "safetensors"),
        ({"config.json": LLAMA, "consolidated.00.pth": b""}, "authors' own format", "safetensors"),
        (
            {"config.json": LLAMA, "consolidated.safetensors": b""},
            "authors' own format",
            "safetensors",
        ),
        ({"config.json": LLAMA, "tf_model.h5": b""}, "TensorFlow", "safetensors"),
        ({"config.json": LLAMA, "flax_model.msgpack": b""}, "Flax", "safetensors"),
        (
            {"config.json": LLAMA, "model.safetensors": POINTER},
            r"model\.safetensors is a git-lfs pointer",
            "lfs pull",
        ),
        (
            {"config.json": LLAMA, "model.safetensors.index.json": INDEX},
            r"2 of 2 files of weights are missing: model-00001",
            "download",
        ),
        (
            {"config.json": LLAMA, "model.safetensors.index.json": INDEX, SHARDS[0]: b"x"},
            r"1 of 2 files .* missing: model-00002-of-00002",
            "download",
        ),
        (
            quantised(quantization_config={"quant_method": "awq", "bits": 4}),
            r"quantised \(awq, 4 bits\)",
            "bfloat16",
        ),
        (
            quantised(quantization_config={"quant_method": "gptq", "bits": 8}),
            r"quantised \(gptq, 8 bits\)",
            "bfloat16",
        ),
        (
            quantised(quantization={"group_size": 64, "bits": 4}),
            r"quantised \(MLX, 4 bits\)",
            "bfloat16",
        ),
        ({"checkpoint-500/config.json": LLAMA}, r"config\.json is missing", "/m/checkpoint-500"),
        (
            {"snapshots/0abc/config.json": LLAMA, "refs/main": b"0abc"},
            r"config\.json is missing",
            "/m/snapshots/0abc",
        ),
        ({"model_index.json": {}, "unet/x.bin": b""}, "diffusers", "safetensors"),
        (
            {"config.json": LLAMA, "model.safetensors": b"x"},
            r"tokenizer\.json is missing",
            "tokenizer",
        ),
    ],
)
def test_what_is_no_whole_model_is_told_with_what_to_do(tmp_path, files, what, fix):
    folder = folder_of(tmp_path, files)
    with pytest.raises(UserError, match=what) as refused:
        read_model_info(hub.resolve(str(folder)))
    assert refused.value.where == str(folder)
    assert re.search(fix, refused.value.fix)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]}, "encoder-decoder"),
        ({"model_type": "bert", "architectures": ["BertForMaskedLM"]}, "no causal language model"),
        ({"model_type": "roberta", "architectures": ["RobertaModel"]}, "no causal language model"),
        ({"model_type": "vit", "architectures": ["ViTModel"]}, "no causal language model"),
        (LLAMA | {"architectures": ["LlamaForSequenceClassification"]}, "no causal language model"),
        ({"model_type": "none-such", "auto_map": {"AutoModel": "m.M"}}, "code of its own"),
        ({"model_type": "none-such"}, r"cannot read config\.json \(model_type none-such\)"),
        ({}, r"cannot read config\.json"),
    ],
)
def test_what_is_no_causal_language_model_is_named(checkpoint, config, message):
    (checkpoint / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=message):
        read_model_info(checkpoint)


def test_a_file_of_a_folder_is_no_model(checkpoint):
    with pytest.raises(UserError, match="one file of a model") as refused:
        hub.resolve(str(checkpoint / "model.safetensors"))
    assert refused.value.fix == f"name the folder: {checkpoint}"


def test_a_tokenizer_that_names_no_end_takes_the_models(checkpoint):
    """The oldest repositories leave it to the configuration, some as a list."""
    path = checkpoint / "tokenizer_config.json"
    manners = json.loads(path.read_text())
    del manners["eos_token"]
    path.write_text(json.dumps(manners))
    assert read_model_info(checkpoint).eos == "<|end|>"
    for name in ("config.json", "generation_config.json"):
        config = json.loads((checkpoint / name).read_text())
        (checkpoint / name).write_text(json.dumps(config | {"eos_token_id": [0, 1, 9999]}))
    assert read_model_info(checkpoint).eos == "<|end|>"  # of several, the one in the chat template
    for name in ("config.json", "generation_config.json"):
        config = json.loads((checkpoint / name).read_text())
        (checkpoint / name).write_text(json.dumps(config | {"eos_token_id": None}))
    with pytest.raises(UserError, match="no end-of-sequence"):
        read_model_info(checkpoint)


def test_a_copy_of_the_weights_in_another_format_is_left_where_it_is(checkpoint, tmp_path):
    before = read_model_info(checkpoint).parameters()
    (checkpoint / "consolidated.safetensors").write_bytes(
        (checkpoint / "model.safetensors").read_bytes()
    )
    assert read_model_info(checkpoint).parameters() == before
    checkpoints.copy(checkpoint, tmp_path / "copy", {})
    assert not (tmp_path / "copy" / "consolidated.safetensors").exists()


def test_a_gguf_file_is_a_model(checkpoint, tmp_path, monkeypatch, capsys):
    import torch

    from tasks.export.gguf import Gguf

    monkeypatch.setenv("COHOBATE_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "gguf" / "model.gguf"
    file.parent.mkdir()
    Gguf(type="gguf", quantisation="F32").write(checkpoint, file.parent)
    folder = hub.resolve(str(file))
    assert hub.resolve(str(file)) == folder
    assert capsys.readouterr().err.count("converting") <= 1
    assert hub.source_of(str(file), folder)["model"] == "model.gguf"
    (ours, tokenizer), (theirs, same) = checkpoints.load(checkpoint), checkpoints.load(folder)
    assert same.get_vocab() == tokenizer.get_vocab()
    assert same.chat_template == tokenizer.chat_template
    ids = torch.tensor([[5, 6, 7]])
    torch.testing.assert_close(theirs(ids).logits, ours(ids).logits)


def test_a_damaged_gguf_file_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("COHOBATE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "m.gguf").write_bytes(b"GGUF" + b"\0" * 60)
    with pytest.raises(UserError, match="cannot read the GGUF file") as refused:
        hub.resolve(str(tmp_path / "m.gguf"))
    assert "safetensors" in refused.value.fix
