"""Folders of data files: which files are read, in which order, and the part that each is."""

import os
import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from cohobate.progress import say
from tasks.collect.formats import known_format
from tasks.collect.source_records import UnreadableError

PARTS = {"train": "train", "dev": "dev", "validation": "dev", "test": "test", "ood": "ood"}
"""Names of splits, and the part that each stands for."""
REMOTE = "s3://"
_SAVED_DATASET = frozenset({"dataset_dict.json", "state.json"})
"""Files that `save_to_disk` of `datasets` writes."""
_WILDCARD = re.compile(r"\*\*/|[*?]")
_WILDCARDS = {"**/": "(?:.*/)?", "*": "[^/]*", "?": "[^/]"}
_SHOWN = 5


def s3_store() -> Any:
    """Return the file system of the S3 service that the AWS_* variables name."""
    import s3fs

    return s3fs.S3FileSystem(
        endpoint_url=os.environ.get("AWS_ENDPOINT_URL"),
        config_kwargs={"connect_timeout": 10, "retries": {"max_attempts": 2}},
    )


def may_be_folder(path: str) -> bool:
    """Return whether a path names no file by its ending."""
    return path.endswith("/") or not PurePosixPath(path).suffix or Path(path).is_dir()


def split_glob(path: str) -> tuple[str, str]:
    """Return the folder that a pattern of paths begins with, and the rest; "" where it is none."""
    wildcard = _WILDCARD.search(path)
    if not wildcard:
        return path, ""
    folder, _, _ = path[: wildcard.start()].rpartition("/")
    return folder or ".", path[len(folder) :].lstrip("/")


def is_saved_dataset(folder: Path) -> bool:
    """Return whether `save_to_disk` of `datasets` wrote a folder."""
    return any((folder / name).is_file() for name in _SAVED_DATASET)


def data_files(path: str, pattern: str = "") -> list[str]:
    """Return the data files of a folder in the order of their names; of a file, the file.

    Args:
        path: a file or a folder, in this project or on S3.
        pattern: which files of the folder; empty takes all data files.

    Raises:
        UnreadableError: there is none, or the folder is what `datasets` saves.
    """
    names = _names(path) if may_be_folder(path) else None
    if names is None and pattern:
        raise UnreadableError("a pattern needs a folder", "collect.source.path: the folder alone")
    if names is None:
        return [path]
    if _SAVED_DATASET.intersection(names):
        raise UnreadableError(
            "the folder holds a data set that save_to_disk wrote",
            "collect.source: {type: datasets, path: ...}",
        )
    matcher = _pattern(pattern)
    files = sorted(name for name in names if matcher.fullmatch(name) and _is_data(name))
    if not files:
        examples = ", ".join(sorted(names)[:_SHOWN]) or "nothing"
        raise UnreadableError(
            f"no data file in the folder{f' matches {pattern!r}' if pattern else ''} (it holds "
            f"{examples})",
            "name a folder with .jsonl, .json, .csv or .parquet files",
        )
    others = [name for name in names if not _is_data(name)]
    if others and not pattern:
        say(f"{path}: {len(others)} files are no data files: {', '.join(sorted(others)[:_SHOWN])}")
    return [f"{path.rstrip('/')}/{name}" for name in files]


def part_of(name: str) -> str:
    """Return the part that a file's name or folder stands for, "" where it is none.

    Args:
        name: below the folder that is read, such as `test-00000-of-00002.parquet`.
    """
    *folders, last = PurePosixPath(name).parts or ("",)
    words = [re.split(r"[-_.]", last)[0], *reversed(folders)]
    return next((PARTS[word] for word in words if word in PARTS), "")


def _names(path: str) -> list[str] | None:
    """Return the files below a folder, hidden ones left out; None where it is no folder."""
    if path.startswith(REMOTE):
        root = path.removeprefix(REMOTE).rstrip("/")
        return _visible(name.removeprefix(f"{root}/") for name in s3_store().find(path))
    folder = Path(path)
    if not folder.is_dir():
        return None
    files = (file for file in folder.rglob("*") if file.is_file())
    return _visible(file.relative_to(folder).as_posix() for file in files)


def _visible(names: Iterable[str]) -> list[str]:
    # _SUCCESS and _metadata are Spark's
    return [n for n in names if not any(p.startswith((".", "_")) for p in PurePosixPath(n).parts)]


def _is_data(name: str) -> bool:
    try:
        return bool(known_format(name))
    except ValueError:
        return False


def _pattern(pattern: str) -> re.Pattern[str]:
    """Return a pattern of paths as a regular expression: `*` is within a folder, `**/` any."""
    if not pattern:
        return re.compile(r".*", re.DOTALL)
    parts, end = [], 0
    for wildcard in _WILDCARD.finditer(pattern):
        parts += [re.escape(pattern[end : wildcard.start()]), _WILDCARDS[wildcard[0]]]
        end = wildcard.end()
    return re.compile("".join([*parts, re.escape(pattern[end:])]))
