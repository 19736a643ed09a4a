"""Whether two tokenizers mean the same by their ids, and which ids of one are which of another.

A trimmed student (cohobate/students/vocabulary_trimming.py) has some of its teacher's tokens, under
numbers of its own: the strings say which is which.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def vocabulary_hash(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Return what is equal for two tokenizers only when they give each id the same string."""
    return _hash(sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]))


def template_hash(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Return what is equal for two tokenizers only when their chat templates are."""
    return _hash(str(tokenizer.chat_template or "").strip())


def ids_within(whole: Mapping[str, int], part: Mapping[str, int]) -> np.ndarray | None:
    """Return for each id of `part` the id that `whole` gives the same token; None if it has none.

    Where every token has the same id in both, the result counts 0, 1, 2 ...
    """
    if not part.keys() <= whole.keys():
        return None
    whole_ids = np.full(max(part.values()) + 1, -1, dtype=np.int64)
    for token, number in part.items():
        whole_ids[number] = whole[token]
    return whole_ids


def inverse_ids(ids: np.ndarray, size: int) -> np.ndarray:
    """Return the inverse of `ids_within`: the part's id of each of `size` ids, or −1."""
    inverse = np.full(size, -1, dtype=np.int64)
    shared = ids >= 0
    inverse[ids[shared]] = np.flatnonzero(shared)
    return inverse


def _hash(value: Any) -> str:
    return hashlib.blake2b(json.dumps(value).encode(), digest_size=16).hexdigest()
