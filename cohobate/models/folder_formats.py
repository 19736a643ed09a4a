"""Formats of model folders: what a folder or file holds where it is not safetensors of a model.

Hubs and disks hold the same model in many forms: GGUF, LoRA adapters, pickles, ONNX, quantised
weights, shards of which one is missing. Each is recognised by its files alone, before anything is
loaded, and refused with a command or hint that leads to a folder which can be loaded.
"""

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cohobate.errors import UserError

WEIGHTS = "model.safetensors"
INDEX = f"{WEIGHTS}.index.json"
_POINTER = b"version https://git-lfs"
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
_OTHERS = {
    "*.gguf": ("GGUF files (llama.cpp)", "name the file itself: {path}"),
    "*.onnx": ("an ONNX model", ""),
    "onnx/*.onnx": ("an ONNX model", ""),
    "*.bin": ("weights as pickles (*.bin)", "convert"),
    "*.pt": ("weights as pickles (*.pt)", "convert"),
    "*.pth": ("weights in their authors' own format (*.pth)", ""),
    "consolidated*.safetensors": ("weights in their authors' own format (consolidated)", ""),
    "*.h5": ("weights of TensorFlow", ""),
    "*.msgpack": ("weights of Flax", ""),
    "openvino_*.xml": ("an OpenVINO model", ""),
    "*.mlpackage": ("a Core ML model", ""),
    "*.nemo": ("a NeMo model", ""),
    "zero_to_fp32.py": ("a DeepSpeed checkpoint in parts", "python {folder}/zero_to_fp32.py"),
    "*.distcp": ("a checkpoint of torch.distributed in parts", ""),
    "*/*.distcp": ("a checkpoint of torch.distributed in parts", ""),
    "model_index.json": ("a pipeline of diffusers, no language model", ""),
}
_PUBLISHED = (
    "name the folder or hub id in which its publisher has it as safetensors for transformers"
)


def check_folder(folder: Path) -> None:
    """Refuse a folder whose files are not those of one whole model in safetensors.

    Raises:
        UserError: says what the folder holds, and what to do with it.
    """
    # from the most specific: an adapter or quantised weights come with files of a whole model too
    _check_place(folder)
    _check_adapter(folder)
    config = _json(folder / "config.json") if (folder / "config.json").exists() else None
    if config is None and not any(folder.glob("*.safetensors")):
        _check_other_formats(folder)
    if config is None:
        raise _refused("config.json is missing", folder, _nearby(folder) or _PUBLISHED)
    _check_quantisation(config, folder)
    if not has_weights(folder):
        _check_other_formats(folder)
        raise _refused(f"no safetensors here: {WEIGHTS} is missing", folder, _nearby(folder))
    _check_shards(folder)
    if not any((folder / name).exists() for name in (*_TOKENIZERS, "tokenizer_config.json")):
        fix = "copy tokenizer.json and tokenizer_config.json of the model beside the weights"
        raise _refused("tokenizer.json is missing", folder, fix)


