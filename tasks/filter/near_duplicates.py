"""Which rows may be near-duplicates: MinHash sketches, cut into bands.

MinHash: Broder, "On the resemblance and containment of documents", 1997. Banding: Leskovec,
Rajaraman, Ullman, "Mining of Massive Datasets", section 3.4. A sketch is thrown away once its bands
are hashed: eight bytes a band and row stay in memory.

Shapes: N rows, P permutations, B bands, R permutations a band.
"""

from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import islice

_SEED = 42
_CHUNK = 1024
_FOUND = 0.99
"""Probability with which a pair that is just similar enough shares a band."""


def bands(similarity: float, permutations: int) -> tuple[int, int]:
    """Return number and width of the bands: the widest that find a similar enough pair surely.

    A pair of Jaccard similarity s shares one of B bands of R permutations with the probability
    1 - (1 - s^R)^B.
    """
    width = 1
    for wider in range(1, permutations + 1):
        if 1 - (1 - similarity**wider) ** (permutations // wider) >= _FOUND:
            width = wider
    return permutations // width, width


def shared_bands(
    token_sets: Iterable[list[str]], similarity: float, permutations: int
) -> dict[int, list[int]]:
    """Return, for each row that shares a band with another one, the hashes of the bands shared."""
    import numpy as np

    number, width = bands(similarity, permutations)
    hashes = array("Q")
    for chunk in _chunks(token_sets):
        hashes.frombytes(_band_hashes(chunk, number, width))
    hashes_NB = np.asarray(hashes).reshape(-1, number)
    shared: defaultdict[int, list[int]] = defaultdict(list)
    for band in range(number):
        order_N = np.argsort(hashes_NB[:, band], kind="stable")
        same = np.flatnonzero(np.diff(hashes_NB[order_N, band]) == 0)
        for row in order_N[np.union1d(same, same + 1)].tolist():
            shared[row].append(int(hashes_NB[row, band]))
    return shared


def _band_hashes(token_sets: list[list[str]], number: int, width: int) -> bytes:
    import numpy as np
    from rensa import RMinHash

    sketches = RMinHash.digest_matrix_from_token_sets(token_sets, number * width, _SEED)
    sketches_NBR = np.array(sketches.to_rows(), dtype=np.uint64).reshape(-1, number, width)
    seeds_B = np.arange(1, number + 1, dtype=np.uint64)
    mixed_NB = np.tile(seeds_B, (len(sketches_NBR), 1))
    for place in range(width):  # multiply and xor-shift: 64 well-mixed bits
        mixed_NB = (mixed_NB ^ sketches_NBR[:, :, place]) * np.uint64(0x9E3779B97F4A7C15)
        mixed_NB ^= mixed_NB >> np.uint64(29)
    return mixed_NB.tobytes()


def _chunks(token_sets: Iterable[list[str]]) -> Iterator[list[list[str]]]:
    rest = iter(token_sets)
    while chunk := list(islice(rest, _CHUNK)):
        yield chunk
