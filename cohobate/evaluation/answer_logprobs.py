"""Log-probabilities that a model gives to the tokens of given answers.

The last hidden states at the answers' tokens are computed once and cached: D numbers a token in
place of V. The LM head turns them into distributions, a few tokens at a time. So the teacher's
forward pass over its own answers runs once, however many students are compared with it.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cohobate.data.tokenized import Encoded, pad_right
from cohobate.fast.forward_pass import forward
from cohobate.models.lm_head import Head
from cohobate.thread_map import thread_map

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

CHUNK = 128
"""Tokens whose distributions are in memory at once."""
_Key = tuple[tuple[int, ...], tuple[int, ...], tuple[str, ...]]


class AnswerLogprobs:
    """A model's log-probabilities of answers, with a cache of hidden states.

    `N` counts the answer tokens of all texts, end tokens included.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        *,
        batch: int = 64,
        threads: int = 1,
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.head = Head.of(model, len(tokenizer))
        self._batch, self._threads = batch, threads
        self._hidden: dict[_Key, Tensor] = {}

    def compute(self, texts: Sequence[Encoded]) -> None:
        """Compute the hidden states of the texts that are not cached yet."""
        new = {_key(text): text for text in texts if _key(text) not in self._hidden}
        # sorted by length, so that a batch has little padding
        order = sorted(new.values(), key=lambda text: (len(text.ids), text.ids))
        batches = [
            order[start : start + self._batch] for start in range(0, len(order), self._batch)
        ]
        for batch, hidden in thread_map(self._hidden_states, batches, self._threads):
            self._hidden |= {_key(text): h for text, h in zip(batch, hidden, strict=True)}

    def hidden(self, texts: Sequence[Encoded]) -> Tensor:
        """Return the hidden states that predict the answers' tokens, (N, D)."""
        self.compute(texts)
        return torch.cat([self._hidden[_key(text)] for text in texts])

    def log_probs(self, hidden_ND: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Yield the log-probabilities of the vocabulary, (CHUNK, V), with their slice of N."""
        for start in range(0, len(hidden_ND), CHUNK):
            chunk = slice(start, start + CHUNK)
            with torch.inference_mode():  # left before yielding: the mode is the whole thread's
                logp_NV = self.head.logits(hidden_ND[chunk]).log_softmax(-1)
            yield chunk, logp_NV

    def answer_log_probs(self, texts: Sequence[Encoded]) -> Tensor:
        """Return the log-probability of each answer token, (N,), in nats."""
        targets_N = torch.tensor([i for text in texts for i in text.completion_ids])
        parts = [
            logp_NV.gather(1, targets_N[chunk, None].to(logp_NV.device))[:, 0].cpu()
            for chunk, logp_NV in self.log_probs(self.hidden(texts))
        ]
        return torch.cat(parts)

    def first_log_probs(self, texts: Sequence[Encoded], ids: Sequence[int]) -> Tensor:
        """Return the log-probability of each of `ids` as an answer's first token, (texts, ids)."""
        self.compute(texts)
        first_ND = torch.stack([self._hidden[_key(text)][0] for text in texts])
        return torch.cat([logp_NV[:, list(ids)].cpu() for _, logp_NV in self.log_probs(first_ND)])

    def _hidden_states(self, texts: Sequence[Encoded]) -> list[Tensor]:
        """Return the hidden states of a batch, a tensor (answer tokens, D) for each text."""
        # right padding under a causal mask: no token of a text attends to padding
        ids_BS = pad_right([text.ids[:-1] for text in texts], 0).to(self.model.device)
        lengths = [len(text.completion_ids) for text in texts]
        # the token before an answer's first token predicts it
        firsts = [n * ids_BS.shape[1] + len(x.prompt_ids) - 1 for n, x in enumerate(texts)]
        spans = [torch.arange(a, a + n) for a, n in zip(firsts, lengths, strict=True)]
        with torch.inference_mode():
            positions_N = torch.cat(spans).to(ids_BS.device)
            images = [text.images for text in texts]
            hidden_ND = forward(self.model, ids_BS, positions_N, images=images).last_hidden_ND
        # clones: a view would keep the hidden states of the whole batch in memory
        return [part.clone() for part in torch.split(hidden_ND, lengths)]


def _key(text: Encoded) -> _Key:
    return tuple(text.prompt_ids), tuple(text.completion_ids), text.images
