"""Which rows may be near-duplicates: MinHash sketches, cut into bands.

MinHash: Broder, "On the resemblance and containment of documents", 1997. Banding: Leskovec,
Rajaraman, Ullman, "Mining of Massive Datasets", section 3.4. Words are hashed once and all else is
arithmetic on whole chunks of rows: not even the pairs of words are ever strings. A sketch is thrown
away once its bands are hashed, and the hashes wait on disk: one band of all rows is in memory.
"""

from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator, Set
from itertools import islice
from math import ceil, log, log1p
from tempfile import TemporaryFile
from typing import IO, TYPE_CHECKING
from zlib import crc32

if TYPE_CHECKING:
    import numpy as np

_SEED = 42
_CHUNK = 4096
_RECALL = 0.99
"""Probability with which a pair that is just similar enough shares a band."""
_HASH_BYTES = 4  # unrelated rows share a 32-bit hash now and then: such pairs are compared too


def bands(similarity: float, permutations: int) -> tuple[int, int]:
    """Return number and width of the bands: the widest that find a similar enough pair surely.

    A pair of Jaccard similarity s shares one of B bands of R permutations with the probability
    1 - (1 - s^R)^B. No more bands are made than that takes.
    """
    width = number = 1
    for wider in range(1, permutations + 1):
        # the fewest bands that miss such a pair with probability (1 − s^R)^B ≤ 1 − _RECALL
        needed = ceil(log(1 - _RECALL) / log1p(-(similarity**wider)))
        if needed * wider <= permutations:
            number, width = needed, wider
    return number, width


def shared_bands(
    texts: Iterable[list[str]], ignored: Set[str], similarity: float, permutations: int
) -> "tuple[dict[int, array[int]], int]":
    """Return, for each row that shares a band with another one, the groups that it is in.

    A group is of the rows that share one band; groups are numbered, and their count is returned.

    Args:
        texts: the words of each row; the pairs of neighbours are what rows have in common, as
            `cohobate.data.contamination.bigrams_of` has them.
        ignored: pairs, with a space between their words, that count for nothing.
        similarity: Jaccard similarity from which two rows are to be found.
        permutations: most permutations of a sketch.
    """
    import numpy as np

    number, width = bands(similarity, permutations)
    shared: defaultdict[int, array[int]] = defaultdict(lambda: array("I"))
    groups = 0
    ignored_pairs = _hashed([word for pair in sorted(ignored) for word in pair.split(" ")]).reshape(
        -1, 2
    )
    # hashed as pairs of rows are
    ignored_pairs = _mixed(ignored_pairs[:, 0], ignored_pairs[:, 1])
    with TemporaryFile() as spool:
        first = 0
        for chunk in _chunks(texts):
            pairs, starts = _own_pairs(chunk, ignored_pairs, first)
            spool.write(_band_hashes(pairs, starts, number, width).tobytes())
            first += len(chunk)
        for band in range(number):
            hashes = _column(spool, band, number)
            order = np.argsort(hashes)
            # places in sorted order whose hash is that of the next one
            same = np.flatnonzero(np.diff(hashes[order]) == 0)
            # both of each such pair: all rows that share a band
            rows = order[np.union1d(same, same + 1)]
            # a group begins where the hash changes; bands number theirs one after the other
            numbers = np.cumsum(np.diff(hashes[rows], prepend=hashes[rows[:1]]) != 0) + groups
            for row, group in zip(rows.tolist(), numbers.tolist(), strict=True):
                shared[row].append(group)
            groups = int(numbers[-1]) + 1 if len(numbers) else groups
    return shared, groups


def _own_pairs(
    texts: list[list[str]], ignored_pairs: "np.ndarray", first: int
) -> "tuple[np.ndarray, np.ndarray]":
    """Return 32-bit hashes of the rows' pairs of words, and where those of each row begin.

    A row without pairs of its own gets one that no other has, for which `first` numbers the rows.
    """
    import numpy as np

    words = [""]  # an edge before the first word, behind the last one, and so between two rows
    for text in texts:
        words += text
        words.append("")
    hashes = _hashed(words)
    pairs = _mixed(hashes[:-1], hashes[1:])
    # n words between two edges make n + 1 pairs
    counts = np.fromiter(map(len, texts), np.int64, len(texts)) + 1
    starts = np.cumsum(counts) - counts
    own = np.isin(pairs, ignored_pairs, invert=True)
    own[starts[counts == 1]] = False  # a row without words: two edges
    # rows that have no pair left; reduceat needs one in each row
    alone = np.flatnonzero(~np.logical_or.reduceat(own, starts))
    own[starts[alone]] = True
    numbers = (alone + first).astype(np.uint64)
    pairs[starts[alone]] = _mixed(numbers, ~numbers)
    # how many pairs are left before each row
    return pairs[own], np.cumsum(own)[starts] - own[starts]


def _hashed(words: list[str]) -> "np.ndarray":
    import numpy as np

    return np.fromiter(map(crc32, map(str.encode, words)), np.uint64, len(words))


def _mixed(first: "np.ndarray", second: "np.ndarray") -> "np.ndarray":
    """Return a 32-bit hash of each two numbers: multiply and xor-shift."""
    import numpy as np

    mixed: np.ndarray = first * np.uint64(0x9E3779B97F4A7C15) + second
    mixed ^= mixed >> np.uint64(29)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed >>= np.uint64(32)
    return mixed.astype(np.uint32)


def _band_hashes(
    pairs: "np.ndarray", starts: "np.ndarray", number: int, width: int
) -> "np.ndarray":
    """Return a 32-bit hash of each band of each row: an array of rows by bands."""
    import numpy as np

    rng = np.random.default_rng(_SEED)
    hashes = np.empty((len(starts), number), dtype=np.uint32)
    for band in range(number):
        mixed = np.zeros(len(starts), dtype=np.uint64)
        for factor, shift in rng.integers(1 << 32, size=(width, 2), dtype=np.uint32):
            # modulo 2³² an odd factor permutes all numbers; a row's smallest is its MinHash
            smallest = np.minimum.reduceat(pairs * (factor | np.uint32(1)) + shift, starts)
            # one hash of all R smallest: equal where all of them are
            mixed = _mixed(mixed, smallest.astype(np.uint64)).astype(np.uint64)
        hashes[:, band] = mixed
    return hashes


def _column(spool: IO[bytes], band: int, number: int) -> "np.ndarray":
    """Read the hashes of one band of all rows back."""
    import numpy as np

    spool.seek(0)
    hashes = array("I")
    while block := spool.read(_CHUNK * number * _HASH_BYTES):
        # rows of `number` hashes each: every `number`-th one is of this band
        hashes.frombytes(np.frombuffer(block, np.uint32)[band::number].tobytes())
    return np.asarray(hashes)


def _chunks(texts: Iterable[list[str]]) -> Iterator[list[list[str]]]:
    rest = iter(texts)
    while chunk := list(islice(rest, _CHUNK)):
        yield chunk
