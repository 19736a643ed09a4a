"""Rows as token ids: one rule for training, generation, capture and scoring alike.

A prompt and its completion are tokenised apart and then concatenated, so that a completion has the
same ids whether a model reads it or writes it. The end-of-sequence id closes every completion.

Shapes: B batch, S sequence.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from cohobate.data.records import Message, Row
from cohobate.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

NOT_A_TARGET = -100
"""Marks the positions that carry no loss (the convention of torch's cross-entropy)."""
_CHUNK = 4096


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


class Batch(NamedTuple):
    """Right-padded rows: inputs, and at each position the id that should come next."""

    ids_BS: "Tensor"  # noqa: N815
    """Input ids. The last id of a row is left out: nothing follows it."""
    targets_BS: "Tensor"  # noqa: N815
    """The next id where that belongs to the completion, else NOT_A_TARGET."""


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
    found: list[list[int]] = [[] for _ in prompts]
    for i, ids in zip(plain, _tokenised(tokenizer, texts, special=True), strict=True):  # type: ignore[arg-type]
        found[i] = ids
    for i, ids in zip(turns, _tokenised(tokenizer, chats, special=False), strict=True):
        found[i] = ids
    return found


def _rendered(tokenizer: "PreTrainedTokenizerBase", messages: tuple[Message, ...]) -> str:
    if not tokenizer.chat_template:
        raise UserError(
            "a prompt is a conversation, and the tokenizer has no chat template",
            fix="use an instruct model, or give the prompts as text",
        )
    turns = [message.model_dump() for message in messages]
    try:
        text: str = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    except Exception as error:  # a template raises what it pleases
        roles = ", ".join(message.role for message in messages)
        raise UserError(
            f"the chat template refuses a conversation of the turns {roles}: {error}",
            where=f"the conversation that begins {messages[0].content[:60]!r}",
            fix="teachers.<name>.template: {system: into_first_user} or {turns: alternate}; of a "
            "student of its own tokenizer, shape.template; or leave such rows out",
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


def collate(rows: Sequence[Encoded], fill: int) -> Batch:
    """Stack rows for training: right-padded inputs, targets shifted to where they are predicted."""
    inputs = [row.ids[:-1] for row in rows]
    masked = [[NOT_A_TARGET] * (len(row.prompt_ids) - 1) + row.completion_ids for row in rows]
    return Batch(pad_right(inputs, fill), pad_right(masked, NOT_A_TARGET))
