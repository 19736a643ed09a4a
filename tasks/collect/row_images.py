"""Pictures of the rows of a source: found, checked, and kept once in data/collect/images."""

import base64
import binascii
import zipfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from cohobate.data.images import MAX_BYTES, UnusableImageError, stored_image
from cohobate.data.records import IMAGES, Row, row_id
from cohobate.errors import UserError
from tasks.collect.source_records import EMPTY, SourceRecord, UnusableRecordError, json_type

_MOST = 16  # pictures of a row


class ImageFolder:
    """Where a source has its pictures, and where those of the rows are kept.

    Args:
        path: `collect.source.path`: pictures of a data file are read below it.
        keep: whether pictures are written; else they are checked alone.
    """

    def __init__(self, path: str = "", *, keep: bool = True) -> None:
        self._path, self._keep = Path(path), keep

    def with_images(self, column: str, record: SourceRecord, row: Row) -> tuple[SourceRecord, Row]:
        """Return a record and its row with the pictures that a column has.

        Rows that share a picture never lie on both sides of a split: pictures are keys.

        Raises:
            UnusableRecordError: a picture is missing, broken or too large, or the prompt is no
                text.
            UserError: pictures are named by path, and the source is a file and not a folder.
        """
        if not isinstance(row.prompt, str) or row.is_raw_text:
            raise UnusableRecordError(
                "pictures stand before a prompt that is text, and this is a conversation or has "
                "no prompt"
            )
        if column not in record.columns:
            raise UnusableRecordError(f"no column {column!r} with a picture")
        value = record.columns[column]
        values = [one for one in value if one not in EMPTY] if isinstance(value, list) else [value]
        if not values or values[0] in EMPTY:
            raise UnusableRecordError(f"no picture: column {column!r} is empty")
        if len(values) > _MOST:
            raise UnusableRecordError(f"more than {_MOST} pictures")
        names = tuple(self._stored(one, record.file) for one in values)
        new_id = row_id(row.prompt, images=names)
        return (
            replace(record, keys=(*record.keys, *names)),
            row.model_copy(update={"images": names, "id": new_id}),
        )

    def _stored(self, value: Any, file: str) -> str:
        try:
            name, content = stored_image(self._content(value, file))
        except UnusableImageError as error:
            raise UnusableRecordError(str(error)) from None
        path = IMAGES / name
        if self._keep and not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(f".{name}.partial")
            partial.write_bytes(content)
            partial.replace(path)
        return name

    def _content(self, value: Any, file: str) -> bytes:
        """Return the bytes of a picture: of a path, or as data sets of the hub hold them."""
        if isinstance(value, bytes):
            return value
        if isinstance(value, Mapping) and isinstance(value.get("bytes"), bytes):
            content: bytes = value["bytes"]
            return content
        if isinstance(value, Mapping) and isinstance(value.get("path"), str):
            value = value["path"]
        if not isinstance(value, str):
            raise UnusableRecordError(f"a picture is a path or bytes, not {json_type(value)}")
        if value.startswith("data:"):
            return _of_data_uri(value)
        if "://" in value:
            raise UnusableRecordError("a picture is a file, not an address: download it")
        return self._of_path(value, file)

    def _of_path(self, value: str, file: str) -> bytes:
        root = self._path.resolve()
        if not root.is_dir():
            raise UserError(
                "pictures are named by path, and collect.source.path is no folder: DVC would see "
                "no change of them",
                where=f"collect.source.path: {self._path}",
                fix="put the data file and its pictures into one folder, such as animals, and run: "
                "cohobate run --set collect.source.path=animals",
            )
        path = ((Path(file).parent if file else root) / value).resolve()
        if not path.is_relative_to(root):
            raise UnusableRecordError("the picture lies outside collect.source.path")
        try:
            for above in path.parents:
                if above.suffix == ".zip" and above.is_file():
                    return _of_zip(above, path.relative_to(above).as_posix())
            if path.stat().st_size > MAX_BYTES:
                raise UnusableRecordError(f"a picture of more than {MAX_BYTES >> 20} MiB")
            return path.read_bytes()
        except (OSError, ValueError):
            raise UnusableRecordError("there is no such picture") from None


def _of_zip(archive: Path, member: str) -> bytes:
    try:
        with zipfile.ZipFile(archive) as packed:
            # as it unpacks: a small archive can hold any number of bytes
            if packed.getinfo(member).file_size > MAX_BYTES:
                raise UnusableRecordError(f"a picture of more than {MAX_BYTES >> 20} MiB")
            return packed.read(member)
    except (KeyError, zipfile.BadZipFile, RuntimeError, NotImplementedError):
        raise UnusableRecordError("there is no such picture in the zip file") from None


def _of_data_uri(value: str) -> bytes:
    try:
        return base64.b64decode(value.partition(",")[2], validate=True)
    except binascii.Error:
        raise UnusableRecordError("a broken data: address of a picture") from None


def keep_only(rows: Iterator[Row]) -> int:
    """Remove the pictures that no row names; return how many are left.

    Raises:
        UserError: a row names a picture that is not there.
    """
    used: Collection[str] = {name for row in rows for name in row.images or ()}
    if IMAGES.is_dir():
        for path in IMAGES.iterdir():
            if path.name not in used:
                path.unlink()
    missing = [name for name in sorted(used) if not (IMAGES / name).is_file()]
    if missing:
        raise UserError(
            f"{len(missing)} pictures of repeated prompts are not among the source's: {missing[0]}",
            where="collect.replay",
            fix="repeat prompts of rounds on the same pictures, or --set collect.replay.rows=0",
        )
    return len(used)
