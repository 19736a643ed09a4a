"""Rows as token ids: one rule for training, generation, capture and scoring alike.

A prompt and its completion are tokenised separately and then concatenated, so that a completion has
the same ids in training as when a model generates it. The end-of-sequence id closes every
completion.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cohobate.data.records import Message, Row
from cohobate.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

_CHUNK = 4096  # rows tokenised at a time


@dataclass(frozen=True, slots=True)
class Encoded:
    """The token ids of a row."""

    prompt_ids: list[int]
    completion_ids: list[int]
    """Ids of the answer and the closing end-of-sequence; empty where the row has no answer."""

    @property
    def ids(self) -> list[int]:
        """Prompt and completion, as the model reads them."""
        return self.prompt_ids + self.completion_ids


def encode(tokenizer: "PreTrainedTokenizerBase", row: Row) -> Encoded:
    """Return the ids of one row; `encode_all` is far quicker for many.

    Raises:
        UserError: no end-of-sequence token, a conversation without a chat template, or a prompt
            that is empty once tokenised.
    """
    return next(encode_all(tokenizer, [row]))


def encode_all(tokenizer: "PreTrainedTokenizerBase", rows: Sequence[Row]) -> Iterator[Encoded]:
    """Yield the ids of `rows` in their order, some thousands tokenised at a time."""
    if tokenizer.eos_token_id is None:
        raise UserError("the tokenizer names no end-of-sequence token: no answer could ever end")
    for start in range(0, len(rows), _CHUNK):
        yield from _encode_chunk(tokenizer, rows[start : start + _CHUNK])


def _encode_chunk(tokenizer: "PreTrainedTokenizerBase", rows: Sequence[Row]) -> Iterator[Encoded]:
    prompts = prompt_ids(tokenizer, [row.full_prompt for row in rows])
    answers = _tokenised(tokenizer, [row.answer or "" for row in rows], special=False)
    for row, prompt, answer in zip(rows, prompts, answers, strict=True):
        if not prompt:
            raise UserError("a prompt is empty once tokenised", where=f"row {row.id}")
        # an answer may be empty: then the end of sequence alone is learnt
        closed = [] if row.answer is None else [*answer, tokenizer.eos_token_id]
        yield Encoded(prompt, closed)


def prompt_ids(
    tokenizer: "PreTrainedTokenizerBase", prompts: Sequence[str | tuple[Message, ...]]
) -> list[list[int]]:
    """Return the ids of prompts: text as it stands, conversations through the chat template."""
    plain = [i for i, prompt in enumerate(prompts) if isinstance(prompt, str)]
    turns = [i for i, prompt in enumerate(prompts) if not isinstance(prompt, str)]
    texts = [prompts[i] for i in plain]
    chats = [_rendered(tokenizer, prompts[i]) for i in turns]  # type: ignore[arg-type]
    token_ids: list[list[int]] = [[] for _ in prompts]
    # a chat template writes special tokens itself: no second BOS for conversations
    for i, ids in zip(plain, _tokenised(tokenizer, texts, special=True), strict=True):  # type: ignore[arg-type]
        token_ids[i] = ids
    for i, ids in zip(turns, _tokenised(tokenizer, chats, special=False), strict=True):
        token_ids[i] = ids
    return token_ids


def _rendered(tokenizer: "PreTrainedTokenizerBase", messages: tuple[Message, ...]) -> str:
    if not tokenizer.chat_template:
        raise UserError(
            "a prompt is a conversation, and the tokenizer has no chat template",
            fix="use an instruct model, or give the prompts as text",
        )
    turns = [message.model_dump() for message in messages]
    try:
        text: str = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    except Exception as error:  # a template may raise any exception
        roles = ", ".join(message.role for message in messages)
        raise UserError(
            f"the chat template refuses a conversation of the turns {roles}: {error}",
            where=f"the conversation that begins {messages[0].content[:60]!r}",
            fix="teachers.<name>.template: {system: into_first_user} or {turns: alternate}; of a "
            "student of its own tokenizer, init_student.template; or leave such rows out",
        ) from error
    return text


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
