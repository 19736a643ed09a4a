"""Token ids of the last rows that were encoded, kept in the process.

The seeds of a phase learn the same rows: they are rendered and tokenised once.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cohobate.data.examples import Example, examples_of
from cohobate.data.records import Row
from cohobate.data.row_length import LengthLimit
from cohobate.data.tokenized import encode_all

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SIZE = 2  # sets of rows: the chosen and the rejected answers of pairs
_examples: OrderedDict[str, list[Example]] = OrderedDict()


def encoded_examples(
    tokenizer: "PreTrainedTokenizerBase", rows: Sequence[Row], limit: LengthLimit
) -> list[Example]:
    """Return rows as examples within a limit, as `examples_of` does; the same rows only once.

    The limit counts, and can report, only rows that are encoded now.
    """
    key = _key(tokenizer, rows, limit)
    if key not in _examples:
        _examples[key] = examples_of(rows, limit.apply(encode_all(tokenizer, rows)))
        if len(_examples) > _SIZE:
            _examples.popitem(last=False)
    _examples.move_to_end(key)
    return list(_examples[key])


def _key(tokenizer: "PreTrainedTokenizerBase", rows: Sequence[Row], limit: LengthLimit) -> str:
    """Return a hash of all that decides the ids: the whole tokenizer, the rows and the limit."""
    digest = hashlib.sha256(repr((limit.max_tokens, limit.too_long)).encode())
    backend = getattr(tokenizer, "backend_tokenizer", None)
    parts = [type(tokenizer).__name__, tokenizer.chat_template, tokenizer.init_kwargs]
    parts += [tokenizer.special_tokens_map, backend.to_str() if backend else tokenizer.get_vocab()]
    digest.update(repr(parts).encode())
    for row in rows:
        digest.update(row.model_dump_json().encode())
    return digest.hexdigest()
