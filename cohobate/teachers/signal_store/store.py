"""The signal store: a teacher's distributions over the next token, on disk.

It has one record for every completion token of every row, in one of three forms
(cohobate/teachers/signal_store/forms.py). A store is a folder of a few large files, read through
memory maps, by row in any order:

    tokens-00000.bin   a record of fixed size a token, in the order of writing; one file a shard
    draws-00000.bin    the drawn ids with their counts, token after token (form `sampled`)
    index.npy          a record a row, sorted by `key`: key, hash of its token ids, shard, number
                       of tokens, its first token and its first byte of draws in the shard
    vocabulary.json    the teacher's tokens in the order of their ids
    head.safetensors   the teacher's LM head (form `hidden`)
    signals.json       what it was captured with (`Origin`), and the sizes
    manifest.json      size and sha256 of each file

Rows whose token ids differ, another tokenizer and another chat template are refused by name. A
student whose vocabulary is a part of the teacher's gets the signals in its own ids (`attach`).
docs/signal-store.md describes the bytes.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from cohobate.data.examples import Example
from cohobate.errors import UserError
from cohobate.models import checkpoints
from cohobate.models.number_formats import NumberFormat
from cohobate.models.vocabularies import ids_within, inverse_ids, template_hash, vocabulary_hash
from cohobate.sealed_folder import verify
from cohobate.teachers.signal_store.form import LossTerm, Packed, Signals
from cohobate.teachers.signal_store.forms import Form

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from cohobate.losses.soft_targets import SoftTargets
    from cohobate.models.lm_head import Head

FORMAT = 3
ABOUT, INDEX, VOCABULARY, HEAD = (
    "signals.json",
    "index.npy",
    "vocabulary.json",
    "head.safetensors",
)
ROW = np.dtype(
    [
        ("key", "<u8"),
        ("ids", "<u8"),
        ("shard", "<u4"),
        ("length", "<u4"),
        ("token", "<i8"),
        ("draw", "<i8"),
    ]
)
"""A row of the index. These names are on disk, in the header of index.npy."""


class Origin(BaseModel):
    """What a store was captured with, and its sizes: the content of signals.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    format: int = FORMAT
    teacher: str
    """Fingerprint of the teacher's checkpoint."""
    tokenizer: str
    """`vocabulary_hash` of the tokenizer."""
    template: str
    """`template_hash` of the tokenizer."""
    vocabulary: int
    width: int
    form: Form
    number_format: NumberFormat | Literal["served"]
    """Number format in which the teacher ran; `served`: a service's, which it does not say."""
    logit_scale: float = 1.0
    logit_softcap: float | None = None
    shards: int = 0
    rows: int = 0
    tokens: int = 0

    @classmethod
    def of(
        cls,
        teacher: Path,
        tokenizer: "PreTrainedTokenizerBase",
        head: "Head",
        form: Form,
        number_format: NumberFormat,
    ) -> "Origin":
        """Return the origin of signals that a checkpoint in `teacher` computes with its head."""
        return cls(
            teacher=checkpoints.fingerprint(teacher),
            tokenizer=vocabulary_hash(tokenizer),
            template=template_hash(tokenizer),
            vocabulary=len(head.weight_VD),
            width=head.weight_VD.shape[1],
            form=form.for_vocabulary(len(head.weight_VD)),
            number_format=number_format,
            logit_scale=head.scale,
            logit_softcap=head.softcap,
        )

    def serves(self, other: "Origin") -> bool:
        """Say whether these signals can stand for those of a capture with another origin."""
        same = ("format", "teacher", "tokenizer", "vocabulary", "number_format")
        equal = all(getattr(self, name) == getattr(other, name) for name in same)
        return equal and self.form.serves(other.form)

    @property
    def record(self) -> np.dtype[Any]:
        """Dtype of one token's record on disk."""
        return self.form.record(self.vocabulary, self.width)


def row_hash(key: str) -> int:
    """Return the key of a row in the index."""
    return _hash64(key.encode())


