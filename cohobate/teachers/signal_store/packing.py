"""Packing of a teacher's distributions into bytes, many tokens at a time.

The ids kept of one token are a set. Sorted, their low bits are stored as they are and their high
bits in unary: a bitmap of Y bits in which the i-th id with high part h sets bit h + i (Elias 1974,
Fano 1971). For 128 of 49,152 ids that is 10.5 bits an id, near the 10.0 of the information in the
set. The length is the same for every token, so that a token is found by its number.

The log-probabilities of a token are stored as distances below the highest, one byte each on a scale
of squares: steps are finest where the probability is, so that what is lost is lost where it counts
least.

Ids drawn from p, U of them a token, are such a set too, with a bit a draw that says where the next
id begins.
"""

from dataclasses import dataclass
from functools import cache
from math import ceil
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
SMALLEST = -30.0
"""Log-probabilities are stored no lower than this: e⁻³⁰ is about 1e-13."""
_LEVELS = 255
_SQUARES = ((np.arange(_LEVELS + 1) / _LEVELS) ** 2).astype(np.float32)


@dataclass(frozen=True)
class IdSets:
    """Sets of K ids out of a vocabulary, each in the same number of bytes."""

    vocabulary: int
    k: int
    more_bits: int
    """Low bits of an id that are stored as they are, beyond the first eight."""

    @classmethod
    @cache
    def of(cls, vocabulary: int, k: int) -> "IdSets":
        """Return the split into low and high bits that takes the fewest bytes."""
        # each low bit more halves the range of the high parts, and costs K bits
        splits = [cls(vocabulary, k, bits) for bits in range(max(vocabulary.bit_length() - 7, 1))]
        return min(splits, key=lambda split: (split.size, split.more_bits))

    @property
    def size(self) -> int:
        """Bytes of one set."""
        return self.k + ceil(self.k * self.more_bits / 8) + ceil(self._bitmap / 8)

    @property
    def _bitmap(self) -> int:
        # the highest bit that can be set is that of id V − 1 as the last of K
        return ((self.vocabulary - 1) >> (8 + self.more_bits)) + self.k

    def pack(self, ids_NK: Array) -> Array:
        """Pack ids that rise from left to right, (N, size)."""
        low_NK = (ids_NK & 255).astype(np.uint8)
        # one plane of K bits for each low bit beyond the eighth: numpy packs bits along rows only
        more = [(ids_NK >> (8 + bit)) & 1 for bit in range(self.more_bits)]
        planes = np.packbits(np.concatenate([ids_NK[:, :0], *more], 1).astype(bool), axis=1)
        bitmap_NY = np.zeros((len(ids_NK), self._bitmap), dtype=bool)
        # ids rise, so high part + i is another bit for each of them
        high_NK = (ids_NK >> (8 + self.more_bits)) + np.arange(self.k)
        np.put_along_axis(bitmap_NY, high_NK, True, axis=1)
        return np.concatenate([low_NK, planes, np.packbits(bitmap_NY, axis=1)], 1)

    def unpack(self, packed: Array) -> Array:
        """Return the ids, (N, K), rising from left to right."""
        count, planes = len(packed), self.k + ceil(self.k * self.more_bits / 8)
        bits_NY = np.unpackbits(packed[:, planes:], axis=1, count=self._bitmap).view(bool)
        # every token has exactly K bits set: one pass over all tokens finds them
        at_NK = np.flatnonzero(bits_NY).reshape(count, self.k)
        starts_N1 = np.arange(count)[:, None] * self._bitmap
        # bit h + i of a token is at start + h + i: what is left is the high part h
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
    # 16 bits are enough for both: 3 digits of a number up to 30
    top_N = logp_NK.max(1).astype("<f2")
    gap_NK = logp_NK.max(1, keepdims=True) - logp_NK
    widest_N = gap_NK.max(1).astype("<f2")
    # the gap that is read back, not the exact one, and never 0
    scale_N1 = np.maximum(widest_N.astype(np.float32), np.float32(1e-6))[:, None]
    # the inverse of (code / 255)², so that codes are finest at small gaps
    codes_NK = np.rint(_LEVELS * np.sqrt(np.minimum(gap_NK / scale_N1, 1)))
    return top_N, widest_N, codes_NK.astype(np.uint8)


