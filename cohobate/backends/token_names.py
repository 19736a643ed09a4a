"""Names of tokens in a service's replies, and the ids that they stand for in a tokenizer.

A name is the most exact that the service gives, and so the ledger keeps it:

    token_id:123        the id itself: vLLM with `return_tokens_as_token_ids`, llama.cpp's `id`
    bytes:\\xe6\\xbc     bytes that are no whole character (OpenAI's `bytes`)
    " animal"           the text, which names one token where the tokenizer is of whole bytes

A name that occurs twice in one list stands for different tokens; which is which cannot be known.
"""

import re
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cohobate.models.token_bytes import ids_by_bytes, is_byte_level

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Tokens = list[tuple[str, float, dict[str, float]]]
"""For each token its name, its log-probability, and those of the likeliest tokens there."""
_ID, _BYTES = "token_id:", "bytes:"
_AGAIN = "\0again:"
"""Stands between a name and its number where it occurs again."""
_SNAPSHOT = re.compile(r"[-@:](\d[\d.-]*|latest)$")


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
        self.size = max(tokenizer.get_vocab().values()) + 1
        self.texts_differ = is_byte_level(tokenizer)
        """Whether a token's text tells it from all others. Where it does not, services leave out
        the blank that a token of the SentencePiece kind begins with."""
        self._by_bytes = ids_by_bytes(tokenizer)

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
