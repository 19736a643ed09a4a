"""Which rows may be near-duplicates: MinHash sketches, cut into bands.

MinHash: Broder, "On the resemblance and containment of documents", 1997. Banding: Leskovec,
Rajaraman, Ullman, "Mining of Massive Datasets", section 3.4. A sketch is thrown away once its bands
are hashed, and the hashes wait on disk: one band of all rows at a time is in memory.

Shapes: N rows, P permutations, B bands, R permutations a band.
"""

from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from math import ceil, log, log1p
from tempfile import TemporaryFile
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

_SEED = 42
_CHUNK = 4096
_FOUND = 0.99
"""Probability with which a pair that is just similar enough shares a band."""
_HASH_BYTES = 4  # two strangers share a 32-bit hash now and then: what shares one is compared


def bands(similarity: float, permutations: int) -> tuple[int, int]:
    """Return number and width of the bands: the widest that find a similar enough pair surely.

    A pair of Jaccard similarity s shares one of B bands of R permutations with the probability
    1 - (1 - s^R)^B. No more bands are made than that takes.
    """
    width = number = 1
    for wider in range(1, permutations + 1):
        needed = ceil(log(1 - _FOUND) / log1p(-(similarity**wider)))
        if needed * wider <= permutations:
            number, width = needed, wider
    return number, width


def shared_bands(
    token_sets: Iterable[list[str]], similarity: float, permutations: int
) -> dict[int, list[int]]:
    """Return, for each row that shares a band with another one, the hashes of the bands shared.

    A hash carries the number of its band, so that those of different bands never meet.
    """
    import numpy as np

    number, width = bands(similarity, permutations)
    shared: defaultdict[int, list[int]] = defaultdict(list)
    with TemporaryFile() as spool:
        for chunk in _chunks(token_sets):
            spool.write(_band_hashes(chunk, number, width).tobytes())
        for band in range(number):
            hashes_N = _column(spool, band, number)
            order_N = np.argsort(hashes_N, kind="stable")
            same = np.flatnonzero(np.diff(hashes_N[order_N]) == 0)
            for row in order_N[np.union1d(same, same + 1)].tolist():
                shared[row].append(band << 32 | int(hashes_N[row]))
    return shared


def _band_hashes(token_sets: list[list[str]], number: int, width: int) -> "np.ndarray":
    """Return a 32-bit hash of each band of each row, (N, B)."""
    import numpy as np
    from rensa import RMinHash

    sketches = RMinHash.digest_matrix_from_token_sets(token_sets, number * width, _SEED)
    values = chain.from_iterable(sketches.to_rows())
    flat = np.fromiter(values, np.uint32, len(token_sets) * number * width)
    sketches_NBR = flat.reshape(-1, number, width)
    mixed_NB = np.zeros(sketches_NBR.shape[:2], dtype=np.uint64)
    for place in range(width):  # multiply and xor-shift: 64 well-mixed bits
        mixed_NB = (mixed_NB ^ sketches_NBR[:, :, place]) * np.uint64(0x9E3779B97F4A7C15)
        mixed_NB ^= mixed_NB >> np.uint64(29)
    return mixed_NB.astype(np.uint32)


def _column(spool: IO[bytes], band: int, number: int) -> "np.ndarray":
    """Read the hashes of one band of all rows back, (N,)."""
    import numpy as np

    spool.seek(0)
    hashes = array("I")
    while block := spool.read(_CHUNK * number * _HASH_BYTES):
        hashes.frombytes(np.frombuffer(block, np.uint32)[band::number].tobytes())
    return np.asarray(hashes)


def _chunks(token_sets: Iterable[list[str]]) -> Iterator[list[list[str]]]:
    rest = iter(token_sets)
    while chunk := list(islice(rest, _CHUNK)):
        yield chunk
