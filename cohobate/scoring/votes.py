"""Majority votes: the commonest answer among several samples to one prompt."""

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

    Of equally common answers the first one wins. Memory: sixteen bytes a row.

    Args:
        rows: the samples of all prompts, in any order; auxiliary targets are ignored.
        answer_of: returns an answer in the form in which answers are compared.
    """
    import numpy as np

    ids, answers = array("Q"), array("Q")
    for row in rows:
        if row.target is not None:
            continue
        # an id has 16 hexadecimal digits
        ids.append(int(row.id, 16))
        answers.append(hash_of(answer_of(row)))
    # stable: samples of a prompt stay in their order, for ties
    order_R = np.argsort(np.asarray(ids), kind="stable")
    ids_R = np.asarray(ids)[order_R]
    # whether a row has the id of the row before, with an end on either side
    repeated_R = np.concatenate(([False], ids_R[1:] == ids_R[:-1], [False]))[: len(ids_R) + 1]
    several_R = repeated_R[:-1] | repeated_R[1:]  # equal to the one before, or to the one after
    ids_R, order_R = ids_R[several_R], order_R[several_R]
    answers_R = np.asarray(answers)[order_R]
    # where each prompt's samples begin
    starts = np.flatnonzero(np.concatenate(([True], ids_R[1:] != ids_R[:-1]))[: len(ids_R)])
    parts = np.split(answers_R, starts[1:])[: len(starts)]
    return {
        f"{int(ids_R[start]):016x}": _commonest(part)
        for start, part in zip(starts, parts, strict=True)
    }


def hash_of(text: str) -> int:
    """Return a 64-bit hash of a text."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def _commonest(answers_R: "np.ndarray") -> tuple[int, float]:
    import numpy as np

    values, first, counts = np.unique(answers_R, return_index=True, return_counts=True)
    # the last key counts first: most votes, then the first to occur
    best = np.lexsort((first, -counts))[0]
    return int(values[best]), round(float(counts[best]) / len(answers_R), 4)
