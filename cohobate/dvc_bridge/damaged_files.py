"""Find outputs whose bytes differ from those that DVC saved: DVC itself does not look.

A cache object with a flipped bit, or a file taken from one, is accepted by `dvc checkout`, `status`
and `repro`. Here every file of an output is hashed and compared with its saved MD5.
"""

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def damaged_files(out: Any) -> list[str]:
    """Return the paths of an output's files that are absent, or have other bytes than saved."""
    return [path for path, md5 in _saved(out) if not _matches(Path(path), md5)]


def drop_damaged(out: Any, paths: list[str]) -> None:
    """Remove damaged files, and the cache's copies of them where those are damaged too."""
    saved = dict(_saved(out))
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            Path(path).unlink()
        _drop_object(out, saved.get(path))
    if _is_folder(out):
        _drop_object(out, out.hash_info.value)


def _saved(out: Any) -> Iterator[tuple[str, str]]:
    """Yield path and MD5 of each file; the folder's list of files alone where that is damaged."""
    if not (out.hash_info and out.use_cache):
        return
    if not _is_folder(out):
        yield out.fs_path, out.hash_info.value
        return
    # a folder is an object that lists its files: with a damaged list no file can be named
    listing, md5 = _object(out, out.hash_info.value), _md5_of(out.hash_info.value)
    tree = out.get_obj() if _matches(listing, md5) else None
    if tree is None:
        yield str(listing), md5
        return
    for key, _, info in tree:
        yield str(Path(out.fs_path, *key)), info.value


def _is_folder(out: Any) -> bool:
    return bool(out.hash_info.isdir)


def _md5_of(value: str) -> str:
    """Return the MD5 in a hash of DVC's: of a folder it ends in `.dir`."""
    return value.removesuffix(".dir")


def _object(out: Any, value: str) -> Path:
    """Return the path of an object in the cache."""
    return Path(out.cache.oid_to_path(value))


def _drop_object(out: Any, value: str | None) -> None:
    if value and not _matches(path := _object(out, value), _md5_of(value)):
        with contextlib.suppress(FileNotFoundError):
            path.unlink()


def _matches(path: Path, md5: str) -> bool:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "md5").hexdigest() == md5
    except FileNotFoundError:
        return False
