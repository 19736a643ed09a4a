"""Fingerprint the data of one source, where `collect.sources` has several.

In:  what `collect.sources.<name>.source.path` names: a file, a folder, or an object on S3
Out: data/sources/<name>.json

    {"path": "questions.jsonl", "sha256": "9f86d081884c7d65…"}

The stage `collect` reads all sources, and dvc.yaml cannot list the paths of a mapping among the
dependencies of one stage. So each source has this stage of its own, and `collect` depends on the
folder of the fingerprints: it runs again when any source has changed.
"""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Annotated, Any

from cohobate.data.records import SOURCES, write_json
from cohobate.errors import UserError
from cohobate.params import EachOf

_S3 = "s3://"
_CHUNK = 1 << 20


def run(item: str, source: Annotated[dict[str, Any], EachOf("collect.sources")]) -> None:
    """Write the fingerprint of the source `item`.

    Raises:
        UserError: its data cannot be read.
    """
    path = str(source["source"]["path"])
    try:
        digest = _digest(path)
    except Exception as error:  # OSError, and those of s3fs and botocore, which have no ancestor
        raise UserError(
            f"cannot read the data of the source {item}: {error}",
            where=path,
            fix=f"check collect.sources.{item}.source.path",
        ) from error
    write_json(SOURCES / f"{item}.json", {"path": path, "sha256": digest})


def _digest(path: str) -> str:
    """Return the sha256 of a file, or of the names and contents of the files in a folder."""
    digest = hashlib.sha256()
    for name, file in _files(path):
        digest.update(name.encode())
        with file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    return digest.hexdigest()


def _files(path: str) -> Iterator[tuple[str, IO[bytes]]]:
    """Yield the files at a path, each with its name in the folder; empty for a file itself."""
    if path.startswith(_S3):
        import s3fs

        store = s3fs.S3FileSystem(endpoint_url=os.environ.get("AWS_ENDPOINT_URL"))
        names = sorted(store.find(path))
        for name in names:
            inside = name.removeprefix(path.removeprefix(_S3)).lstrip("/")
            yield inside, store.open(name, "rb")
        if not names:
            raise FileNotFoundError("no such object")
        return
    whole = Path(path)
    if not whole.is_dir():
        yield "", whole.open("rb")
        return
    for file in sorted(one for one in whole.rglob("*") if one.is_file()):
        yield file.relative_to(whole).as_posix(), file.open("rb")
