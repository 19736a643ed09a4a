"""Model, tokenizer and provenance as one folder on disk, published whole or not at all.

A checkpoint is a Hugging Face folder (safetensors, config, tokenizer) with two files more:
`provenance.json`, what it was made from, and `manifest.json`, the size and sha256 of every other
file (`cohobate.sealed_folder`).
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cohobate import sealed_folder
from cohobate.data.records import write_json
from cohobate.data.tokenized import closing_ids
from cohobate.errors import UserError
from cohobate.models import seeing
from cohobate.models.folder_formats import has_weights, weight_files
from cohobate.models.number_formats import NumberFormat, Precision, resolve
from cohobate.sealed_folder import MANIFEST, checksum, sha256_of, verify

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PROVENANCE = "provenance.json"
SENTENCE_EMBEDDING = "sentence_embedding"
"""Key of config.json by which a model is an embedder (cohobate/models/embedders.py)."""
_PARTS = ("*.safetensors", "*.json", "*.jinja", "*.model", "merges.txt", "vocab.txt")
# Where a model was loaded from, and how. Kept, it would give one model several fingerprints.
_PLACES = ("_name_or_path", "name_or_path", "_model_name_or_path", "_commit_hash")
_VOLATILE = (*_PLACES, "is_local", "local_files_only")


def load(
    folder: Path,
    *,
    precision: Precision = "float32",
    attention: Literal["eager", "sdpa"] = "sdpa",
    device: str = "cpu",
    mapped: bool = False,
    embedder: bool = False,
) -> tuple["PreTrainedModel", "PreTrainedTokenizerBase"]:
    """Load a verified checkpoint, its weights cast to `precision`, ready for inference.

    Args:
        folder: the checkpoint.
        precision: of the weights, chosen for `device`.
        attention: as transformers names it.
        device: where the model goes.
        mapped: leave the weights in their files until they are sharded
            (cohobate/models/mapped_weights.py); of files with several number formats they are read.
        embedder: whether an encoder without a head is wanted, whatever the folder is.

    Raises:
        UserError: the folder is damaged, or does not hold every weight of the model.
    """
    import torch
    from transformers.utils import logging

    from cohobate.models.mapped_weights import note_format, stored_format

    # other folders, such as those of the hub, have no manifest
    if (folder / MANIFEST).exists():
        verify(folder)
    logging.disable_progress_bar()
    number_format = resolve(precision, device)
    try:
        stored = stored_format(folder) if mapped else None
        auto = auto_class(folder, embedder=embedder)
        model, loaded = _pretrained(auto, folder, stored or number_format, attention)
    except Exception as error:  # safetensors, json and transformers each raise their own
        raise UserError(f"cannot load the model: {error}", where=str(folder)) from error
    missing = sorted(set(loaded["missing_keys"]) - _empty_pooler(model, loaded))
    if absent := missing + sorted(map(str, loaded["mismatched_keys"])):
        raise UserError(f"weights are missing or misshapen: {absent[:3]}", where=str(folder))
    if stored:
        note_format(model, getattr(torch, number_format))
    model = model.eval().to(device)
    tokenizer = load_tokenizer(folder)
    if seeing.sees(model):
        # beside the model, so that it goes wherever the model goes
        model.processor = seeing.load_processor(folder)
        model.processor.tokenizer = tokenizer
    return model, tokenizer


def _pretrained(
    auto: Any, folder: Path, precision: NumberFormat, attention: str
) -> tuple[Any, Any]:
    import torch

    options: dict[str, Any] = {"use_safetensors": True, "local_files_only": True}
    options |= {"dtype": getattr(torch, precision), "attn_implementation": attention}
    try:
        model_and_report: tuple[Any, Any] = auto.from_pretrained(
            folder, output_loading_info=True, **options
        )
    except ValueError as error:
        if attention == "eager" or "scaled_dot_product_attention" not in str(error):
            raise
        # older families (GPT-J, BLOOM) have no other
        return _pretrained(auto, folder, precision, "eager")
    return model_and_report


def _empty_pooler(model: Any, loaded: Any) -> set[str]:
    """Zero the pooler of an embedder that is stored without one, and return its weights' names.

    It is a head of BERT's pretraining: nothing reads what it computes.
    """
    names = {key for key in loaded["missing_keys"] if key.startswith("pooler.")}
    for name, weight in model.named_parameters():
        if name in names:
            weight.data.zero_()
    return names


def auto_class(folder: Path, *, embedder: bool = False) -> Any:
    """Return the class of transformers that opens a folder: of a causal LM, a model that sees, a
    classifier, a masked model, or an embedder."""
    from transformers import (
        AutoModel,
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
        AutoModelForMaskedLM,
        AutoModelForSequenceClassification,
    )

    if embedder or is_embedder(folder):
        from cohobate.models.static_embedding import register

        register()
        return AutoModel
    if is_masked(folder):
        return AutoModelForMaskedLM
    if seeing.is_seeing(folder):
        return AutoModelForImageTextToText
    return AutoModelForSequenceClassification if is_classifier(folder) else AutoModelForCausalLM


def is_classifier(folder: Path) -> bool:
    """Say whether a model folder holds a classifier of texts, by its configuration."""
    return _architecture(folder).endswith("ForSequenceClassification")


def is_masked(folder: Path) -> bool:
    """Say whether a model folder holds a masked language model, by its configuration."""
    return _architecture(folder).endswith("ForMaskedLM")


def _architecture(folder: Path) -> str:
    names = _config(folder).get("architectures") or [""]
    return str(names[0])


def is_embedder(folder: Path) -> bool:
    """Say whether a checkpoint holds an encoder whose pooled vectors are its output."""
    return SENTENCE_EMBEDDING in _config(folder)


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    return json.loads(path.read_bytes()) if path.exists() else {}


def load_tokenizer(folder: Path) -> "PreTrainedTokenizerBase":
    """Load the tokenizer of a model folder; `load` has verified it where it is a checkpoint.

    Where it names no token that ends an answer, the one is taken that the model was shipped with.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        raise UserError(
            f"cannot load the tokenizer: {error}",
            where=str(folder),
            fix="copy the tokenizer's files of the model (tokenizer.json) into the folder again",
        ) from error
    vocabulary = tokenizer.get_vocab()
    if tokenizer.eos_token not in vocabulary:
        tokens = tokenizer.convert_ids_to_tokens(_shipped_eos(folder, len(vocabulary)))
        # of several tokens, the one that the chat template has is what ends an answer
        in_template = [t for t in tokens if t and t in str(tokenizer.chat_template)]
        tokenizer.eos_token = next(iter([*in_template, *filter(None, tokens)]), None)
    return tokenizer


