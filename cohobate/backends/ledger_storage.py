"""Storage of ledgers: a folder that all worktrees of a repository share, or an S3 prefix.

In a folder a ledger is one file with one writer at a time: a second process waits for the first and
then reads its answers. On S3 each batch is an object of its own, immutable and named by the hash of
its content, so that concurrent writers cannot damage anything and need no lock.
"""

import errno
import fcntl
import hashlib
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

from cohobate.errors import UserError
from cohobate.progress import say

LEDGER = Path(".cohobate/ledger")
LEDGER_VARIABLE = "COHOBATE_LEDGER"
_NAME = 16  # hex digits of a teacher's hash
_WORKTREE = re.compile(r"^\s*worktree\s*=\s*(?P<path>.+?)\s*$", re.MULTILINE)
_EXPERIMENTS = (".dvc", "tmp", "exps")


def storage_for(teacher: str, chosen: str = "") -> "LedgerStorage":
    """Return the storage of a teacher's ledger.

    Args:
        teacher: the teacher's hash, as `endpoint.identity` returns it.
        chosen: a folder, or `s3://bucket/prefix`; `$COHOBATE_LEDGER` overrules it. Empty:
            `.cohobate/ledger`. A relative folder is one of the project's main worktree.
    """
    name = teacher[:_NAME]
    storage = _storage(chosen, name, "jsonl")
    storage.other = _storage(chosen, _routed(name), "jsonl")
    return storage


def routed_storage_for(teacher: str, chosen: str = "") -> "LedgerStorage":
    """Return the storage of what `cohobate serve --route` buys of a teacher.

    It is apart from the ledger of the rounds: a round holds that for as long as it generates. Each
    of the two takes the answers of the other.
    """
    name = teacher[:_NAME]
    storage = _storage(chosen, _routed(name), "jsonl")
    storage.other = _storage(chosen, name, "jsonl")
    return storage


def _routed(name: str) -> str:
    return f"routed/{name}"


def signal_storage_for(teacher: str, chosen: str = "") -> "LedgerStorage":
    """Return the storage of the signals of a teacher's answers, beside its ledger."""
    return _storage(chosen, f"signals/{teacher[:_NAME]}", "bin")


def _storage(chosen: str, name: str, suffix: str) -> "LedgerStorage":
    location = os.environ.get(LEDGER_VARIABLE) or chosen or str(LEDGER)
    if location.startswith("s3://"):
        return S3Storage(f"{location.rstrip('/')}/{name}", suffix)
    return FileStorage(main_project() / Path(location).expanduser() / f"{name}.{suffix}")


class LedgerStorage(ABC):
    """Append-only bytes."""

    name: str
    """Identifies the teacher, wherever the ledger is stored."""
    other: "LedgerStorage | None" = None
    """Another ledger of the same teacher, whose answers count in this one too."""

    @abstractmethod
    def open(self) -> None:
        """Prepare to read and append."""

    @abstractmethod
    def close(self) -> None:
        """Release what `open` acquired."""

    @abstractmethod
    def streams(self) -> Iterator[tuple[int, BinaryIO]]:
        """Yield (offset, stream) of what was appended, in a fixed order."""

    @abstractmethod
    def cut(self, end: int) -> None:
        """Remove what is stored after offset `end`: an incomplete write."""

    @abstractmethod
    def append(self, data: bytes) -> tuple[str, int]:
        """Add bytes: all of them are stored when this returns, or none.

        Returns:
            The part that has them, and the offset in it at which they begin.
        """

    @abstractmethod
    def parts(self) -> Iterator[tuple[str, int]]:
        """Yield (name, size) of each part of what was appended, in a fixed order."""

    @abstractmethod
    def read(self, ranges: Sequence[tuple[str, int, int]]) -> list[bytes]:
        """Return the bytes of ranges: (part, start, end) each."""


