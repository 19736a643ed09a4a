"""Log-probabilities of what a served model generates, in the forms of OpenAI's replies.

A token is named by its bytes, which tell it from all others where the tokenizer is of whole bytes;
the token that closes an answer is listed too, as vLLM does.
"""

from collections.abc import Iterator, Mapping, Sequence
from math import isfinite
from typing import TYPE_CHECKING, Any, NamedTuple

from cohobate.backends.token_names import bytes_name
from cohobate.data.messages import Prompt
from cohobate.generation.requests import Answer, Completion, Decoding
from cohobate.models.token_bytes import bytes_by_id

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class TokenLogprob(NamedTuple):
    """A token as its bytes, and its log-probability at temperature 1."""

    data: bytes
    logprob: float

    def chat_entry(self) -> dict[str, Any]:
        """Return the token as the chat API has it."""
        text = self.data.decode("utf-8", "replace")
        return {"token": text, "logprob": self.logprob, "bytes": list(self.data)}


class ServedToken(NamedTuple):
    """A generated token, and the likeliest ones at its place, the likeliest first."""

    own: TokenLogprob
    likeliest: tuple[TokenLogprob, ...]


class LogprobGenerator:
    """Generates answers with the log-probabilities of their tokens.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer.
    """

    def __init__(self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> None:
        self.model, self.tokenizer = model, tokenizer
        self._bytes = bytes_by_id(tokenizer)
        self._size = max(self._bytes) + 1  # the head can have ids of padding

    def answers(
        self, prompts: Sequence[Prompt], decoding: Decoding, count: int
    ) -> Iterator[tuple[int, Answer, tuple[ServedToken, ...]]]:
        """Yield the position of each prompt, its answer and the answer's tokens.

        `count` likeliest tokens are listed at each.
        """
        from cohobate.generation.decoding import (
            generate_completions,
            plain_requests,
            suppression_bias,
            to_answer,
        )

        bias_V = suppression_bias(self.model)

        def measure(logits_BV: "Tensor") -> "Mapping[str, Tensor]":
            # of what it generates from, as each token's own is
            if bias_V is not None:
                logits_BV = logits_BV + bias_V[: logits_BV.shape[-1]]
            logp_BV = logits_BV.log_softmax(-1)[:, : self._size]
            logp_BK, ids_BK = logp_BV.topk(min(count, logp_BV.shape[-1]))
            return {"ids": ids_BK, "logp": logp_BK}

        requests = plain_requests(self.tokenizer, prompts)
        generated = generate_completions(
            self.model, self.tokenizer, requests, decoding, measure=measure
        )
        for n, completion in generated:
            answer = to_answer(self.tokenizer, completion, requests[n])
            yield n, answer, tuple(self._tokens(completion))

    def _tokens(self, completion: Completion) -> Iterator[ServedToken]:
        parts = zip(completion.ids, completion.logprobs, completion.signals, strict=True)
        for token, logprob, likeliest in parts:
            pairs = zip(likeliest["ids"].tolist(), likeliest["logp"].tolist(), strict=True)
            # JSON has no infinity, which suppressed tokens have
            others = tuple(self._named(other, value) for other, value in pairs if isfinite(value))
            yield ServedToken(self._named(token, logprob), others)

    def _named(self, token: int, logprob: float) -> TokenLogprob:
        return TokenLogprob(self._bytes.get(token, b""), logprob)


def chat_logprobs(tokens: Sequence[ServedToken]) -> dict[str, Any]:
    """Return `logprobs` of a choice of the chat API."""
    return {
        "content": [
            token.own.chat_entry() | {"top_logprobs": [one.chat_entry() for one in token.likeliest]}
            for token in tokens
        ]
    }


def completion_logprobs(tokens: Sequence[ServedToken]) -> dict[str, Any]:
    """Return `logprobs` of a choice of the completions API."""
    return {
        "tokens": [bytes_name(token.own.data) for token in tokens],
        "token_logprobs": [token.own.logprob for token in tokens],
        "top_logprobs": [
            {bytes_name(one.data): one.logprob for one in token.likeliest} for token in tokens
        ],
    }
