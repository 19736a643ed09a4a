"""The text of generated ids, and where each of the tokens lies in it.

A model need not generate a text in the tokens that its tokenizer would make of it: the places of
generated tokens are those at which their text appears, not those of the text tokenised again.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"
_CONTEXT = 4
"""Tokens before the next one that are decoded with it: a decoder can treat a text's first token
otherwise."""
_LONGEST = 8
"""Tokens of one character, with room to spare: what is no character by then is no valid UTF-8."""


class TextSpans(NamedTuple):
    """A text, and the characters [start, end) of each of its tokens.

    The tokens of one character all have its span, as a tokenizer's offsets do.
    """

    text: str
    spans: list[tuple[int, int]]


def text_spans(
    tokenizer: "PreTrainedTokenizerBase", ids: Sequence[int], before: Sequence[int] = ()
) -> TextSpans:
    """Return the text of ids, and the span of each.

    Args:
        tokenizer: theirs; a slow one will do.
        ids: without the id that closes an answer.
        before: ids that stand before them, such as the prompt's.
    """
    context = list(before[-_CONTEXT:])
    shown = _decoded(tokenizer, context)
    text, spans, pending = "", list[tuple[int, int]](), list[int]()
    for number, one in enumerate(ids):
        pending.append(one)
        piece = _decoded(tokenizer, context + pending)[len(shown) :]
        last = number == len(ids) - 1 or len(pending) == _LONGEST
        if piece.endswith(_INCOMPLETE) and not last:
            continue  # within a character
        spans += [(len(text), len(text) + len(piece))] * len(pending)
        text += piece
        # each step decodes a few tokens, however long the text is
        context = (context + pending)[-max(_CONTEXT, len(pending)) :]
        shown, pending = _decoded(tokenizer, context), []
    return TextSpans(text, spans)


def _decoded(tokenizer: "PreTrainedTokenizerBase", ids: list[int]) -> str:
    text: str = tokenizer.decode(ids, clean_up_tokenization_spaces=False) if ids else ""
    return text
