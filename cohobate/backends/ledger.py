"""The ledger: every answer of a teacher, so that none is computed or paid for twice.

There is one ledger for each teacher, identified by the hash of its weights, or of the address and
name of a service's model. It is stored outside the outputs of all stages and shared by all rounds
(cohobate/backends/ledger_storage.py), and it is append-only. A line is an answer under the key of
everything that decided it:

    {"key": "5be1…", "text": " animal", "finish": "stop", "logprob": -0.02, "left": 3, "crc": …}

`left` counts the lines of the same batch that follow. A batch whose end is missing, after a crash
in the middle of a write, counts as never written and is cut off. A line with a wrong checksum is
skipped, and its answer is requested again. Where two writers bought the same answer, the first
counts.

Temporary failures are not recorded. Two kinds of failures are: a reply without an answer that the
service charged for, so that the total cost is known after any restart, and a refusal, so that no
later run sends the prompt again:

    {"request": "0b7c…", "reason": "the service filtered the answer", "cost": 0.01, "reply": "{…}",
     "whole": true, "refused": true, "left": 0, "crc": …}
"""

import json
import zlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from cohobate.backends.ledger_storage import LedgerStorage
from cohobate.backends.requests import NoAnswer, Outcomes
from cohobate.data.messages import ToolCall
from cohobate.generation.requests import Answer, Usage
from cohobate.progress import say


class Ledger:
    """The answers of one teacher; open it with `with`."""

    def __init__(self, storage: LedgerStorage) -> None:
        self.storage = storage
        self.spent = 0.0
        """US dollars that this teacher has cost so far."""
        self.refusals: dict[str, str] = {}
        """Reasons why the service will not answer a prompt, by key."""
        self.replies: defaultdict[str, tuple[str, ...]] = defaultdict(tuple)
        """Complete replies without an answer, by key."""
        self._answers: dict[str, Answer] = {}
        self._tokens: dict[str, bytes] = {}
        """The tokens of answers that have some, packed: as Python objects, 20 log-probabilities a
        token take about 3 KB, packed 0.2."""

    def __len__(self) -> int:
        return len(self._answers)

    def __enter__(self) -> "Ledger":
        self.storage.open()
        for start, stream in self.storage.streams():
            complete, size = self._read(stream)
            if complete < size:
                say(f"{self.storage}: removed the last batch, which was not completely written")
                self.storage.cut(start + complete)
        if self.storage.other:
            self._borrow(self.storage.other)
        return self

    def __exit__(self, *_: object) -> None:
        self.storage.close()

    def __contains__(self, key: str) -> bool:
        return key in self._answers

    def __getitem__(self, key: str) -> Answer:
        """Return the answer under `key`."""
        answer = self._answers[key]
        if key in self._tokens:
            listed = json.loads(zlib.decompress(self._tokens[key]))
            answer = answer._replace(tokens=tuple((t, lp, others) for t, lp, others in listed))
        return answer

    def append(self, batch: Outcomes) -> None:
        """Add the outcomes of a batch; when this returns, all of them are on disk, or none.

        Raises:
            UserError: the disk is full, or the store refuses; earlier batches are unharmed.
        """
        entries = [entry for key, outcome in batch.items() for entry in _entries(key, outcome)]
        # counted from the end, so that the last line of a batch has 0
        for left, entry in enumerate(reversed(entries)):
            entry["left"] = left
        if entries:
            self.storage.append(b"".join(_line(entry) for entry in entries))
        for entry in entries:
            self._add(entry)

    def _read(self, lines: Iterable[bytes]) -> tuple[int, int]:
        """Add the entries of stored lines; return where the last complete batch ends, and all."""
        complete, position, damaged = 0, 0, 0
        batch: list[dict[str, Any]] = []
        for line in lines:  # one by one: a ledger may be larger than memory
            position += len(line)
            if (entry := _entry(line)) is None:
                damaged += 1
                continue
            batch.append(entry)
            # nothing counts before the batch is complete
            if entry["left"] == 0:
                for item in batch:
                    self._add(item)
                batch, complete = [], position
        if damaged and position == complete:  # else the last batch is incomplete, and is cut off
            say(f"{self.storage}: {damaged} damaged lines: their answers are requested again")
        return complete, position

    def _borrow(self, other: LedgerStorage) -> None:
        """Add the answers of another ledger of this teacher; what they cost counts there."""
        spent = self.spent
        for _, stream in other.streams():
            self._read(stream)  # its last batch may be half written: that one does not count
        self.spent = spent

    def _add(self, entry: Mapping[str, Any]) -> None:
        if "key" not in entry:
            self._add_failure(entry)
            return
        usage = Usage(*entry["bought"]) if "bought" in entry else None
        self.spent += usage.cost if usage else 0.0
        texts = (entry.get("reasoning"), entry.get("note"))
        calls = tuple(ToolCall(**call) for call in entry.get("tool_calls", ())) or None
        fields = (entry["text"], entry["finish"], entry["logprob"], usage, None, *texts, calls)
        answer = Answer(*fields)
        # the cost above counts either way: both writers paid
        if entry["key"] not in self._answers:
            self._answers[entry["key"]] = answer
            if tokens := entry.get("tokens"):
                self._tokens[entry["key"]] = zlib.compress(json.dumps(tokens).encode(), 1)

    def _add_failure(self, entry: Mapping[str, Any]) -> None:
        self.spent += entry["cost"]
        key = entry.get("request", "")
        if entry.get("whole"):
            self.replies[key] += (entry.get("reply", ""),)
        if entry.get("refused"):
            self.refusals[key] = entry["reason"]


_LINE_KEYS = {"usage": "bought"}
"""Keys of a ledger line that differ from the fields of `Answer`."""


def _entries(key: str, outcome: Answer | NoAnswer) -> list[dict[str, Any]]:
    """Return the ledger entry of an outcome; none for a failure that is temporary and was free."""
    if isinstance(outcome, NoAnswer):
        return _failure_entries(key, outcome)
    # the keys of a line stay what they are, whatever the fields are called: old ledgers are read
    entry = {"key": key} | {_LINE_KEYS.get(k, k): v for k, v in outcome._asdict().items()}
    if outcome.tool_calls:
        entry["tool_calls"] = [call.model_dump(exclude_none=True) for call in outcome.tool_calls]
    return [{k: v for k, v in entry.items() if v is not None or k == "logprob"}]


def _failure_entries(key: str, outcome: NoAnswer) -> list[dict[str, Any]]:
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
        # written again it must give the same bytes: that compares the checksum and the form
        return entry if _line(entry) == line else None
    except (ValueError, KeyError, TypeError):
        return None
