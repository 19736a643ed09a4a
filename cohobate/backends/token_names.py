"""Names of tokens in a service's replies, and the ids that they stand for in a tokenizer.

A name is the most exact that the service gives, and so the ledger keeps it:

    token_id:123        the id itself: vLLM with `return_tokens_as_token_ids`, llama.cpp's `id`
    bytes:\\xe6\\xbc     bytes that are no whole character (OpenAI's `bytes`)
    " animal"           the text, which names one token where the tokenizer is of whole bytes

A name that occurs twice in one list stands for different tokens; which is which cannot be known.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Tokens = list[tuple[str, float, dict[str, float]]]
"""For each token its name, its log-probability, and those of the likeliest tokens there."""
_ID, _BYTES = "token_id:", "bytes:"
_AGAIN = "\0again:"
"""Stands between a name and its number where it occurs again."""
_SNAPSHOT = re.compile(r"[-@:](\d[\d.-]*|latest)$")
_HEX_BYTE = re.compile(r"^<0x([0-9A-F]{2})>$")


def id_name(token: int) -> str:
    """Return the name of a token whose id is known."""
    return f"{_ID}{token}"


def token_name(fields: Mapping[str, Any]) -> str:
    """Return the most exact name of a token in a reply: its id, its bytes, or its text."""
    text, number, data = str(fields["token"]), fields.get("id"), fields.get("bytes")
    if text.startswith(_ID):
        return text
    if isinstance(number, int) and not isinstance(number, bool):
        return id_name(number)
    content = text.encode("utf-8", "replace")
    if isinstance(data, list) and data and bytes(data) != content:
        return bytes_name(bytes(data))
    return content.decode()


def bytes_name(data: bytes) -> str:
    """Return the name of a token by its bytes: its text, where they are whole characters."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return _BYTES + "".join(f"\\x{byte:02x}" for byte in data)


def add_name(logprobs: dict[str, float], name: str, logprob: float) -> None:
    """Add a token to a list; one whose name is there already gets another."""
    logprobs[name if name not in logprobs else f"{name}{_AGAIN}{len(logprobs)}"] = logprob


def signals_of(
    tokens: Tokens, model: str, reply: Mapping[str, Any], requested: int
) -> tuple[Tokens, str]:
    """Return the tokens of a reply that can be signals, and what is wrong with them, if anything.

    Args:
        tokens: those of the reply.
        model: the one that was named in the request.
        reply: its fields.
        requested: log-probabilities that were requested for each token.
    """
    answered = reply.get("model")
    if isinstance(answered, str) and not same_model(model, answered):
        return [], f"another model answered: {answered}"
    if not tokens:
        return [], "the reply contains no log-probabilities"
    fewest = min(len(others) for _, _, others in tokens)
    if fewest < requested:
        return tokens, f"{fewest} log-probabilities at a token, {requested} were requested"
    return tokens, ""


def same_model(named: str, answered: str) -> bool:
    """Return whether a reply's model is the one that was named, or a dated snapshot of it.

    Folders and the ending `.gguf` do not count: llama.cpp answers with the path of its file.
    """
    ours, theirs = (
        name.rstrip("/").rpartition("/")[2].casefold().removesuffix(".gguf")
        for name in (named, answered)
    )
    return ours == theirs or (
        theirs.startswith(ours) and bool(_SNAPSHOT.match(theirs[len(ours) :]))
    )


class TokenIds:
    """The ids of a tokenizer by the names that services give tokens."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        vocabulary = tokenizer.get_vocab()
        self.size = max(vocabulary.values()) + 1
        pieces = json.dumps(json.loads(tokenizer.backend_tokenizer.to_str())["decoder"] or {})
        added = {str(token) for token in tokenizer.added_tokens_decoder.values()}
        self.texts_differ = "ByteLevel" in pieces
        """Whether a token's text tells it from all others. Where it does not, services leave out
        the blank that a token of the SentencePiece kind begins with."""
        self._by_bytes: dict[bytes, int] = {}
        # `<0x41>` beside the token of its character: the character is meant
        for token in sorted(vocabulary, key=lambda t: (bool(_HEX_BYTE.match(t)), vocabulary[t])):
            data = token.encode() if token in added else _bytes_of(token, self.texts_differ)
            self._by_bytes.setdefault(data, vocabulary[token])

    def id_of(self, name: str) -> int | None:
        """Return the id of a name; None where it stands for no token, or for one of several."""
        if name.startswith(_ID):
            number = int(name.removeprefix(_ID))
            return number if 0 <= number < self.size else None
        if name.startswith(_BYTES):
            return self._by_bytes.get(_escaped(name.removeprefix(_BYTES)))
        return self._by_bytes.get(name.encode()) if self.texts_differ else None

    def ids_of(self, logprobs: Mapping[str, float]) -> dict[int, float]:
        """Return the log-probabilities by id; tokens whose names are not clear are left out."""
        uses = Counter(name.partition(_AGAIN)[0] for name in logprobs)
        known = {name: self.id_of(name) for name, count in uses.items() if count == 1}
        return {token: logprobs[name] for name, token in known.items() if token is not None}


def _escaped(text: str) -> bytes:
    try:
        return bytes.fromhex(text.replace("\\x", ""))
    except ValueError:
        return b""


def _bytes_of(token: str, byte_level: bool) -> bytes:
    """Return the bytes that a token of a vocabulary stands for."""
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
