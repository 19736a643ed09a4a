"""The signal log: distributions of a teacher's own answers, kept while it generates them.

It lies beside the teacher's ledger and is append-only like it: a binary file below the ledger's
folder (`signals/<teacher>.bin`), or objects below its S3 prefix. A batch is on disk before its
answers are in the ledger. A row is known by its token ids, prompt and answer: a teacher's
distributions depend on nothing else. What is missing here is captured by a pass of the teacher.

A batch in the file, little-endian:

    COB1        4 bytes
    sizes       bytes of the origin (u32), rows (u32), bytes of the records (u64)
    crc         of origin and rows (u32)
    origin      JSON: teacher, form, number format (`Origin` of the signal store)
    rows        32 bytes each: digest of its ids (16), tokens (u32), crc of its records (u32),
                and where its records begin (u64)
    records     those of all tokens, as in a signal store

Batches behind one that is incomplete or damaged are cut off. A row whose records are damaged
counts as missing.
"""

import hashlib
import struct
import zlib
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from cohobate.backends.ledger_storage import LedgerStorage
from cohobate.models.number_formats import NumberFormat
from cohobate.progress import say
from cohobate.teachers.signal_store.form import Packed
from cohobate.teachers.signal_store.packing import Array
from cohobate.teachers.signal_store.top_k_form import StoredTopK

if TYPE_CHECKING:
    from cohobate.teachers.signal_store.store import Origin

_MARK = b"COB1"
_PREFIX = struct.Struct("<4sIIQI")
_ROW = np.dtype([("ids", "<u8", (2,)), ("tokens", "<u4"), ("crc", "<u4"), ("start", "<u8")])
_ENTRY = np.dtype(
    [*((name, _ROW[name]) for name in ("ids", "tokens", "crc", "start")), ("batch", "<u4")]
)
"""A row of the index in memory: as on disk, with the number of its batch."""


