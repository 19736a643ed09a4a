"""What several samples to one prompt agree on."""

import hashlib
from array import array
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from cohobate.data.records import Response

if TYPE_CHECKING:
    import numpy as np


def votes_of(
    rows: Iterable[Response], answer_of: Callable[[Response], str]
) -> dict[str, tuple[int, float]]:
    """Return, for each prompt with several samples, the hash of the commonest answer and its share.

    Of answers that are equally common the one that was drawn first wins. Sixteen bytes a row are
    held in memory.

    Args:
        rows: the samples of all prompts, in any order; auxiliary targets have no vote.
        answer_of: gives an answer in the form in which answers are compared.
    """
    import numpy as np

    ids, answers = array("Q"), array("Q")
    for row in rows:
        if row.target is not None:
            continue
        ids.append(int(row.id, 16))
        answers.append(hash_of(answer_of(row)))
    order_N = np.argsort(np.asarray(ids), kind="stable")
    ids_N = np.asarray(ids)[order_N]
    again_N = np.concatenate(([False], ids_N[1:] == ids_N[:-1], [False]))[: len(ids_N) + 1]
    several_N = again_N[:-1] | again_N[1:]  # as the one before, or the one after
    ids_N, order_N = ids_N[several_N], order_N[several_N]
    answers_N = np.asarray(answers)[order_N]
    starts = np.flatnonzero(np.concatenate(([True], ids_N[1:] != ids_N[:-1]))[: len(ids_N)])
    parts = np.split(answers_N, starts[1:])[: len(starts)]
    return {
        f"{int(ids_N[start]):016x}": _commonest(part)
        for start, part in zip(starts, parts, strict=True)
    }


def hash_of(text: str) -> int:
    """Return 64 bits that stand for a text."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def _commonest(answers_N: "np.ndarray") -> tuple[int, float]:
    import numpy as np

    values, first, counts = np.unique(answers_N, return_index=True, return_counts=True)
    best = np.lexsort((first, -counts))[0]
    return int(values[best]), round(float(counts[best]) / len(answers_N), 4)