def unpack_gaps(top_N: Array, widest_N: Array, codes_NK: Array) -> Array:
    """Return the log-probabilities, (N, K) float32."""
    gap_NK = _SQUARES[codes_NK]
    gap_NK *= widest_N.astype(np.float32)[:, None]
    return np.subtract(top_N.astype(np.float32)[:, None], gap_NK, out=gap_NK)


@dataclass(frozen=True)
class Draws:
    """U ids drawn with repetition: the set of distinct ids, and a bit a draw that begins one.

    Tokens of the same number of distinct ids take the same number of bytes; they are packed and
    unpacked together.
    """

    vocabulary: int
    draws: int

    def sizes(self, distinct_N: Array) -> Array:
        """Return how many bytes each token takes, from its number of distinct ids, (N,)."""
        marks = ceil(self.draws / 8)
        counts, inverse_N = np.unique(distinct_N, return_inverse=True)
        # one distinct id needs no marks: all draws are of it
        sizes = [IdSets.of(self.vocabulary, int(n)).size + marks * (n > 1) for n in counts]
        return np.array(sizes, dtype=np.int64)[inverse_N]

    def pack(self, ids_NU: Array) -> tuple[Array, Array]:
        """Return the number of distinct ids of each token (N,), and the bytes of all tokens.

        Args:
            ids_NU: the drawn ids, rising from left to right.
        """
        new_NU = np.ones(ids_NU.shape, dtype=bool)
        new_NU[:, 1:] = ids_NU[:, 1:] != ids_NU[:, :-1]
        distinct_N = new_NU.sum(1)
        sizes_N = self.sizes(distinct_N)
        # where the bytes of each token begin
        starts_N = np.cumsum(sizes_N) - sizes_N
        packed = np.zeros(int(sizes_N.sum()), dtype=np.uint8)
        for n in np.unique(distinct_N):
            (rows,) = np.nonzero(distinct_N == n)
            parts = [
                IdSets.of(self.vocabulary, int(n)).pack(ids_NU[rows][new_NU[rows]].reshape(-1, n))
            ]
            if n > 1:
                parts.append(np.packbits(new_NU[rows], axis=1))
            own = np.concatenate(parts, 1)
            # tokens of one size are packed together, and written to their places among the others
            packed[starts_N[rows][:, None] + np.arange(own.shape[1])] = own
        return distinct_N, packed

    def unpack(self, distinct_N: Array, packed: Array) -> tuple[Array, Array]:
        """Return ids and counts, (N, K) for at most K distinct ids; 0 times id 0 fills up rows."""
        sizes_N = self.sizes(distinct_N)
        starts_N = np.cumsum(sizes_N) - sizes_N
        ids_NK = np.zeros((len(distinct_N), int(distinct_N.max(initial=1))), dtype=np.int64)
        counts_NK = np.zeros(ids_NK.shape, dtype=np.float32)
        for n in map(int, np.unique(distinct_N)):
            (rows,) = np.nonzero(distinct_N == n)
            sets = IdSets.of(self.vocabulary, n)
            # likewise read together
            own = packed[starts_N[rows][:, None] + np.arange(sizes_N[rows[0]])]
            ids_NK[rows, :n] = sets.unpack(own[:, : sets.size])
            counts_NK[rows, :n] = self._counts(own[:, sets.size :], n) if n > 1 else self.draws
        return ids_NK, counts_NK

    def _counts(self, marks: Array, n: int) -> Array:
        new_NU = np.unpackbits(marks, axis=1, count=self.draws).view(bool)
        # a count is the distance from the first draw of an id to that of the next one
        firsts = np.flatnonzero(new_NU).reshape(-1, n) % self.draws
        return np.diff(firsts, append=self.draws, axis=1)
