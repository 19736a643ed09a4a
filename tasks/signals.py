"""The signal store: a teacher's distributions over the next token, on disk.

For every completion token of every row, the store has the ids of the K most likely next tokens,
their log-probabilities, and for each temperature what is left for all other ids. It is a folder of
a few flat files, read through memory maps, token after token in the order of writing:

    ids.bin         (tokens, K)  uint16, or int32 for a vocabulary above 65,536
    logprobs.bin    (tokens, K)  float16, log p at T = 1, falling
    leftover.bin    (tokens, temperatures)  float16, log Σ p^(1/T) over the other ids
    index.npy       one record a row, sorted by `key`: key, hash of its token ids, first token,
                    number of tokens
    signals.json    what it was made with (`Origin`), and the shapes
    manifest.json   size and sha256 of each file

It is bound to what it was made with: a row whose token ids differ, another tokenizer or another
teacher are refused by name.

Shapes: N tokens, K stored ids, T temperatures.
"""

# ruff: noqa: N815 (fields that are tensors carry shape suffixes too)

import hashlib
import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict

from tasks.batches import Example
from tasks.checkpoints import verify
from tasks.errors import UserError
from tasks.records import write_json
from tasks.targets import TopK

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FORMAT = 1
ABOUT = "signals.json"
INDEX = np.dtype([("key", "<u8"), ("tokens", "<u8"), ("start", "<i8"), ("length", "<i4")])
SMALLEST = -30.0
"""Log-probabilities are stored no lower than this: e⁻³⁰ is a probability of nothing."""


class Origin(BaseModel):
    """What a store was made with, and its shapes."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    format: int = FORMAT
    teacher: str
    """Fingerprint of the teacher's checkpoint."""
    tokenizer: str
    """`vocabulary_hash` of the tokenizer."""
    vocabulary: int
    top_k: int
    temperatures: tuple[float, ...]
    tokens: int = 0
    rows: int = 0

    @property
    def id_type(self) -> str:
        """Number format of the ids."""
        return "<u2" if self.vocabulary <= 1 << 16 else "<i4"


class Shard(NamedTuple):
    """Signals of some rows' completion tokens, one row after the other."""

    ids_NK: torch.Tensor
    logp_NK: torch.Tensor
    leftover_NT: torch.Tensor


def tokens_hash(example: Example) -> int:
    """Return the hash that binds a signal to the token ids it was computed on."""
    return _hash64(np.array([example.prompt_length, *example.ids], dtype="<i4").tobytes())


