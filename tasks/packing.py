"""How a teacher's distributions are packed into bytes, and unpacked many tokens at a time.

Ids of one token are a set: sorted, their low bits are stored as they are and their high bits in
unary, as a bitmap in which the i-th id with high part h sets bit h + i (Elias 1974, Fano 1971).
For 128 of 49,152 ids that is 10.5 bits an id, near the 10.0 of the information in the set, and of
the same length for every token, so that a token is found by its number.

Log-probabilities of a token are stored as distances below the highest, one byte each on a scale of
squares: steps are finest where the probability is, so that what is lost is lost where it weighs
least.

Shapes: N tokens, K stored ids, H bits of the bitmap, E drawn entries, S draws.
"""

from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
SMALLEST = -30.0
"""Log-probabilities are stored no lower than this: e⁻³⁰ is a probability of nothing."""
_LEVELS = 255
_SQUARES = ((np.arange(_LEVELS + 1) / _LEVELS) ** 2).astype(np.float32)
_WORD_BITS = 24


@dataclass(frozen=True)
class IdSets:
    """Sets of K ids out of a vocabulary, each in the same number of bytes."""

    vocabulary: int
    k: int
    more_bits: int
    """Low bits beyond the first eight."""

    @classmethod
    def of(cls, vocabulary: int, k: int) -> "IdSets":
        """Return the split into low and high bits that takes the fewest bytes."""
        splits = [cls(vocabulary, k, bits) for bits in range(max(vocabulary.bit_length() - 7, 1))]
        return min(splits, key=lambda split: (split.size, split.more_bits))

    @property
    def size(self) -> int:
        """Bytes of one set."""
        return self.k + ceil(self.k * self.more_bits / 8) + ceil(self._bitmap / 8)

    @property
    def _bitmap(self) -> int:
        return ((self.vocabulary - 1) >> (8 + self.more_bits)) + self.k

    def pack(self, ids_NK: Array) -> Array:
        """Pack ids that rise from left to right, (N, size)."""
        low_NK = (ids_NK & 255).astype(np.uint8)
        more = [(ids_NK >> (8 + bit)) & 1 for bit in range(self.more_bits)]
        planes = np.packbits(np.concatenate([ids_NK[:, :0], *more], 1).astype(bool), axis=1)
        bitmap_NH = np.zeros((len(ids_NK), self._bitmap), dtype=bool)
        high_NK = (ids_NK >> (8 + self.more_bits)) + np.arange(self.k)
        np.put_along_axis(bitmap_NH, high_NK, True, axis=1)
        return np.concatenate([low_NK, planes, np.packbits(bitmap_NH, axis=1)], 1)

    def unpack(self, packed: Array) -> Array:
        """Return the ids, (N, K), rising from left to right."""
        count, planes = len(packed), self.k + ceil(self.k * self.more_bits / 8)
        bits_NH = np.unpackbits(packed[:, planes:], axis=1, count=self._bitmap).view(bool)
        at_NK = np.flatnonzero(bits_NH).reshape(count, self.k)
        starts_N1 = np.arange(count)[:, None] * self._bitmap
        ids_NK = (at_NK - (starts_N1 + np.arange(self.k))) << (8 + self.more_bits)
        ids_NK |= packed[:, : self.k]
        if self.more_bits:
            more = np.unpackbits(packed[:, self.k : planes], axis=1, count=self.k * self.more_bits)
            for bit in range(self.more_bits):
                plane_NK = more[:, bit * self.k : (bit + 1) * self.k].astype(np.int64)
                ids_NK |= plane_NK << (8 + bit)
        return ids_NK


def pack_gaps(logp_NK: Array) -> tuple[Array, Array, Array]:
    """Return the highest log-probability (N,), the widest gap below it (N,), and codes (N, K)."""
    top_N = logp_NK.max(1).astype("<f2")
    gap_NK = logp_NK.max(1, keepdims=True) - logp_NK
    widest_N = gap_NK.max(1).astype("<f2")
    scale_N1 = np.maximum(widest_N.astype(np.float32), np.float32(1e-6))[:, None]
    codes_NK = np.rint(_LEVELS * np.sqrt(np.minimum(gap_NK / scale_N1, 1)))
    return top_N, widest_N, codes_NK.astype(np.uint8)


def unpack_gaps(top_N: Array, widest_N: Array, codes_NK: Array) -> Array:
    """Return the log-probabilities, (N, K) float32."""
    gap_NK = _SQUARES[codes_NK]
    gap_NK *= widest_N.astype(np.float32)[:, None]
    return np.subtract(top_N.astype(np.float32)[:, None], gap_NK, out=gap_NK)


def pack_draws(ids_NS: Array, vocabulary: int) -> tuple[Array, Array]:
    """Return the entries of each token (N,), and all entries as words of three bytes (E, 3).

    An entry is an id and how often it was drawn, less one, in the bits that the id leaves; an id
    that was drawn more often than these can count takes several entries.

    Args:
        ids_NS: the draws, rising from left to right.
        vocabulary: number of ids.
    """
    id_bits, most = _word(vocabulary)
    place_NS = np.broadcast_to(np.arange(ids_NS.shape[1]), ids_NS.shape)
    new_NS = np.ones(ids_NS.shape, dtype=bool)
    new_NS[:, 1:] = ids_NS[:, 1:] != ids_NS[:, :-1]
    first_NS = np.maximum.accumulate(np.where(new_NS, place_NS, 0), axis=1)
    new_NS |= (place_NS - first_NS) % most == 0
    at_E = np.flatnonzero(new_NS)
    counts_E = np.diff(at_E, append=ids_NS.size)
    words_E = (ids_NS.reshape(-1)[at_E] | ((counts_E - 1) << id_bits)).astype("<u4")
    return new_NS.sum(1), words_E.view(np.uint8).reshape(-1, 4)[:, :3]


def unpack_draws(entries_N: Array, words_E: Array, vocabulary: int) -> tuple[Array, Array]:
    """Return ids and counts, (N, K) with K entries of the richest token; 0 times id 0 fills up."""
    id_bits, _ = _word(vocabulary)
    wide_E4 = np.zeros((len(words_E), 4), dtype=np.uint8)
    wide_E4[:, :3] = words_E
    word_E = wide_E4.view("<u4")[:, 0].astype(np.int64)
    entries_N = entries_N.astype(np.int64)
    row_E = np.repeat(np.arange(len(entries_N)), entries_N)
    column_E = np.arange(len(word_E)) - np.repeat(np.cumsum(entries_N) - entries_N, entries_N)
    ids_NK = np.zeros((len(entries_N), int(entries_N.max(initial=1))), dtype=np.int64)
    counts_NK = np.zeros(ids_NK.shape, dtype=np.float32)
    ids_NK[row_E, column_E] = word_E & ((1 << id_bits) - 1)
    counts_NK[row_E, column_E] = (word_E >> id_bits) + 1
    return ids_NK, counts_NK


def _word(vocabulary: int) -> tuple[int, int]:
    """Return the bits of an id, and the highest count that the other bits can tell."""
    id_bits = (vocabulary - 1).bit_length()
    return id_bits, 1 << max(_WORD_BITS - id_bits, 0)
