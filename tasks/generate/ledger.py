"""The ledger: every answer a teacher ever gave, so that none is computed or paid for twice.

An append-only file of JSON lines below `.cohobate/ledger`, outside what any stage writes, one file
a teacher (by the fingerprint of its weights). A line is an answer under the key of all that decided
it:

    {"key": "5be1…", "text": " animal", "finish": "stop", "logprob": -0.02, "left": 3, "crc": …}

Answers are appended a batch at a time, in one write that is then fsynced; `left` counts the lines
of the batch that follow. A batch whose end is missing (a crash in the middle of a write) counts as
never written and is cut off. A line whose checksum fails is passed over, and asked for again.
Failures never enter.
"""

import errno
import fcntl
import hashlib
import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from tasks.decoding import Answer
from tasks.errors import UserError
from tasks.progress import say

LEDGER = Path(".cohobate/ledger")


def key_of(*decided_by: Any) -> str:
    """Return the key of an answer: a hash of everything that decides it, as JSON values."""
    text = json.dumps(decided_by, sort_keys=True, ensure_ascii=False)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


class Ledger:
    """The answers of one teacher; open it with `with`: it has one writer at a time."""

    def __init__(self, teacher: str, folder: Path = LEDGER) -> None:
        self.path = folder / f"{teacher[:16]}.jsonl"
        self._answers: dict[str, Answer] = {}

    def __enter__(self) -> "Ledger":
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("a+b", buffering=0)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another process is writing {self.path}: waiting for it to end")
            fcntl.flock(self._file, fcntl.LOCK_EX)
        self._read()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()  # and the lock with it

    def __contains__(self, key: str) -> bool:
        return key in self._answers

    def __getitem__(self, key: str) -> Answer:
        """Return the answer under `key`."""
        return self._answers[key]

    def append(self, batch: Mapping[str, Answer]) -> None:
        """Add a batch of accepted answers; they are on disk, all or none, when this returns.

        Raises:
            UserError: the disk is full; the answers before this batch are safe.
        """
        left = len(batch)
        lines = []
        for key, answer in batch.items():
            left -= 1
            lines.append(_line({"key": key, "left": left, **answer._asdict()}))
        end = self._file.seek(0, os.SEEK_END)
        try:
            _write_all(self._file.fileno(), b"".join(lines))
            os.fsync(self._file)
        except OSError as error:
            self._file.truncate(end)
            if error.errno == errno.ENOSPC:
                raise UserError("the disk is full: no answer added", where=str(self.path)) from None
            raise
        self._answers |= batch

    def _read(self) -> None:
        """Take in what is there, and cut off a batch that was not written to its end."""
        self._file.seek(0)
        sound, damaged, at = 0, 0, 0
        batch: dict[str, Answer] = {}
        for line in self._file.readlines():
            at += len(line)
            entry = _entry(line)
            if entry is None:
                damaged += 1
                continue
            batch[entry["key"]] = Answer(entry["text"], entry["finish"], entry["logprob"])
            if entry["left"] == 0:
                self._answers |= batch
                batch, sound = {}, at
        if at > sound:
            say(f"{self.path}: cut off a batch that was not written to its end")
            self._file.truncate(sound)
        elif damaged:
            say(f"{self.path}: passed over {damaged} damaged lines; they are asked for again")


def _line(entry: dict[str, Any]) -> bytes:
    text = json.dumps(entry, sort_keys=True, ensure_ascii=False)
    return f'{text[:-1]}, "crc": {zlib.crc32(text.encode())}}}\n'.encode()


def _entry(line: bytes) -> dict[str, Any] | None:
    try:
        entry: dict[str, Any] = json.loads(line)
        del entry["crc"]
        return entry if _line(entry) == line else None
    except (ValueError, KeyError, TypeError):
        return None


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]