def has_weights(folder: Path) -> bool:
    """Say whether a folder has safetensors under the names that transformers looks for."""
    return (folder / WEIGHTS).exists() or (folder / INDEX).exists()


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files that make up the model; other copies of it are left out."""
    if (folder / WEIGHTS).exists():
        return [folder / WEIGHTS]
    return sorted({folder / name for name in _index(folder).values()})


def check_file(path: Path) -> None:
    """Refuse a path of a file where a folder is wanted.

    Raises:
        UserError: always.
    """
    if path.suffix in (".safetensors", ".json", ".bin", ".jinja", ".model"):
        fix = f"name the folder: {path.parent}"
        raise UserError("this is one file of a model", where=str(path), fix=fix)
    raise UserError("this file is no model that can be read here", where=str(path), fix=_PUBLISHED)


def _check_place(folder: Path) -> None:
    if not any(folder.iterdir()):
        raise _refused("the folder is empty", folder, "download the model into it, or name another")
    for path in sorted(folder.iterdir()):
        # a clone without git-lfs has small text files in place of the large ones
        if path.is_file() and path.stat().st_size < 1024 and _starts(path, _POINTER):
            fetch = f"git -C {shlex.quote(str(folder))} lfs pull"
            raise _refused(f"{path.name} is a git-lfs pointer, not the file itself", folder, fetch)


def _check_adapter(folder: Path) -> None:
    path = folder / "adapter_config.json"
    if not path.exists():
        return
    config = _json(path)
    kind = str(config.get("peft_type") or "PEFT").replace("LORA", "LoRA")
    base = config.get("base_model_name_or_path") or "a model that it does not name"
    raise _refused(
        f"this is a {kind} adapter of {base}, not a whole model",
        folder,
        f"merge it, then name the merged folder: {_merge(folder)}",
    )


def _check_quantisation(config: dict[str, Any], folder: Path) -> None:
    text = config.get("text_config") or {}
    quantisation = config.get("quantization_config") or text.get("quantization_config")
    if quantisation is None and isinstance(config.get("quantization"), dict):
        # MLX names the section so
        quantisation = {"quant_method": "MLX"} | config["quantization"]
    if quantisation is None:
        return
    fields = quantisation if isinstance(quantisation, dict) else {}
    method, bits = fields.get("quant_method", "unknown"), fields.get("bits")
    size = f", {bits} bits" if bits else ""
    raise _refused(
        f"the weights are quantised ({method}{size}): they can be neither trained nor read here",
        folder,
        "name the model that they were made from, in bfloat16 or float32",
    )


def _check_other_formats(folder: Path) -> None:
    for pattern, (contents, command) in _OTHERS.items():
        if path := next(iter(sorted(folder.glob(pattern))), None):
            fix = command.format(path=path, folder=folder) or _PUBLISHED
            if command == "convert":
                fix = f"save it as safetensors, then name that folder: {_convert(folder)}"
            raise _refused(f"no safetensors here: the folder holds {contents}", folder, fix)


def _check_shards(folder: Path) -> None:
    if (folder / WEIGHTS).exists():
        return
    names = set(_index(folder).values())
    missing = sorted(name for name in names if not (folder / name).exists())
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise _refused(
            f"{len(missing)} of {len(names)} files of weights are missing: "
            f"{', '.join(missing[:3])}{more}",
            folder,
            "finish the download: the index names every file",
        )


def _index(folder: Path) -> dict[str, str]:
    """Return the file of each weight, by the index of a model in several files."""
    file_of_weight = _json(folder / INDEX).get("weight_map")
    if not isinstance(file_of_weight, dict) or not file_of_weight:
        raise _refused(f"{INDEX} names no weights", folder, "download it again")
    return file_of_weight


def _nearby(folder: Path) -> str:
    """Return a hint at a model in a folder below; empty where there is none."""
    below: Iterator[Path] = (
        path.parent
        for depth in ("*", "snapshots/*", "*/*")
        for path in sorted(folder.glob(f"{depth}/config.json"))
    )
    model_folder = next(below, None)
    return f"name the folder of the model: {model_folder}" if model_folder else ""


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise _refused(f"{path.name} is missing", path.parent) from None
    except (ValueError, RecursionError) as error:
        raise _refused(f"{path.name} is damaged: {error}", path.parent) from error
    if not isinstance(value, dict):
        raise _refused(f"{path.name} is damaged: not a JSON object", path.parent)
    return value


def _starts(path: Path, prefix: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(prefix)) == prefix


def _convert(folder: Path) -> str:
    source, target = str(folder), f"{folder}-safetensors"
    return _python(
        "from transformers import AutoModelForCausalLM as M, AutoTokenizer as T; "
        f"[part.from_pretrained({source!r}).save_pretrained({target!r}) for part in (M, T)]"
    )


def _merge(folder: Path) -> str:
    source, target = str(folder), f"{folder}-merged"
    return _python(
        "from peft import AutoPeftModelForCausalLM as M; from transformers import AutoTokenizer as "
        f"T; M.from_pretrained({source!r}).merge_and_unload().save_pretrained({target!r}); "
        f"T.from_pretrained({source!r}).save_pretrained({target!r})"
    )


def _python(code: str) -> str:
    return f"python -c {shlex.quote(code)}" if set(code) & set('"$`') else f'python -c "{code}"'


def _refused(problem: str, folder: Path, fix: str = "") -> UserError:
    return UserError(problem, where=str(folder), fix=fix)
