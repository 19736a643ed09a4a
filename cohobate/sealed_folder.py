"""Folders that are published whole or not at all, with a manifest of their files.

A folder is filled under another name, its files are synced to disk, `manifest.json` is written last
(size and sha256 of every other file), and then the folder is renamed: one that bears its name is
complete. `verify` names the file that was damaged since. Model checkpoints, training checkpoints,
shards of the signal store and reference log-probabilities are such folders.
"""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cohobate.errors import UserError

MANIFEST = "manifest.json"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """Yield an empty folder beside `folder`; it gets a manifest and takes that name at the end.

    What a killed process left behind is removed first. `folder` stays as it was when the body
    fails.

    Raises:
        UserError: the disk is full.
    """
    partial, old = (folder.with_name(f".{folder.name}.{end}") for end in ("partial", "old"))
    for leftover in (partial, old):
        shutil.rmtree(leftover, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        # the manifest is the last file: a folder without it is known to be incomplete
        _seal(partial)
        if folder.exists():
            # a rename cannot replace a folder that is not empty
            folder.rename(old)
        partial.rename(folder)
        _sync(folder.parent)  # else a power cut could undo the rename
    except Exception as error:
        if _disk_is_full(error):
            raise UserError(
                "the disk is full: nothing was written",
                where=str(folder),
                fix=f"free space there: df -h {folder.parent}; dvc gc --workspace",
            ) from error
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def verify(folder: Path) -> str:
    """Compare every file with the manifest; return the sha256 of the manifest.

    Raises:
        UserError: naming the file that is missing, truncated or altered.
    """
    for name, expected in _files(folder).items():
        path = folder / name
        if not path.exists():
            raise _damaged(folder, f"{name} is missing")
        # cheaper than a hash, and a better message
        if (size := path.stat().st_size) < expected["bytes"]:
            raise _damaged(folder, f"{name} is truncated: {size} of {expected['bytes']} bytes")
        if sha256_of(path) != expected["sha256"]:
            raise _damaged(folder, f"{name} is altered: its sha256 is not the manifest's")
    return sha256_of(folder / MANIFEST)


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checksum(files: dict[str, Any]) -> str:
    """Return a sha256 of the names of files and what is known of each, whatever their order."""
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def _seal(partial: Path) -> None:
    files = {}
    for path in sorted(path for path in partial.rglob("*") if path.is_file()):
        # some libraries write files that their owner alone may read
        path.chmod(0o644)
        _sync(path)
        files[path.relative_to(partial).as_posix()] = {
            "bytes": path.stat().st_size,
            "sha256": sha256_of(path),
        }
    manifest = {"files": files, "checksum": checksum(files)}
    text = json.dumps(manifest, indent=2, sort_keys=True, ensure_ascii=False)
    (partial / MANIFEST).write_text(text + "\n")
    _sync(partial / MANIFEST)
    _sync(partial)


def _files(folder: Path) -> dict[str, Any]:
    """Return the files of a manifest, which has a checksum of its own."""
    path = folder / MANIFEST
    if not path.exists():
        raise _damaged(folder, f"{MANIFEST} is missing")
    try:
        manifest = json.loads(path.read_bytes())
        files: dict[str, Any] = manifest["files"]
        # a flipped bit in the manifest itself, which no other file covers
        sound = manifest["checksum"] == checksum(files)
    except (ValueError, KeyError, TypeError):
        sound = False
    if not sound:
        raise _damaged(folder, f"{MANIFEST} is altered or truncated")
    return files


def _damaged(folder: Path, problem: str) -> UserError:
    return UserError(
        f"damaged folder: {problem}",
        where=str(folder),
        fix=f"run the stage again that wrote it, or restore it: dvc checkout {folder}",
    )


def _disk_is_full(error: Exception) -> bool:
    """Say whether an error means that the disk is full.

    Some libraries (safetensors) raise errors without a number, whose text has the system's words.
    """
    text = str(error)
    full = any(os.strerror(number) in text for number in _FULL)
    return getattr(error, "errno", None) in _FULL or full


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
