"""Likelihoods of given texts under a causal LM: mean losses of answers, like lengths in a batch."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from cohobate.data.records import Row, row_id
from cohobate.data.tokenized import encode_all, pad_right, tokens_behind
from cohobate.generation.decoding import suppression_bias
from cohobate.generation.requests import Batching
from cohobate.models.number_formats import Precision

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_WINDOW = 4096
"""Sequences that are in memory, and sorted by length, together."""
_HEAD_TOKENS = 256
"""Answer tokens whose logits are in memory at once."""


class Continuation(NamedTuple):
    """A context, and the tokens after it whose likelihood is wanted."""

    context: list[int]
    continuation: list[int]
    images: tuple[str, ...] = ()
    """Names of the pictures before the context."""


@dataclass(frozen=True)
class Likelihood:
    """A causal LM that scores answers by their likelihood."""

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    batching: Batching = field(default_factory=Batching)
    threads: int = 1

    @classmethod
    def of(cls, folder: Path, precision: Precision, threads: int) -> "Likelihood":
        """Load the model of `folder`."""
        from cohobate.fast.frozen import load_frozen
        from cohobate.models import checkpoints

        device = checkpoints.accelerator()
        model, tokenizer = load_frozen(folder, precision=precision, device=device)
        return cls(model, tokenizer, threads=threads)

    def answer_losses(self, rows: Iterable[Row]) -> Iterator[float]:
        """Yield the mean loss of each answer after its prompt, closing token included, in nats."""
        for window in _windows(rows):
            encoded = encode_all(self.tokenizer, window)
            own = [Continuation(e.prompt_ids, e.completion_ids, e.images) for e in encoded]
            yield from self.losses(own)

    def instruction_following_difficulty(self, rows: Iterable[Row]) -> Iterator[float]:
        """Yield IFD scores, ppl(answer | prompt) / ppl(answer): near 1, the prompt did not help.

        Li et al. 2024, "Superfiltering", section 3. An answer alone follows the token that starts
        a text, so that answers of one token have a perplexity too; closing tokens do not count.
        """
        from math import exp

        start = self.tokenizer.bos_token_id
        start = self.tokenizer.eos_token_id if start is None else start
        for window in _windows(rows):
            pairs: list[Continuation] = []
            for encoded in encode_all(self.tokenizer, window):
                answer = encoded.completion_ids[:-1] or encoded.completion_ids
                # two in a row: the answer behind its prompt, and alone
                pairs += [Continuation(encoded.prompt_ids, answer), Continuation([start], answer)]
            losses = self.losses(pairs)
            yield from (exp(a - b) for a, b in zip(losses[::2], losses[1::2], strict=True))

    def log_odds(self, prompts: Iterable[str], one: str, other: str) -> Iterator[float]:
        """Yield log p(one) - log p(other) behind each prompt, in nats, by one pass of each prompt.

        A prompt that is too long loses its start.
        """
        from cohobate.generation.label_likelihood import LabelLikelihood
        from cohobate.models.lm_head import Head

        answers = tuple(map(tuple, tokens_behind(self.tokenizer, [one, other])))
        model = LabelLikelihood(
            self.model, Head.of(self.model), self.batching.tokens, threads=self.threads
        )
        most = self._context_length() - max(map(len, answers))
        rows = (Row(id=row_id(prompt), prompt=prompt) for prompt in prompts)
        for window in _windows(rows):
            ids = [each.prompt_ids[-most:] for each in encode_all(self.tokenizer, window)]
            odds = [0.0] * len(ids)
            for n, logp_C in model.log_likelihoods(ids, [answers] * len(ids)):
                odds[n] = float(logp_C[0] - logp_C[1])
            yield from odds

    def losses(self, continuations: Sequence[Continuation]) -> list[float]:
        """Return the mean loss of each continuation after its context, in nats a token."""
        from cohobate.thread_map import thread_map

        fitting = [self._truncated(each) for each in continuations]
        means = [0.0] * len(fitting)
        batches = self._batches([len(each.context) + len(each.continuation) for each in fitting])
        results = thread_map(
            lambda batch: self._measure([fitting[n] for n in batch]), batches, self.threads
        )
        for batch, losses in results:
            for n, loss in zip(batch, losses, strict=True):
                means[n] = loss
        return means

    def _truncated(self, each: Continuation) -> Continuation:
        """Cut both to the model's context length: the context at its start, the continuation at its
        end."""
        most = self._context_length()
        # at least one token of the context stays, to predict the first one from
        continuation = each.continuation[: most - 1]
        context = each.context[-(most - len(continuation)) :]
        return each._replace(context=context, continuation=continuation)

    def _context_length(self) -> int:
        length = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        return length or 1 << 62

    def _batches(self, lengths: list[int]) -> Iterator[list[int]]:
        batch: list[int] = []
        for n in sorted(range(len(lengths)), key=lambda n: (lengths[n], n)):
            # lengths rise: this one is what the batch would be padded to
            full = len(batch) == self.batching.rows
            if batch and (full or (len(batch) + 1) * lengths[n] > self.batching.tokens):
                yield batch
                batch = []
            batch.append(n)
        if batch:
            yield batch

    def _measure(self, batch: list[Continuation]) -> list[float]:
        import torch

        from cohobate.fast.forward_pass import forward

        with torch.inference_mode():
            # the last token predicts nothing that is wanted
            texts = [[*each.context, *each.continuation[:-1]] for each in batch]
            ids_BS = pad_right(texts, 0).to(self.model.device)
            # a token is predicted one position before its own
            places = [
                row * ids_BS.shape[1] + len(each.context) - 1 + n
                for row, each in enumerate(batch)
                for n in range(len(each.continuation))
            ]
            positions_N = torch.tensor(places, device=ids_BS.device)
            targets_N = torch.tensor([n for each in batch for n in each.continuation])
            images = [each.images for each in batch]
            hidden_ND = forward(self.model, ids_BS, positions_N, images=images).last_hidden_ND
            losses_N = self._losses(hidden_ND, targets_N.to(ids_BS.device))
        means = torch.split(losses_N, [len(each.continuation) for each in batch])
        return [float(part.double().mean()) for part in means]

    def _losses(self, hidden_ND: "Tensor", targets_N: "Tensor") -> "Tensor":
        import torch
        from torch.nn import functional as F

        from cohobate.models.lm_head import Head

        head, bias_V = Head.of(self.model), suppression_bias(self.model)

        def logits_of(hidden_ND: "Tensor") -> "Tensor":
            logits_NV = head.logits(hidden_ND)
            return logits_NV if bias_V is None else logits_NV + bias_V[: logits_NV.shape[-1]]

        # the logits of all answers at once would be the largest tensor here
        parts = (torch.split(whole, _HEAD_TOKENS) for whole in (hidden_ND, targets_N))
        chunks = zip(*parts, strict=True)
        return torch.cat(
            [F.cross_entropy(logits_of(h), t, reduction="none").cpu() for h, t in chunks]
        )


def _windows(rows: Iterable[Row]) -> Iterator[list[Row]]:
    rest = iter(rows)
    while window := list(islice(rest, _WINDOW)):
        yield window