def _shipped_eos(folder: Path, vocabulary: int) -> list[int]:
    """Return the ids that the model's own configuration lets end an answer."""
    for name in ("generation_config.json", "config.json"):
        if (folder / name).exists():
            config = json.loads((folder / name).read_bytes())
            ids = config.get("eos_token_id", (config.get("text_config") or {}).get("eos_token_id"))
            token_ids = ids if isinstance(ids, list) else [ids]
            if token_ids := [n for n in token_ids if isinstance(n, int) and 0 <= n < vocabulary]:
                return token_ids
    return []


def accelerator() -> str:
    """Return the device on which a model answers quickest here: a GPU where there is one."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def save(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    folder: Path,
    provenance: dict[str, Any],
    *,
    precision: NumberFormat = "float32",
) -> str:
    """Publish a checkpoint with its weights stored in `precision`; return its fingerprint."""
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()
    dtype = getattr(torch, precision)
    stored: dict[Any, Any] = {}  # tied weights share memory, and must still do so after the cast
    state = {
        name: stored.setdefault((weight.data_ptr(), weight.shape), weight.detach().to(dtype))
        for name, weight in model.state_dict().items()
    }
    if (backend := getattr(tokenizer, "backend_tokenizer", None)) is not None:
        backend.no_padding()  # else what was padded last ends in tokenizer.json
        backend.no_truncation()
    with staged(folder) as partial:
        model.save_pretrained(partial, state_dict=state)
        tokenizer.save_pretrained(partial)
        if seeing.sees(model):
            seeing.save_processor(model, tokenizer, partial)
        _rewrite(partial / "config.json", {"dtype": precision})
        for name in ("config.json", "generation_config.json"):
            _end_like(tokenizer, partial / name)
        write_json(partial / PROVENANCE, provenance)
    return fingerprint(folder)


def copy(
    source: Path,
    folder: Path,
    provenance: dict[str, Any],
    template: str | None = None,
    config: dict[str, Any] | None = None,
) -> str:
    """Publish an unchanged model as a checkpoint of its own; return its fingerprint.

    `template` takes the place of its chat template, `config` of keys of its config.json.
    """
    with staged(folder) as partial:
        copy_parts(source, partial)
        if config:
            _rewrite(partial / "config.json", config)
        if template is not None:
            (partial / "chat_template.jinja").write_text(template)
        write_json(partial / PROVENANCE, provenance)
    return fingerprint(folder)


def copy_parts(source: Path, folder: Path) -> None:
    """Copy the files of a model, and no others, to another folder."""
    for path in parts(source):
        shutil.copyfile(path, folder / path.name)


def parts(folder: Path) -> list[Path]:
    """Return the files of a model folder that belong to the model; safetensors only."""
    paths = {path for pattern in _PARTS for path in folder.glob(pattern)}
    if has_weights(folder):  # beside them may lie the same weights in their authors' format
        paths -= set(folder.glob("*.safetensors")) - set(weight_files(folder))
    return sorted(p for p in paths if p.name not in (MANIFEST, PROVENANCE, "summary.json"))


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """Yield an empty folder for a model, published as `sealed_folder.staged` does.

    Its configuration files lose what depends on where the model was loaded from.
    """
    with sealed_folder.staged(folder) as partial:
        yield partial
        for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
            if (partial / name).exists():
                _rewrite(partial / name, {})


def fingerprint(folder: Path) -> str:
    """Return what identifies a model's content: the sha256 of its manifest, or of all its parts."""
    if (folder / MANIFEST).exists():
        return sha256_of(folder / MANIFEST)
    return checksum({path.name: sha256_of(path) for path in parts(folder)})


