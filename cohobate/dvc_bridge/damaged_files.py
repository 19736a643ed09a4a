"""Are the bytes of an output still those that DVC saved? DVC itself does not look.

A cache object whose bits flipped, or a file taken from one, is accepted by `dvc checkout`, `status`
and `repro` alike. Here every file of an output is hashed and compared with its saved MD5.
"""

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def damaged_files(out: Any) -> list[str]:
    """Return the paths of an output's files that are not there, or have other bytes than saved."""
    return [path for path, saved in _saved(out) if not _holds(Path(path), saved)]


def drop_damaged(out: Any, paths: list[str]) -> None:
    """Remove damaged files, and the cache's copies of them where those are damaged too."""
    saved = dict(_saved(out))
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            Path(path).unlink()
        _drop_object(out, saved.get(path))
    if _is_folder(out) and not _holds(
        _object(out, out.hash_info.value), _bare(out.hash_info.value)
    ):
        _drop_object(out, out.hash_info.value)


def _saved(out: Any) -> Iterator[tuple[str, str]]:
    """Yield each file's path and MD5; the folder's own list of files where that is damaged."""
    if not (out.hash_info and out.use_cache):
        return
    if not _is_folder(out):
        yield out.fs_path, out.hash_info.value
        return
    listing = _object(out, out.hash_info.value)
    tree = out.get_obj() if _holds(listing, _bare(out.hash_info.value)) else None
    if tree is None:
        yield str(listing), _bare(out.hash_info.value)
        return
    for key, _, info in tree:
        yield str(Path(out.fs_path, *key)), info.value


def _is_folder(out: Any) -> bool:
    return bool(out.hash_info.isdir)


def _bare(value: str) -> str:
    return value.removesuffix(".dir")


def _object(out: Any, value: str) -> Path:
    return Path(out.cache.oid_to_path(value))


def _drop_object(out: Any, value: str | None) -> None:
    if value and not _holds(path := _object(out, value), _bare(value)):
        with contextlib.suppress(FileNotFoundError):
            path.unlink()


def _holds(path: Path, saved: str) -> bool:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "md5").hexdigest() == saved
    except FileNotFoundError:
        return False
