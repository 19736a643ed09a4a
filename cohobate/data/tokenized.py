"""Rows as token ids: one rule for training, generation, capture and scoring alike.

What is read and what is learnt are tokenised separately and then concatenated, so that a completion
has the same ids in training as when a model generates it. Text is taken as it stands, with the
end-of-sequence id behind its answer; conversations are rendered by the chat template
(cohobate/data/rendering.py), and end as it ends a turn. A row with an empty prompt is raw text: it
is learnt at every token, behind the id by which the tokenizer begins a text.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, NamedTuple

from cohobate.data.messages import Prompt, prompt_text
from cohobate.data.reasoning import inline
from cohobate.data.records import Row
from cohobate.data.rendering import Rendered, end_of_turn, renderer_of, special_tokens
from cohobate.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

_CHUNK = 1024  # rows tokenised at a time
_CHUNK_CHARACTERS = 1 << 20  # of prompts and answers: long texts, as ids, are lists of many objects


@dataclass(frozen=True, slots=True)
class Encoded:
    """The token ids of a row."""

    ids: list[int]
    """Prompt and answer, as the model reads them."""
    spans: tuple[tuple[int, int], ...]
    """Where the learnt tokens are, in ascending order, as [start, end): the answer with the id that
    closes it, behind earlier turns that are learnt. None where the row has no answer."""
    images: tuple[str, ...] = ()
    """Names of the pictures before the text. Their tokens are not among the ids: a model that sees
    puts its own before them (cohobate/models/seeing.py)."""

    @classmethod
    def of(
        cls, prompt_ids: list[int], completion_ids: list[int], images: tuple[str, ...] = ()
    ) -> "Encoded":
        """Return a prompt and its answer; an empty one is none."""
        whole = [*prompt_ids, *completion_ids]
        return cls(whole, ((len(prompt_ids), len(whole)),) if completion_ids else (), images)

    @property
    def prompt_ids(self) -> list[int]:
        """Ids before the answer."""
        return self.ids[: self.spans[-1][0]] if self.spans else self.ids

    @property
    def completion_ids(self) -> list[int]:
        """Ids of the answer and of what closes it; empty where the row has no answer."""
        return self.ids[self.spans[-1][0] :] if self.spans else []


def encode(tokenizer: "PreTrainedTokenizerBase", row: Row) -> Encoded:
    """Return the ids of one row; `encode_all` is far quicker for many.

    Raises:
        UserError: no end-of-sequence token, a conversation without a chat template or that it
            cannot render, or a prompt that is empty once tokenised.
    """
    return next(encode_all(tokenizer, [row]))


def encode_all(tokenizer: "PreTrainedTokenizerBase", rows: Sequence[Row]) -> Iterator[Encoded]:
    """Yield the ids of `rows` in their order, some thousands tokenised at a time."""
    if tokenizer.eos_token_id is None:
        raise UserError("the tokenizer names no end-of-sequence token: no answer could ever end")
    for chunk in _chunks(rows):
        yield from _encode_chunk(tokenizer, chunk)


def encode_renderable(
    tokenizer: "PreTrainedTokenizerBase", rows: Sequence[Row]
) -> Iterator[Encoded]:
    """Yield the ids of `rows` in their order; no ids for a row that cannot be rendered."""
    try:
        yield from list(encode_all(tokenizer, rows))
    except UserError:
        # which of them?
        for row in rows:
            try:
                yield from list(encode_all(tokenizer, [row]))
            except UserError:
                yield Encoded([], ())


def _chunks(rows: Sequence[Row]) -> Iterator[Sequence[Row]]:
    start = characters = 0
    for number, row in enumerate(rows):
        characters += len(prompt_text(row.prompt)) + len(row.answer or "")
        if number - start + 1 == _CHUNK or characters >= _CHUNK_CHARACTERS:
            yield rows[start : number + 1]
            start, characters = number + 1, 0
    if start < len(rows):
        yield rows[start:]


def _encode_chunk(tokenizer: "PreTrainedTokenizerBase", rows: Sequence[Row]) -> Iterator[Encoded]:
    rendered = _render(tokenizer, rows)
    # a chat template writes special tokens itself: no second BOS for conversations
    text = [isinstance(row.prompt, str) for row in rows]
    firsts = [one.pieces[0] for one in rendered]
    starts = _tokenised_prompts(tokenizer, firsts, text)
    rest = [piece for one in rendered for piece in one.pieces[1:]]
    pieces = iter(tokens_behind(tokenizer, rest))
    for row, one, start in zip(rows, rendered, starts, strict=True):
        prompt = [_start_id(tokenizer)] if row.is_raw_text else start
        if not prompt:
            raise UserError("a prompt is empty once tokenised", where=f"row {row.id}")
        parts = [prompt, *(next(pieces) for _ in one.pieces[1:])]
        if len(parts) > 1 and not (one.closed or row.cut):
            parts[-1] = [*parts[-1], tokenizer.eos_token_id]
        # pieces are read and learnt in turn: every second pair of bounds is a span
        bounds = list(pairwise(accumulate(map(len, parts), initial=0)))
        yield Encoded([n for part in parts for n in part], tuple(bounds[1::2]), row.images or ())


def prompt_ids(tokenizer: "PreTrainedTokenizerBase", prompts: Sequence[Prompt]) -> list[list[int]]:
    """Return the ids of prompts: text as it stands, conversations through the chat template."""
    texts = [prompt if isinstance(prompt, str) else "" for prompt in prompts]
    chats = {n: prompt for n, prompt in enumerate(prompts) if not isinstance(prompt, str)}
    if chats:
        rendered = renderer_of(tokenizer).prompts(list(chats.values()))
        for n, text in zip(chats, rendered, strict=True):
            texts[n] = text
    return _tokenised_prompts(tokenizer, texts, [n not in chats for n in range(len(texts))])


class LearntText(NamedTuple):
    """A learnt piece of a row as text."""

    text: str
    """Without the token that closes it."""
    closed: bool
    """Whether one more token closes it."""


def learnt_texts(
    tokenizer: "PreTrainedTokenizerBase", rows: Sequence[Row]
) -> Iterator[list[LearntText]]:
    """Yield the learnt pieces of each row as text: one for each span of its ids."""
    special = special_tokens(tokenizer)
    for row, one in zip(rows, _render(tokenizer, rows), strict=True):
        pieces = []
        for text in one.pieces[1::2]:
            ending = max((t for t in special if text.endswith(t)), key=len, default="")
            pieces.append(LearntText(text.removesuffix(ending), bool(ending)))
        if pieces and not one.closed:
            pieces[-1] = LearntText(one.pieces[-1], closed=not row.cut)
        yield pieces


def token_offsets(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[tuple[int, int]]:
    """Return where each token of a learnt text begins and ends in it, in characters.

    Raises:
        UserError: the tokenizer does not give offsets.
    """
    if not tokenizer.is_fast:
        raise UserError(
            f"the offsets of tokens are needed, which {type(tokenizer).__name__} does not give",
            where=f"the tokenizer of {tokenizer.name_or_path}",
            fix="use a model with a fast tokenizer (tokenizer.json)",
        )
    anchor = _anchor(tokenizer)
    first = len(_tokenised(tokenizer, [anchor], special=False)[0]) if anchor else 0
    encoding = tokenizer(anchor + text, add_special_tokens=False, return_offsets_mapping=True)
    shift = len(anchor)
    return [(start - shift, end - shift) for start, end in encoding["offset_mapping"][first:]]


def closing_ids(tokenizer: "PreTrainedTokenizerBase") -> frozenset[int]:
    """Return the ids that end an answer: end of sequence, and the chat template's end of turn."""
    ids = {tokenizer.eos_token_id}
    if tokenizer.chat_template:
        with suppress(UserError):  # the template refuses a question and an answer
            ids.add(tokenizer.convert_tokens_to_ids(end_of_turn(tokenizer) or tokenizer.eos_token))
    return frozenset(ids - {None})