def provenance(folder: Path) -> dict[str, Any]:
    """Return what a checkpoint says that it was made from; nothing where it does not say."""
    path = folder / PROVENANCE
    return json.loads(path.read_bytes()) if path.exists() else {}


def updates(folder: Path) -> int:
    """Return the optimiser steps of the phases that led to a checkpoint, over all rounds."""
    return int(provenance(folder).get("updates", 0))


def prompt_prefix(folder: Path) -> str | None:
    """Return the text that a checkpoint learnt to read before a prompt, where there is one."""
    prefix: str | None = provenance(folder).get("prompt_prefix")
    return prefix


def _rewrite(path: Path, changes: dict[str, Any]) -> None:
    """Change keys of a configuration; those that depend on where the model came from go."""
    kept = {k: v for k, v in json.loads(path.read_text()).items() if k not in _VOLATILE}
    write_json(path, kept | changes)


def _end_like(tokenizer: "PreTrainedTokenizerBase", path: Path) -> None:
    """Let a model end its answers with the tokens that it was taught to end them with: the end of
    sequence, and the chat template's end of turn."""
    if not path.exists():
        return
    shipped = json.loads(path.read_text()).get("eos_token_id")
    ends = sorted(closing_ids(tokenizer))
    if not {*ends} <= {*(shipped if isinstance(shipped, list) else [shipped])}:
        _rewrite(path, {"eos_token_id": ends if len(ends) > 1 else ends[0]})
