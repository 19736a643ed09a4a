"""What a model makes of given answers: it reads each of them once, and what it read is kept.

Kept are the last hidden rows at the answer's tokens, not the logits: a row of D numbers instead of
V. Whoever needs the distributions has the head make them again, some tokens at a time. So the
teacher reads its own answers once, however many students are compared with it, and an answer that
a student gives as well is not read again.

Shapes: B batch, S sequence, N answer tokens, D width, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cohobate.data.tokenized import Encoded, pad_right
from cohobate.fast.padding_free import last_hidden
from cohobate.models.lm_head import Head
from cohobate.thread_map import thread_map

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

CHUNK = 128
"""Tokens whose distributions are in memory at once."""
_Key = tuple[tuple[int, ...], tuple[int, ...]]


class Reader:
    """A model that reads answers to prompts, and remembers what it read."""

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

    def read(self, texts: Sequence[Encoded]) -> None:
        """Read those of the texts that were not read before."""
        new = {_key(text): text for text in texts if _key(text) not in self._hidden}
        order = sorted(new.values(), key=lambda text: (len(text.ids), text.ids))
        batches = [order[at : at + self._batch] for at in range(0, len(order), self._batch)]
        for batch, hidden in thread_map(self._hidden_rows, batches, self._threads):
            self._hidden |= {_key(text): h for text, h in zip(batch, hidden, strict=True)}

    def hidden(self, texts: Sequence[Encoded]) -> Tensor:
        """Return the hidden rows from which the answers' tokens are predicted, (N, D)."""
        self.read(texts)
        return torch.cat([self._hidden[_key(text)] for text in texts])

    def log_probs(self, hidden_ND: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Yield which of the rows, and the log-probabilities of all ids there, (CHUNK, V)."""
        for start in range(0, len(hidden_ND), CHUNK):
            some = slice(start, start + CHUNK)
            with torch.inference_mode():  # left before yielding: the mode is the whole thread's
                logp_NV = self.head.logits(hidden_ND[some]).log_softmax(-1)
            yield some, logp_NV

    def answer_log_probs(self, texts: Sequence[Encoded]) -> Tensor:
        """Return the log-probability that the model gives each token of the answers, (N,)."""
        targets_N = torch.tensor([i for text in texts for i in text.completion_ids])
        parts = [
            logp_NV.gather(1, targets_N[some, None].to(logp_NV.device))[:, 0].cpu()
            for some, logp_NV in self.log_probs(self.hidden(texts))
        ]
        return torch.cat(parts)

    def first_log_probs(self, texts: Sequence[Encoded], ids: Sequence[int]) -> Tensor:
        """Return what the model gives each of `ids` as an answer's first token, (texts, ids)."""
        self.read(texts)
        first_ND = torch.stack([self._hidden[_key(text)][0] for text in texts])
        return torch.cat([logp_NV[:, list(ids)].cpu() for _, logp_NV in self.log_probs(first_ND)])

    def _hidden_rows(self, texts: Sequence[Encoded]) -> list[Tensor]:
        """Right padding under a causal mask: what is kept never attends to padding."""
        ids_BS = pad_right([text.ids[:-1] for text in texts], 0).to(self.model.device)
        lengths = [len(text.completion_ids) for text in texts]
        firsts = [n * ids_BS.shape[1] + len(x.prompt_ids) - 1 for n, x in enumerate(texts)]
        spans = [torch.arange(a, a + n) for a, n in zip(firsts, lengths, strict=True)]
        with torch.inference_mode():
            hidden_ND = last_hidden(self.model, ids_BS, torch.cat(spans).to(ids_BS.device))
        return [hidden_MD.clone() for hidden_MD in torch.split(hidden_ND, lengths)]


def _key(text: Encoded) -> _Key:
    return tuple(text.prompt_ids), tuple(text.completion_ids)
