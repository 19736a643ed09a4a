"""The ledger: every answer a teacher ever gave, so that none is computed or paid for twice.

It lies outside what any stage writes, in a place that all rounds share
(cohobate/backends/ledger_storage.py says where), one for each teacher: by the fingerprint of its
weights, or the address and name of a service's model. It is append-only. A line is an answer under
the key of all that decided it:

    {"key": "5be1…", "text": " animal", "finish": "stop", "logprob": -0.02, "left": 3, "crc": …}

`left` counts the lines of a batch that follow; a batch whose end is missing (a crash in the middle
of a write) counts as never written and is cut off. A line whose checksum fails is passed over, and
asked for again. Where two writers bought one answer twice, the first counts.

Failures that may pass never enter. What a service charged for a reply without an answer does, with
the reply, so that the sum that was spent is known after any restart; and so does a refusal, so that
no later run asks again:

    {"request": "0b7c…", "reason": "the service filtered the answer", "cost": 0.01, "reply": "{…}",
     "whole": true, "refused": true, "left": 0, "crc": …}
"""

import json
import zlib
from collections import defaultdict
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from cohobate.backends.ledger_storage import LedgerStorage
from cohobate.backends.requests import NoAnswer, Outcomes
from cohobate.generation.requests import Answer, Usage
from cohobate.progress import say


class Ledger:
    """The answers of one teacher; open it with `with`."""

    def __init__(self, storage: LedgerStorage) -> None:
        self.storage = storage
        self.spent = 0.0
        """US dollars that this teacher has cost so far."""
        self.refusals: dict[str, str] = {}
        """Why the service will not answer a prompt, by key."""
        self.replies: defaultdict[str, tuple[str, ...]] = defaultdict(tuple)
        """Whole replies without an answer, by key."""
        self._answers: dict[str, Answer] = {}

    def __len__(self) -> int:
        return len(self._answers)

    def __enter__(self) -> "Ledger":
        self.storage.open()
        for start, blob in self.storage.blobs():
            if (sound := self._take(blob)) < len(blob):
                say(f"{self.storage}: cut off a batch that was not written to its end")
                self.storage.cut(start + sound)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.storage.close()

    def __contains__(self, key: str) -> bool:
        return key in self._answers

    def __getitem__(self, key: str) -> Answer:
        """Return the answer under `key`."""
        return self._answers[key]

    def append(self, batch: Outcomes) -> None:
        """Add the accepted answers of a batch; they are safe, all or none, when this returns.

        Raises:
            UserError: the disk is full, or the store does not take it; what was there is safe.
        """
        entries = [entry for key, outcome in batch.items() for entry in _entries(key, outcome)]
        for left, entry in enumerate(reversed(entries)):
            entry["left"] = left
        if entries:
            self.storage.append(b"".join(_line(entry) for entry in entries))
        for entry in entries:
            self._enter(entry)

    def _take(self, blob: bytes) -> int:
        """Take in what was written; return where the last whole batch ends."""
        sound, at, damaged = 0, 0, 0
        batch: list[dict[str, Any]] = []
        for line in blob.splitlines(keepends=True):
            at += len(line)
            if (entry := _entry(line)) is None:
                damaged += 1
                continue
            batch.append(entry)
            if entry["left"] == 0:
                for whole in batch:
                    self._enter(whole)
                batch, sound = [], at
        if damaged and at == sound:
            say(f"{self.storage}: passed over {damaged} damaged lines; they are asked for again")
        return sound

    def _enter(self, entry: Mapping[str, Any]) -> None:
        if "key" not in entry:
            self._enter_failure(entry)
            return
        bought = Usage(*entry["bought"]) if "bought" in entry else None
        self.spent += bought.cost if bought else 0.0
        tokens = tuple((t, lp, others) for t, lp, others in entry.get("tokens", ())) or None
        beside = (entry.get("reasoning"), entry.get("note"))
        answer = Answer(entry["text"], entry["finish"], entry["logprob"], bought, tokens, *beside)
        self._answers.setdefault(entry["key"], answer)

    def _enter_failure(self, entry: Mapping[str, Any]) -> None:
        self.spent += entry["cost"]
        key = entry.get("request", "")
        if entry.get("whole"):
            self.replies[key] += (entry.get("reply", ""),)
        if entry.get("refused"):
            self.refusals[key] = entry["reason"]


_LINE_KEYS = {"usage": "bought"}
"""Keys of a ledger line that differ from the fields of `Answer`."""


def _entries(key: str, outcome: Answer | NoAnswer) -> list[dict[str, Any]]:
    """Return what is to be kept of an outcome: an answer, a refusal, what was paid, or nothing."""
    if isinstance(outcome, NoAnswer):
        return _of_failure(key, outcome)
    # the keys of a line stay what they are, whatever the fields are called: old ledgers are read
    entry = {"key": key} | {_LINE_KEYS.get(k, k): v for k, v in outcome._asdict().items()}
    return [{k: v for k, v in entry.items() if v is not None or k == "logprob"}]


def _of_failure(key: str, outcome: NoAnswer) -> list[dict[str, Any]]:
    refused = outcome.state == "refused"
    if not (outcome.cost or outcome.reply or refused):
        return []
    entry = {"request": key, "reason": outcome.reason, "cost": outcome.cost}
    optional = {"reply": outcome.reply, "whole": outcome.whole, "refused": refused}
    return [entry | {name: value for name, value in optional.items() if value}]


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
