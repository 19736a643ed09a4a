"""Classification of prompts: a classifier's log-probabilities of its labels."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from cohobate.data.messages import Prompt, prompt_text
from cohobate.data.tokenized import pad_right
from cohobate.generation.requests import Batching
from cohobate.thread_map import thread_map

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_NO_LIMIT = 1 << 30
_WINDOW = 4096
"""Prompts that are in memory, and sorted by length, together."""


def classifier_ids(
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[Prompt],
    max_tokens: int | None = None,
    keep: Literal["first", "last"] = "first",
) -> list[list[int]]:
    """Return the ids of prompts as a classifier reads them: as text, special tokens included.

    Args:
        tokenizer: the classifier's; its `model_max_length` limits every text.
        prompts: texts, or conversations, whose turns are read one below the other.
        max_tokens: longest text; that of the tokenizer when not given.
        keep: which tokens of a longer text are kept.
    """
    most = tokenizer.model_max_length  # a huge number where the tokenizer names no limit
    limit = min(max_tokens or most, most)
    tokenizer.truncation_side = "right" if keep == "first" else "left"
    encoded = tokenizer(
        [prompt_text(prompt) for prompt in prompts],
        truncation=limit < _NO_LIMIT,
        max_length=limit if limit < _NO_LIMIT else None,
        return_attention_mask=False,
        return_token_type_ids=False,
    )
    ids: list[list[int]] = encoded["input_ids"]
    return ids


def label_logprobs(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[Prompt],
    batching: Batching | None = None,
    *,
    threads: int = 1,
) -> Iterator[tuple[int, Tensor]]:
    """Yield the position of each prompt and its log-probabilities over C labels, (C,), in float32.

    Prompts come batch by batch, those of like length together.
    """
    for start in range(0, len(prompts), _WINDOW):
        ids = classifier_ids(tokenizer, prompts[start : start + _WINDOW])
        for n, logp_C in logprobs_of_ids(model, ids, batching, threads=threads):
            yield start + n, logp_C


def logprobs_of_ids(
    model: "PreTrainedModel",
    texts: Sequence[Sequence[int]],
    batching: Batching | None = None,
    *,
    threads: int = 1,
) -> Iterator[tuple[int, Tensor]]:
    """Yield the position of each text, given as token ids, and its log-probabilities, (C,)."""
    batches = list(_batches([len(row) for row in texts], batching or Batching()))
    results = thread_map(lambda batch: _forward(model, [texts[n] for n in batch]), batches, threads)
    for batch, logp_BC in results:
        yield from zip(batch, logp_BC, strict=True)


@torch.inference_mode()
def _forward(model: "PreTrainedModel", rows: Sequence[Sequence[int]]) -> Tensor:
    ids_BS = pad_right(rows, 0).to(model.device)
    mask_BS = pad_right([[1] * len(row) for row in rows], 0).to(model.device)
    logits_BC: Tensor = model(input_ids=ids_BS, attention_mask=mask_BS).logits
    return logits_BC.float().log_softmax(-1).cpu()


def _batches(lengths: Sequence[int], batching: Batching) -> Iterator[list[int]]:
    """Yield the positions of each batch, longest rows first."""
    order = sorted(range(len(lengths)), key=lambda n: (-lengths[n], n))
    start = 0
    while start < len(order):
        # a batch is padded to its first row
        size = max(1, min(batching.rows, batching.tokens // lengths[order[start]]))
        yield order[start : start + size]
        start += size