class FileStorage(LedgerStorage):
    """A file on disk."""

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, path.stem

    def __str__(self) -> str:
        return str(self.path)

    def open(self) -> None:
        """Open the file, and wait until no other process writes it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("a+b", buffering=0)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another process is writing {self.path}: waiting for it to end")
            fcntl.flock(self._file, fcntl.LOCK_EX)

    def close(self) -> None:
        """Close the file, which releases its lock."""
        self._file.close()

    def streams(self) -> Iterator[tuple[int, BinaryIO]]:
        """Yield the file, which is read in pieces: it may be larger than memory."""
        if not self.path.exists():
            return
        # flock's lock is that of the other descriptor: closing this one does not release it
        with self.path.open("rb") as stream:
            yield 0, stream

    def cut(self, end: int) -> None:
        """Truncate the file."""
        self._file.truncate(end)

    def append(self, data: bytes) -> tuple[str, int]:
        """Write at the end, and wait for the disk."""
        end, descriptor = self._file.seek(0, os.SEEK_END), self._file.fileno()
        try:
            while data:
                # a write may take a part of the bytes, such as on a disk that is nearly full
                data = data[os.write(descriptor, data) :]
            os.fsync(descriptor)
        except OSError as error:
            # the file ends with a complete batch again, so the next append is readable
            self._file.truncate(end)
            if error.errno == errno.ENOSPC:
                raise UserError(
                    "the disk is full, no answer was added",
                    where=str(self),
                    fix=f"free space: df -h {self.path.parent}; then repeat the command",
                ) from None
            raise
        return "", end

    def parts(self) -> Iterator[tuple[str, int]]:
        """Yield the whole file as one part without a name."""
        yield "", self._file.seek(0, os.SEEK_END)

    def read(self, ranges: Sequence[tuple[str, int, int]]) -> list[bytes]:
        """Read each range; one that goes beyond the end of the file is shorter."""
        descriptor = self._file.fileno()
        return [os.pread(descriptor, end - start, start) for _, start, end in ranges]


class S3Storage(LedgerStorage):
    """Objects below an S3 prefix."""

    def __init__(self, prefix: str, suffix: str = "jsonl") -> None:
        self.prefix, self.suffix = prefix.removeprefix("s3://"), suffix
        self.name = self.prefix.rpartition("/")[2]

    def __str__(self) -> str:
        return f"s3://{self.prefix}"

    def open(self) -> None:
        """Do nothing: there is no lock."""

    def close(self) -> None:
        """Do nothing."""

    def streams(self) -> Iterator[tuple[int, BinaryIO]]:
        """Yield object by object, in the order of their names.

        Raises:
            UserError: the store cannot be read.
        """
        with self._errors_of("read"):
            # s3fs remembers listings, and would miss what other writers added
            self._store.invalidate_cache()
            for path in sorted(self._store.find(self.prefix)):
                yield 0, BytesIO(self._store.cat_file(path))

    def cut(self, end: int) -> None:
        """Do nothing: an object with a damaged line stays, its sound lines were read."""

    def append(self, data: bytes) -> tuple[str, int]:
        """Write one object; S3 stores all of it or nothing."""
        # a retry after a lost reply writes the same object again: nothing counts twice
        name = hashlib.blake2b(data, digest_size=16).hexdigest()
        path = f"{self.prefix}/{name}.{self.suffix}"
        with self._errors_of("write to"):
            self._store.pipe_file(path, data)
        return path, 0

    def parts(self) -> Iterator[tuple[str, int]]:
        """Yield the objects in the order of their writing, as far as S3 knows it.

        Raises:
            UserError: the store cannot be read.
        """
        with self._errors_of("read"):
            self._store.invalidate_cache()
            objects = self._store.find(self.prefix, detail=True).items()
            for path, about in sorted(objects, key=lambda each: (each[1]["LastModified"], each[0])):
                yield path, int(about["size"])

    def read(self, ranges: Sequence[tuple[str, int, int]]) -> list[bytes]:
        """Read the ranges of objects, many at a time.

        Raises:
            UserError: the store cannot be read.
        """
        paths, starts, ends = (list(column) for column in zip(*ranges, strict=True))
        with self._errors_of("read"):
            blobs: list[bytes] = self._store.cat_ranges(paths, starts, ends, on_error="raise")
        return blobs

    @cached_property
    def _store(self) -> Any:
        from s3fs import S3FileSystem

        return S3FileSystem()

    @contextmanager
    def _errors_of(self, operation: str) -> Iterator[None]:
        from botocore.exceptions import BotoCoreError

        try:
            yield
        except (OSError, BotoCoreError) as error:  # refused, or out of reach
            raise UserError(
                f"cannot {operation} the ledger: {error}",
                where=str(self),
                fix="check AWS_ENDPOINT_URL and the credentials; stored answers are not affected",
            ) from error


def main_project(folder: Path = Path()) -> Path:
    """Return the folder of the project at `folder` in the main worktree of its repository.

    Rounds run in git worktrees, and DVC runs `exp run --temp` and `--queue` in repositories of
    their own below `.dvc/tmp/exps`, which it deletes: all of them share the main worktree's ledger.
    A folder outside any repository is its own main worktree.
    """
    here = folder.resolve()
    if (top := _repository(here)) is None:
        return folder
    origin = top
    # the project of an experiment may itself lie in a temporary repository
    while (outer := _dvc_project(origin)) is not None:
        origin = _repository(outer) or outer
    return _main_worktree(origin) / here.relative_to(top)


def _repository(folder: Path) -> Path | None:
    """Return the top folder of the repository that a folder belongs to."""
    return next((top for top in (folder, *folder.parents) if (top / ".git").exists()), None)


def _dvc_project(top: Path) -> Path | None:
    """Return the project whose experiment runs in the temporary repository `top`, if it is one."""
    ends = (at for at in top.parents if at.parts[-3:] == _EXPERIMENTS)
    return next((end.parents[2] for end in ends), None)


def _main_worktree(top: Path) -> Path:
    """Return the main worktree of the repository with a worktree at `top`.

    Git's files are read directly: the command `git` refuses folders of another owner.
    """
    if (top / ".git").is_dir():
        return top
    git_folder = top / (top / ".git").read_text().removeprefix("gitdir:").strip()
    if not (git_folder / "commondir").exists():  # a submodule
        return top
    shared = (git_folder / (git_folder / "commondir").read_text().strip()).resolve()
    if shared.name == ".git":
        return shared.parent
    setting = _WORKTREE.search((shared / "config").read_text())  # of a submodule
    return (shared / setting["path"]).resolve() if setting else shared