def _render(tokenizer: "PreTrainedTokenizerBase", rows: Sequence[Row]) -> list[Rendered]:
    # an answer may be empty: then the end of sequence alone is learnt
    rendered = [Rendered(_text_pieces(row), closed=False) for row in rows]
    chats = [n for n, row in enumerate(rows) if not isinstance(row.prompt, str)]
    if chats:
        own = renderer_of(tokenizer).render_all([rows[n] for n in chats])
        for n, one in zip(chats, own, strict=True):
            rendered[n] = one
    return rendered


def _text_pieces(row: Row) -> tuple[str, ...]:
    prompt = row.full_prompt
    if not isinstance(prompt, str) or row.answer is None:
        return (str(prompt),)
    return (prompt, inline(row.answer, row.reasoning or ""))


def _tokenised_prompts(
    tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str], text: Sequence[bool]
) -> list[list[int]]:
    token_ids: list[list[int]] = [[] for _ in texts]
    for special in (True, False):
        places = [n for n, own in enumerate(text) if own == special]
        ids = _tokenised(tokenizer, [texts[n] for n in places], special=special)
        for n, one in zip(places, ids, strict=True):
            token_ids[n] = one
    return token_ids


def tokens_behind(tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str]) -> list[list[int]]:
    """Return the ids of texts that follow others, as answers do."""
    anchor = _anchor(tokenizer)
    if not anchor:
        return _tokenised(tokenizer, texts, special=False)
    length = len(_tokenised(tokenizer, [anchor], special=False)[0])
    ids = _tokenised(tokenizer, [anchor + text for text in texts], special=False)
    return [one[length:] for one in ids]


@lru_cache(8)
def _anchor(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Return what a text has to stand behind to be tokenised as it is behind other text.

    Tokenizers of the SentencePiece kind put a blank before a text that stands alone.
    """
    first, whole = _tokenised(tokenizer, ["b", "b a"], special=False)
    for anchor in ("", str(tokenizer.eos_token), "\n"):
        alone, behind = _tokenised(tokenizer, [anchor, f"{anchor} a"], special=False)
        if first + behind[len(alone) :] == whole:
            return anchor
    return ""


def _start_id(tokenizer: "PreTrainedTokenizerBase") -> int:
    start = tokenizer.bos_token_id
    return int(tokenizer.eos_token_id if start is None else start)


def _tokenised(
    tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str], special: bool
) -> list[list[int]]:
    if not texts:
        return []
    encoded = tokenizer(list(texts), add_special_tokens=special, return_attention_mask=False)
    ids: list[list[int]] = encoded["input_ids"]
    return ids


def pad_right(rows: Sequence[Sequence[int]], fill: int) -> "Tensor":
    """Stack rows of ids to (B, S), filled on the right.

    Under a causal mask nothing attends to what comes later: right padding needs no attention mask
    where only the rows' own positions are read.
    """
    import torch

    stacked_BS = torch.full((len(rows), max(map(len, rows))), fill)
    for line, row in enumerate(rows):
        stacked_BS[line, : len(row)] = torch.tensor(row)
    return stacked_BS