class PackedAnswers(NamedTuple):
    """The signals of a batch of answers, packed."""

    origin: str
    """JSON of the `Origin` of the signals."""
    rows: Array
    records: bytes

    @classmethod
    def of(
        cls, origin: str, digests: Sequence[bytes], records: Sequence[bytes], size: int
    ) -> "PackedAnswers":
        """Return the signals of answers.

        Args:
            origin: JSON of their `Origin`.
            digests: `ids_digest` of each answer.
            records: packed tokens of each.
            size: bytes of one token.
        """
        rows = np.zeros(len(digests), _ROW)
        rows["ids"] = np.frombuffer(b"".join(digests), "<u8").reshape(-1, 2)
        rows["tokens"] = [len(each) // size for each in records]
        rows["crc"] = [zlib.crc32(each) for each in records]
        rows["start"] = np.cumsum([0, *map(len, records)])[:-1]
        return cls(origin, rows, b"".join(records))


def ids_digest(ids: Sequence[int], start: int) -> bytes:
    """Return 16 bytes that stand for token ids of which those from `start` on are the answer."""
    return hashlib.blake2b(np.array([start, *ids], "<i4").tobytes(), digest_size=16).digest()


class _Batch(NamedTuple):
    origin: "Origin"
    part: str
    start: int
    """Where its records begin in the part."""


class SignalLog:
    """The signals of one teacher's answers; open it with `with`.

    Rows count whose signals contain those of `form`, computed in the number format.
    """

    def __init__(
        self, storage: LedgerStorage, form: StoredTopK, number_format: NumberFormat
    ) -> None:
        self.storage, self.form, self.number_format = storage, form, number_format
        self._batches: list[_Batch] = []
        self._entries: list[Array] = []
        self._index: Array | None = None

    def __enter__(self) -> "SignalLog":
        self.storage.open()
        for part, size in self.storage.parts():
            if (end := self._scan(part, size)) < size:
                say(
                    f"{self.storage}: {size - end} bytes at its end are incomplete or damaged: a "
                    "pass of the teacher captures those signals"
                )
                self.storage.cut(end)
        return self

    def __exit__(self, *_: object) -> None:
        self.storage.close()

    def append(self, answers: PackedAnswers) -> None:
        """Add the signals of a batch of answers; when this returns, they are on disk.

        Raises:
            UserError: the disk is full, or the store refuses; earlier batches are unharmed.
        """
        if not len(answers.rows):
            return
        about = answers.origin.encode() + answers.rows.tobytes()
        sizes = (len(answers.origin.encode()), len(answers.rows), len(answers.records))
        prefix = _PREFIX.pack(_MARK, *sizes, zlib.crc32(about))
        part, start = self.storage.append(prefix + about + answers.records)
        records_start = start + len(prefix) + len(about)
        self._add(answers.origin.encode(), answers.rows, part, records_start)

    @property
    def origin(self) -> "Origin | None":
        """What the rows were computed with, in the form that is wanted; None without any row."""
        if not self._batches:
            return None
        first = self._batches[0].origin
        return first.model_copy(update={"form": self.form.for_vocabulary(first.vocabulary)})

    def find(self, digests: Sequence[bytes]) -> Array:
        """Return the place of each row, by the digest of its ids; −1 where there is none."""
        index = self._sorted()
        wanted = np.frombuffer(b"".join(digests), "<u8").reshape(-1, 2)
        if not len(index) or not len(wanted):
            return np.full(len(wanted), -1)
        at = np.searchsorted(index["ids"][:, 0], wanted[:, 0]).clip(0, len(index) - 1)
        return np.where((index["ids"][at] == wanted).all(1), at, -1)

    def read(self, places: Sequence[int]) -> list[Packed | None]:
        """Return the signals of rows in the form that is wanted; None where they are damaged."""
        entries = self._sorted()[list(places)]
        batches = [self._batches[number] for number in entries["batch"].tolist()]
        sizes = [batch.origin.record.itemsize for batch in batches]
        starts = [b.start + int(at) for b, at in zip(batches, entries["start"], strict=True)]
        ends = entries["tokens"].astype(np.int64) * sizes + starts
        parts = [batch.part for batch in batches]
        ranges = list(zip(parts, starts, ends.tolist(), strict=True))
        blobs = self.storage.read(ranges) if ranges else []
        rows = zip(blobs, entries["crc"].tolist(), batches, strict=True)
        return [
            self._in_form(batch.origin, blob) if zlib.crc32(blob) == crc else None
            for blob, crc, batch in rows
        ]

    def _in_form(self, origin: "Origin", records: bytes) -> Packed:
        packed = Packed(np.frombuffer(records, origin.record), np.empty(0, np.uint8))
        form = self.form.for_vocabulary(origin.vocabulary)
        if origin.form == form:
            return packed
        signals = origin.form.narrow(origin.form.unpack(packed, origin.vocabulary), form)
        return form.pack(signals, origin.vocabulary)

    def _scan(self, part: str, size: int) -> int:
        """Add the batches of a part; return where the last complete one ends."""
        at = 0
        while at + _PREFIX.size <= size:
            (prefix,) = self.storage.read([(part, at, at + _PREFIX.size)])
            mark, about_size, rows, records, crc = _PREFIX.unpack(prefix)
            start = at + _PREFIX.size
            records_start = start + about_size + rows * _ROW.itemsize
            if mark != _MARK or records_start + records > size:
                return at
            (about,) = self.storage.read([(part, start, records_start)])
            if zlib.crc32(about) != crc:
                return at
            row_array = np.frombuffer(about[about_size:], _ROW)
            self._add(about[:about_size], row_array, part, records_start)
            at = records_start + records
        return at

    def _add(self, origin: bytes, rows: Array, part: str, start: int) -> None:
        parsed = _origin(origin)
        if parsed is None or parsed.number_format != self.number_format:
            return
        if not parsed.form.serves(self.form.for_vocabulary(parsed.vocabulary)):
            return
        if self._batches and self._batches[0].origin.vocabulary != parsed.vocabulary:
            return
        entries = np.zeros(len(rows), _ENTRY)
        for name in _ROW.names or ():
            entries[name] = rows[name]
        entries["batch"] = len(self._batches)
        self._batches.append(_Batch(parsed, part, start))
        self._entries.append(entries)
        self._index = None

    def _sorted(self) -> Array:
        """Return the rows by their digest; of several with one digest the first that was kept.

        Rows in the very form that is wanted come before those that have more.
        """
        if self._index is None:
            entries = np.concatenate(self._entries) if self._entries else np.zeros(0, _ENTRY)
            order = np.lexsort(list(self._ranks(entries)))
            entries = entries[order]
            first = np.ones(len(entries), dtype=bool)
            first[1:] = (entries["ids"][1:] != entries["ids"][:-1]).any(1)
            self._index = entries[first]
            self._entries = [self._index]
        return self._index

    def _ranks(self, entries: Array) -> Iterator[Any]:
        """Yield the keys to sort by, the least first; what they leave equal stays in its order."""
        exact = [
            b.origin.form == self.form.for_vocabulary(b.origin.vocabulary) for b in self._batches
        ]
        yield ~np.array(exact, dtype=bool)[entries["batch"]]
        yield entries["ids"][:, 1]
        yield entries["ids"][:, 0]


@lru_cache(64)
def _origin(text: bytes) -> "Origin | None":
    from cohobate.teachers.signal_store.store import Origin

    try:
        return Origin.model_validate_json(text)
    except ValueError:  # of another version
        return None
