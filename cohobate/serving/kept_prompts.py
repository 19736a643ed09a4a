"""Prompts of the traffic, kept for the next round: bounded, rotated, redacted.

    data/traffic/prompts-000012.jsonl      {"messages": [...], "why": "handed on"}
    .cohobate/traffic/open.jsonl           those of the next file

A file appears in data/traffic when it is complete, by a rename: whoever reads the folder sees whole
files alone. A source of `collect.sources` with the path data/traffic reads them.
"""

import fcntl
import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from cohobate.data.messages import Prompt, prompt_key, prompt_text
from cohobate.errors import UserError
from cohobate.params import Section
from cohobate.serving.redaction import Redaction

TRAFFIC = Path("data/traffic")
OPEN = Path(".cohobate/traffic/open.jsonl")
Reason = Literal["handed on", "by lot"]
_BITS = 64


class TrafficKeeping(Section):
    """Which prompts of the traffic are kept, and how many."""

    share: float = Field(0.05, ge=0, le=1)
    """Share, by lot, of the prompts that the student answered; of those that it handed on all are
    kept. The lot is a hash of the prompt: the same prompt has the same lot."""
    rows: int = Field(1000, ge=1)
    """Prompts of a file. A file that is complete is the event `cohobate.prompts.arrived`, which
    starts the next round where `cohobate up` runs."""
    files: int = Field(20, ge=1)
    """Most files: the oldest is deleted for a new one."""
    longest: int = Field(20_000, ge=1)
    """Most characters of a prompt; longer ones are not kept."""
    redact: Redaction = Redaction()
    """What is replaced before anything is written."""


class KeptPrompts:
    """The kept prompts of a project; one process at a time writes them.

    Args:
        root: the project's folder.
        keep: how many are kept.
        on_complete: called with each file that is complete and its number of prompts, in the
            thread of the request that completed it.

    Raises:
        UserError: another process keeps prompts here.
    """

    def __init__(
        self,
        root: Path,
        keep: TrafficKeeping,
        on_complete: Callable[[Path, int], None] = lambda *_: None,
    ) -> None:
        self.folder, self.keep = root / TRAFFIC, keep
        self._path, self._on_complete = root / OPEN, on_complete
        self._lock = threading.Lock()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._path.open("a+b", buffering=0)
        # of a file of its own: the open one is renamed when it is complete
        self._held = self._path.with_name("lock").open("a")
        try:
            fcntl.flock(self._held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                "another process keeps prompts of the traffic here",
                where=str(self._path),
                fix="end the other cohobate serve, or leave out route.keep here",
            ) from None
        self._recover()
        self._seen = {_hash(line) for line in self._stored()}

    def close(self) -> None:
        """Let another process keep prompts; those of the incomplete file stay in it."""
        self._file.close()
        self._held.close()

    def add(self, prompt: Prompt, *, handed_on: bool) -> bool:
        """Keep a prompt if it is chosen, short enough and new; return whether it was kept."""
        if not handed_on and not self._is_drawn(prompt):
            return False
        reason: Reason = "handed on" if handed_on else "by lot"
        prompt = self.keep.redact.prompt(prompt)
        if len(prompt_text(prompt)) > self.keep.longest:
            return False
        line = (json.dumps(_record(prompt, reason), ensure_ascii=False) + "\n").encode()
        with self._lock:
            if (key := _hash(line)) in self._seen:
                return False
            self._seen.add(key)
            self._file.write(line)
            self._rows += 1
            complete = self._complete() if self._rows >= self.keep.rows else None
        if complete:
            self._on_complete(complete, self.keep.rows)
        return True

    def _is_drawn(self, prompt: Prompt) -> bool:
        text = json.dumps(prompt_key(prompt), sort_keys=True).encode()
        drawn = int.from_bytes(hashlib.blake2b(text, digest_size=_BITS // 8).digest())
        return bool(drawn < self.keep.share * 2.0**_BITS)

    def _complete(self) -> Path:
        """Give the open file its name, delete what is too old, and open the next."""
        os.fsync(self._file.fileno())
        self._file.close()
        self.folder.mkdir(parents=True, exist_ok=True)
        files = self._files()
        number = int(files[-1].stem.rpartition("-")[2]) + 1 if files else 1
        path = self.folder / f"prompts-{number:06d}.jsonl"
        self._path.replace(path)
        for old in [*files, path][: -self.keep.files]:
            old.unlink(missing_ok=True)
        self._file, self._rows = self._path.open("a+b", buffering=0), 0
        self._seen = {_hash(line) for line in self._stored()}
        return path

    def _recover(self) -> None:
        """Count the prompts of the open file; cut off a line that a killed process left."""
        content = self._path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            self._file.truncate(len(whole))
        self._rows = whole.count(b"\n")

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("prompts-*.jsonl"))

    def _stored(self) -> Iterator[bytes]:
        for path in (*self._files(), self._path):
            yield from path.read_bytes().splitlines(keepends=True)


def _record(prompt: Prompt, reason: Reason) -> dict[str, Any]:
    if isinstance(prompt, str):
        return {"prompt": prompt, "why": reason}
    return {"messages": [turn.as_request() for turn in prompt], "why": reason}


def _hash(line: bytes) -> bytes:
    record = json.loads(line)
    record.pop("why", None)
    return hashlib.blake2b(json.dumps(record).encode(), digest_size=8).digest()
