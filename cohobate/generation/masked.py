"""Answers and losses of a masked language model: what it predicts at masks."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from cohobate.data.messages import Prompt, prompt_text
from cohobate.data.records import Row
from cohobate.data.tokenized import pad_right
from cohobate.generation.classification import classifier_ids
from cohobate.generation.encoders import encoder_forward
from cohobate.generation.requests import Batching
from cohobate.thread_map import thread_map

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_MOST_MASKS = 64
"""Tokens of a text that are masked one by one; of a longer one so many, evenly spread."""
_ROWS = 64
"""Most rows of a batch: the head gives a row of logits for each."""


class _Text(NamedTuple):
    """A text with one mask."""

    ids: list[int]
    place: int
    """Of the mask."""


def cloze_ids(tokenizer: "PreTrainedTokenizerBase", prompts: Sequence[Prompt]) -> list[list[int]]:
    """Return the ids of prompts with a mask behind each; of long ones the last tokens are kept."""
    texts = [f"{prompt_text(prompt)} {tokenizer.mask_token}" for prompt in prompts]
    return classifier_ids(tokenizer, texts, keep="last")


def cloze_answers(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[Prompt],
    batching: Batching | None = None,
    *,
    threads: int = 1,
) -> Iterator[tuple[int, str, float]]:
    """Yield the position of each prompt, the likeliest token behind it, and its log-probability."""
    texts = []
    for ids in cloze_ids(tokenizer, prompts):
        # the last mask: a prompt may have others
        places = [n for n, token in enumerate(ids) if token == tokenizer.mask_token_id]
        texts.append(_Text(ids, places[-1]))
    special = torch.tensor(sorted(tokenizer.all_special_ids))
    for position, logp_V in _logprobs(model, texts, batching, threads):
        # what is no text is no answer
        able_V = logp_V.index_fill(0, special, -torch.inf)
        best = int(able_V.argmax())
        yield position, tokenizer.decode([best]).strip(), float(logp_V[best])


def pseudo_losses(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    rows: Sequence[Row],
    batching: Batching | None = None,
    *,
    threads: int = 1,
) -> Iterator[float]:
    """Yield the mean loss of each row's answer in nats a token, each token masked by itself.

    Raw text is an answer behind nothing. Of an answer without a token the loss is infinite.
    """
    texts, labels, owners = [], [], []
    for number, (row, answer) in enumerate(zip(rows, answer_ids(tokenizer, rows), strict=True)):
        ids, start = _with_answer(tokenizer, row, answer)
        for place in _spread(len(answer)):
            masked = [*ids]
            labels.append(masked[start + place])
            masked[start + place] = int(tokenizer.mask_token_id or 0)
            texts.append(_Text(masked, start + place))
            owners.append(number)
    totals, counts = [0.0] * len(rows), [0] * len(rows)
    for position, logp_V in _logprobs(model, texts, batching, threads):
        totals[owners[position]] -= float(logp_V[labels[position]])
        counts[owners[position]] += 1
    for total, count in zip(totals, counts, strict=True):
        yield total / count if count else float("inf")


def answer_ids(tokenizer: "PreTrainedTokenizerBase", rows: Sequence[Row]) -> list[list[int]]:
    """Return the ids of the rows' answers, without special tokens."""
    texts = [row.full_answer for row in rows]
    if not texts:
        return []
    ids: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return ids


def _with_answer(
    tokenizer: "PreTrainedTokenizerBase", row: Row, answer: list[int]
) -> tuple[list[int], int]:
    """Return the ids of a prompt with its answer, and where the answer begins."""
    prompt = prompt_text(row.full_prompt)
    (around,) = classifier_ids(tokenizer, ["a"])
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    start = next(n for n in range(len(around)) if around[n : n + len(bare)] == bare)
    before, after = around[:start], around[start + len(bare) :]
    room = min(tokenizer.model_max_length, 1 << 30) - len(before) - len(after) - len(answer)
    own: list[int] = tokenizer(prompt, add_special_tokens=False)["input_ids"] if prompt else []
    own = own[-room:] if room > 0 else []
    return [*before, *own, *answer, *after], len(before) + len(own)


def _spread(count: int) -> list[int]:
    """Return the places of the tokens that are masked."""
    if count <= _MOST_MASKS:
        return list(range(count))
    return [n * count // _MOST_MASKS for n in range(_MOST_MASKS)]


def _logprobs(
    model: "PreTrainedModel", texts: Sequence[_Text], batching: Batching | None, threads: int
) -> Iterator[tuple[int, Tensor]]:
    """Yield the position of each text and the log-probabilities at its mask, (V,)."""
    batching = batching or Batching()
    order = sorted(range(len(texts)), key=lambda n: (-len(texts[n].ids), n))
    batches, start = [], 0
    while start < len(order):
        longest = len(texts[order[start]].ids)
        size = max(1, min(batching.rows, _ROWS, batching.tokens // longest))
        batches.append(order[start : start + size])
        start += size
    results = thread_map(lambda batch: _forward(model, [texts[n] for n in batch]), batches, threads)
    for batch, logp_NV in results:
        yield from zip(batch, logp_NV, strict=True)


@torch.inference_mode()
def _forward(model: "PreTrainedModel", texts: Sequence[_Text]) -> Tensor:
    ids_BS = pad_right([text.ids for text in texts], 0).to(model.device)
    mask_BS = pad_right([[1] * len(text.ids) for text in texts], 0).to(model.device)
    width = ids_BS.shape[1]
    positions_N = torch.tensor([n * width + text.place for n, text in enumerate(texts)])
    out = encoder_forward(model, ids_BS, mask_BS, positions_N.to(model.device))
    return out.logits.float().log_softmax(-1).cpu()