def ids_hash(ids: Sequence[int], spans: Sequence[tuple[int, int]], teacher_prompt: int = 0) -> int:
    """Return the hash of the token ids that a signal was computed on, and of the learnt spans.

    Args:
        ids: as the student reads them, in the teacher's numbers.
        spans: where the learnt tokens are.
        teacher_prompt: `Example.teacher_prompt`, where the teacher read another prompt.
    """
    # an answer alone counts as its start: the form of stores from before there were several spans
    learnt = [spans[-1][0]] if len(spans) == 1 else [n for span in spans for n in span]
    data = np.array([*learnt, *ids], dtype="<i4").tobytes()
    return _hash64(data + (teacher_prompt.to_bytes(8, "little") if teacher_prompt else b""))


class SignalStore:
    """A signal store, opened for reading; signals stay on disk until `read`.

    Example:
        store = SignalStore(Path("data/capture/main"))
        examples = store.attach(examples, tokenizer)
        signals = store.read([example.signal for example in examples])
        targets = store.targets(signals)   # for cohobate.losses.Targets

    Args:
        folder: such as data/capture/main.

    Raises:
        UserError: there is no store, a file is damaged, or its format is another one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not (folder / ABOUT).exists():
            raise UserError("there is no signal store", where=str(folder), fix="dvc repro capture")
        verify(folder)
        about = json.loads((folder / ABOUT).read_text())
        if about["form"]["type"] == "labels":
            raise UserError(
                "the store has distributions over labels, and those over tokens are needed",
                where=str(folder),
                fix="cohobate run --set 'capture.signals={type: top_k, k: 32}'",
            )
        if about["format"] != FORMAT:
            message = f"the store has format {about['format']}, format {FORMAT} is needed"
            raise UserError(message, where=str(folder), fix="dvc repro capture")
        self.origin = origin = Origin.model_validate(about)
        self._index = np.load(folder / INDEX, mmap_mode="r")
        shards = range(origin.shards)
        self._tokens = [self._map(f"tokens-{n:05}.bin", origin.record) for n in shards]
        self._draws = [self._map(f"draws-{n:05}.bin", np.dtype("u1")) for n in shards]
        self._teacher_ids: np.ndarray[Any, Any] | None = None

    def _map(self, name: str, record: np.dtype[Any]) -> Any:
        path = self.folder / name
        if not path.exists() or not path.stat().st_size:
            return np.empty(0, record)
        length = path.stat().st_size // record.itemsize
        return np.memmap(path, dtype=record, mode="r", shape=(length,))

    def attach(
        self, examples: Sequence[Example], tokenizer: "PreTrainedTokenizerBase"
    ) -> list[Example]:
        """Return the examples, each with its row of the index as `signal`, to `read`.

        Args:
            examples: rows as the student reads them.
            tokenizer: the student's: the teacher's, or one that has a part of its tokens.

        Raises:
            UserError: another tokenizer or chat template; or rows that were not captured, or were
                captured with other token ids.
        """
        self._teacher_ids = self._ids_of(tokenizer)
        row_keys = np.array([row_hash(row.key) for row in examples], dtype="<u8")
        keys = np.ascontiguousarray(self._index["key"])  # a strided column is slow to search
        # clipped: a key above all others points behind the index, and is absent
        at = np.searchsorted(keys, row_keys).clip(0, max(len(keys) - 1, 0))
        absent = keys[at] != row_keys if len(keys) else np.ones(len(row_keys), dtype=bool)
        if absent.any():
            raise self._mismatch(f"no signals of {_row_names(examples, absent)}")
        hashes = np.array([self._hash_of(row) for row in examples], dtype="<u8")
        altered = self._index["ids"][at] != hashes
        if altered.any():
            names = _row_names(examples, altered)
            raise self._mismatch(
                f"the token ids have changed since the capture: {names}; rows that are cut need "
                "the same max_tokens and too_long in the phase and in the section capture"
            )
        return [replace(row, signal=n) for row, n in zip(examples, at.tolist(), strict=True)]

    def find(self, examples: Sequence[Example]) -> "np.ndarray[Any, Any]":
        """Return the row of the index of each example in the teacher's ids; −1 where there is none.

        A row counts where its key and its token ids are the same.
        """
        if not len(self._index):
            return np.full(len(examples), -1)
        row_keys = np.array([row_hash(row.key) for row in examples], dtype="<u8")
        own = [ids_hash(row.ids.tolist(), row.spans, row.teacher_prompt) for row in examples]
        hashes = np.array(own, dtype="<u8")
        keys = np.ascontiguousarray(self._index["key"])
        at = np.searchsorted(keys, row_keys).clip(0, len(keys) - 1)
        same = (keys[at] == row_keys) & (self._index["ids"][at] == hashes)
        return np.where(same, at, -1)

    def _ids_of(self, tokenizer: "PreTrainedTokenizerBase") -> "np.ndarray[Any, Any] | None":
        if template_hash(tokenizer) != self.origin.template:
            raise self._mismatch("the signals were captured with another chat template")
        if vocabulary_hash(tokenizer) == self.origin.tokenizer:
            return None
        tokens = json.loads((self.folder / VOCABULARY).read_text())
        whole = {token: n for n, token in enumerate(tokens) if token is not None}
        ids = ids_within(whole, tokenizer.get_vocab())
        # as many ids in another order are another tokenizer, not a part of it
        if ids is None or len(ids) >= self.origin.vocabulary:
            raise self._mismatch("the signals were captured with another tokenizer")
        return ids

    def _hash_of(self, row: Example) -> int:
        ids = row.ids if self._teacher_ids is None else self._teacher_ids[row.ids]
        return ids_hash(ids.tolist(), row.spans, row.teacher_prompt)

    def check_terms(self, terms: Sequence[LossTerm]) -> None:
        """Check that every term of a loss can be computed from signals of this form.

        Raises:
            UserError: a term cannot; names it.
        """
        self.origin.form.check(terms)

    def read(self, rows: Sequence[int]) -> Signals:
        """Return the signals of rows of the index (`Example.signal`), row after row, on the CPU."""
        form, size = self.origin.form, self.origin.vocabulary
        signals = form.unpack(self.read_packed(rows), size)
        if self._teacher_ids is None:
            return signals
        return form.restrict(signals, self._student_ids, len(self._teacher_ids))

    def read_packed(self, rows: Sequence[int]) -> Packed:
        """Return the bytes of rows of the index, row after row."""
        records = self._index[list(rows)]
        # the slice of each row in the memory map of its shard
        spans = zip(*(records[name].tolist() for name in ("shard", "token", "length")), strict=True)
        rows_tokens = [self._tokens[shard][start : start + n] for shard, start, n in spans]
        tokens = np.concatenate(rows_tokens)
        # how long a row's draws are is known from its tokens' records alone
        offsets = np.cumsum([0, *self.origin.form.draw_sizes(tokens, self.origin.vocabulary)])
        # draws are counted by token: the end of a row is the offset behind its last one
        ends = np.cumsum([len(row) for row in rows_tokens])
        lengths = np.diff(offsets[ends], prepend=0)
        draws = [
            self._draws[record["shard"]][record["draw"] : record["draw"] + length]
            for record, length in zip(records, lengths.tolist(), strict=True)
        ]
        return Packed(tokens, np.concatenate(draws))

    def targets(self, signals: Signals) -> "SoftTargets":
        """Return the soft targets of a loss from what `read` returned, on the device of that."""
        head = None
        if self.origin.form.needs_head:
            head = self._head_on(str(next(iter(signals.values())).device))
        return self.origin.form.targets(signals, head)

    @cached_property
    def _student_ids(self) -> Any:
        import torch

        assert self._teacher_ids is not None
        return torch.from_numpy(inverse_ids(self._teacher_ids, self.origin.vocabulary))

    def _head_on(self, device: str) -> "Head":
        """Return the teacher's head over the ids that the student has.

        The distribution is then the teacher's, conditional on these ids.
        """
        if device not in self._heads:
            from safetensors.torch import load_file

            from cohobate.models.lm_head import Head

            parts = load_file(self.folder / HEAD, device=device)
            if self._teacher_ids is not None:
                parts = {name: part[self._teacher_ids] for name, part in parts.items()}
            scale, cap = self.origin.logit_scale, self.origin.logit_softcap
            self._heads[device] = Head(parts["weight"], parts.get("bias"), scale, cap)
        return self._heads[device]

    @cached_property
    def _heads(self) -> "dict[str, Head]":
        return {}

    def _mismatch(self, message: str) -> UserError:
        fix = "capture again over these rows with this teacher: dvc repro capture"
        return UserError(message, where=str(self.folder), fix=fix)


def _row_names(examples: Sequence[Example], mask: np.ndarray[Any, Any]) -> str:
    keys = [row.key for row, in_mask in zip(examples, mask, strict=True) if in_mask]
    more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
    return f"row {', '.join(keys[:3])}{more}"


def _hash64(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")