def vocabulary_hash(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Return what is equal for two tokenizers only when they give each id the same string."""
    vocabulary = json.dumps(sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]))
    return hashlib.blake2b(vocabulary.encode(), digest_size=16).hexdigest()


class SignalWriter:
    """Writes a store into a folder that `checkpoints.staged` publishes."""

    def __init__(self, folder: Path, origin: Origin) -> None:
        self.folder, self.origin = folder, origin
        self._records: list[tuple[int, int, int, int]] = []
        self._tokens = 0
        self._open = ExitStack()
        self._files = [
            self._open.enter_context((folder / f"{name}.bin").open("wb"))
            for name in ("ids", "logprobs", "leftover")
        ]

    def __enter__(self) -> "SignalWriter":
        return self

    def add(self, examples: Sequence[Example], shard: Shard) -> None:
        """Append rows and the signals of all their completions, one row after the other."""
        if not shard.logp_NK.isfinite().all():
            finite_N = shard.logp_NK.isfinite().all(-1).tolist()
            owners = [row.key for row in examples for _ in range(row.length)]
            bad = [key for key, good in zip(owners, finite_N, strict=True) if not good]
            raise UserError("the teacher's logits are not finite", where=f"row {bad[0]}")
        for row in examples:
            record = (_hash64(row.key.encode()), tokens_hash(row), self._tokens, row.length)
            self._records.append(record)
            self._tokens += row.length
        logp_NK, leftover_NT = (x.clamp_min(SMALLEST).numpy() for x in shard[1:])
        ids_NK = shard.ids_NK.numpy().astype(self.origin.id_type)
        arrays = (ids_NK, logp_NK.astype("<f2"), leftover_NT.astype("<f2"))
        for file, array in zip(self._files, arrays, strict=True):
            file.write(np.ascontiguousarray(array).data)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._open.close()
        if kind is not None:
            return
        index = np.array(self._records, dtype=INDEX)
        index.sort(order="key")
        if (index["key"][1:] == index["key"][:-1]).any():
            raise UserError("the same row was captured twice", where=str(self.folder))
        np.save(self.folder / "index.npy", index)
        done = {"tokens": self._tokens, "rows": len(index)}
        write_json(self.folder / ABOUT, self.origin.model_copy(update=done).model_dump())


class SignalStore:
    """A store that was written, verified and opened for reading; nothing is held in memory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not (folder / ABOUT).exists():
            raise UserError("no teacher signals here", where=str(folder), mend="dvc repro capture")
        verify(folder)
        about = json.loads((folder / ABOUT).read_text())
        if about["format"] != FORMAT:
            raise UserError(f"signals of format {about['format']}, not {FORMAT}", where=str(folder))
        self.origin = origin = Origin.model_validate(about)
        self._ids = self._map("ids", origin.id_type, origin.top_k)
        self._logp = self._map("logprobs", "<f2", origin.top_k)
        self._leftover = self._map("leftover", "<f2", len(origin.temperatures))
        self._index = np.load(folder / "index.npy", mmap_mode="r")

    def _map(self, name: str, kind: str, width: int) -> Any:
        shape = (self.origin.tokens, width)
        if not self.origin.tokens:
            return np.empty(shape, kind)
        return np.memmap(self.folder / f"{name}.bin", dtype=kind, mode="r", shape=shape)

    def attach(
        self, examples: Sequence[Example], tokenizer: "PreTrainedTokenizerBase"
    ) -> list[Example]:
        """Return the examples, each knowing where its signals are.

        Args:
            examples: rows as the student reads them.
            tokenizer: the student's.

        Raises:
            UserError: another tokenizer; or rows that are not there, or have other token ids.
        """
        if vocabulary_hash(tokenizer) != self.origin.tokenizer:
            raise self._mismatch("the signals were captured with another tokenizer than this one")
        wanted = np.array([_hash64(row.key.encode()) for row in examples], dtype="<u8")
        keys = np.ascontiguousarray(self._index["key"])
        found = np.searchsorted(keys, wanted).clip(0, max(len(keys) - 1, 0))
        absent = keys[found] != wanted if len(keys) else np.ones(len(wanted), dtype=bool)
        if absent.any():
            raise self._mismatch(f"no signals of {_named(examples, absent)}")
        hashes = np.array([tokens_hash(row) for row in examples], dtype="<u8")
        altered = self._index["tokens"][found] != hashes
        if altered.any():
            raise self._mismatch(f"the token ids are others now, of {_named(examples, altered)}")
        starts = self._index["start"][found].tolist()
        return [replace(row, signal=s) for row, s in zip(examples, starts, strict=True)]

    def expect_teacher(self, fingerprint: str) -> None:
        """Refuse a store that another teacher made."""
        if self.origin.teacher != fingerprint:
            raise self._mismatch(
                f"the signals are of teacher {self.origin.teacher[:12]}, not {fingerprint[:12]}"
            )

    def read(self, starts: Sequence[int], lengths: Sequence[int]) -> TopK:
        """Return the signals of rows, one after the other, from their first tokens and lengths."""
        spans = [np.arange(s, s + n) for s, n in zip(starts, lengths, strict=True)]
        at_N = np.concatenate(spans)
        return TopK(
            torch.from_numpy(self._ids[at_N].astype(np.int64)),
            torch.from_numpy(self._logp[at_N].astype(np.float32)),
            torch.from_numpy(self._leftover[at_N].astype(np.float32)),
            self.origin.temperatures,
        )

    def _mismatch(self, what: str) -> UserError:
        mend = "capture again over these rows with this teacher: dvc repro capture"
        return UserError(what, where=str(self.folder), mend=mend)


def _named(examples: Sequence[Example], chosen: np.ndarray) -> str:
    keys = [row.key for row, is_it in zip(examples, chosen, strict=True) if is_it]
    more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
    return f"row {', '.join(keys[:3])}{more}"


def _hash64(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")
