"""The bytes that tokens stand for, whatever letters a tokenizer writes them in.

A vocabulary has " animal" as `Ġanimal` (byte-level, GPT-2) or as `▁animal` (SentencePiece): two
strings, the same bytes. So tokens of two tokenizers are compared by their bytes.
"""

import json
import re
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_HEX_BYTE = re.compile(r"^<0x([0-9A-F]{2})>$")


def is_byte_level(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Return whether the tokenizer writes its tokens in one letter a byte."""
    decoder = json.loads(tokenizer.backend_tokenizer.to_str())["decoder"] or {}
    return "ByteLevel" in json.dumps(decoder)


def bytes_by_id(tokenizer: "PreTrainedTokenizerBase") -> dict[int, bytes]:
    """Return the bytes that each token stands for, by its id; of an added one those of its text."""
    byte_level = is_byte_level(tokenizer)
    added = {str(token) for token in tokenizer.added_tokens_decoder.values()}
    return {
        number: token.encode() if token in added else _bytes_of(token, byte_level)
        for token, number in tokenizer.get_vocab().items()
    }


def ids_by_bytes(tokenizer: "PreTrainedTokenizerBase") -> dict[bytes, int]:
    """Return the id of each token by the bytes that it stands for."""
    vocabulary, data = tokenizer.get_vocab(), bytes_by_id(tokenizer)
    ids: dict[bytes, int] = {}
    # `<0x41>` beside the token of its character: the character is meant
    for token in sorted(vocabulary, key=lambda t: (bool(_HEX_BYTE.match(t)), vocabulary[t])):
        ids.setdefault(data[vocabulary[token]], vocabulary[token])
    return ids


def _bytes_of(token: str, byte_level: bool) -> bytes:
    if byte_level:
        letters = _byte_letters()
        if all(letter in letters for letter in token):
            return bytes(letters[letter] for letter in token)
        return token.encode()
    if match := _HEX_BYTE.match(token):
        return bytes([int(match[1], 16)])
    return token.replace("\u2581", " ").encode()


@lru_cache(1)
def _byte_letters() -> dict[str, int]:
    """Return the byte of each letter in which byte-level tokenizers write their tokens (GPT-2)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {chr(byte): byte for byte in printable}
    return letters | {chr(256 + n): byte for n, byte in enumerate(others)}
