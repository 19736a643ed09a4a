"""One model for many callers: requests that wait are answered together."""

import queue
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from functools import cached_property
from typing import NamedTuple

from cohobate.data.messages import Prompt
from cohobate.errors import UserError
from cohobate.evaluation.tested_checkpoint import ModelUnderTest
from cohobate.generation.requests import Answer, Decoding
from cohobate.serving.openai_api import Query, Served
from cohobate.serving.token_logprobs import LogprobGenerator, ServedToken


class TooLongError(UserError):
    """A prompt and its answer do not fit into the model's context."""


class _Waiting(NamedTuple):
    query: Query
    future: "Future[list[Served]]"


class BatchedModel:
    """A model and the thread that answers; causal language models and classifiers alike."""

    def __init__(self, tested: ModelUnderTest) -> None:
        """Start the thread."""
        self._tested = tested
        self._waiting: queue.SimpleQueue[_Waiting] = queue.SimpleQueue()
        limit = getattr(tested.model.config, "max_position_embeddings", None)
        self.context: int | None = limit
        """Most tokens of a prompt and its answer."""
        threading.Thread(target=self._answer_forever, daemon=True).start()

    def answers(self, query: Query) -> list[Served]:
        """Return the answers of a query, each prompt's samples together.

        Raises:
            TooLongError: a prompt and its answer do not fit into the model's context.
            UserError: the model gives no log-probabilities of tokens, and the query wants them.
        """
        self._check_length(query)
        if query.top_logprobs is not None and not self._tested.scores_tokens:
            raise UserError("logprobs: the model generates no tokens", where="logprobs")
        future: Future[list[Served]] = Future()
        self._waiting.put(_Waiting(query, future))
        return future.result()

    def _check_length(self, query: Query) -> None:
        longest = max(map(len, self._tested.prompt_ids(query.prompts)), default=0)
        if self.context is not None and longest + query.decoding.max_tokens > self.context:
            raise TooLongError(
                f"{longest} tokens of the prompt and max_tokens of {query.decoding.max_tokens} do "
                f"not fit into the context of {self.context}",
                where="max_tokens",
                fix=f"max_tokens of at most {max(0, self.context - longest)}",
            )

    def _answer_forever(self) -> None:
        while True:
            waiting = [self._waiting.get()]
            while not self._waiting.empty():  # what came while the last batch ran
                waiting.append(self._waiting.get())
            groups: dict[tuple[Decoding, int | None, int], list[_Waiting]] = {}
            for number, one in enumerate(waiting):
                decoding = one.query.decoding
                # a sample's random numbers come from its place: it must not depend on the others
                apart = number if decoding.temperature else -1
                groups.setdefault((decoding, one.query.top_logprobs, apart), []).append(one)
            for (decoding, count, _), together in groups.items():
                self._answer(decoding, count, together)

    def _answer(self, decoding: Decoding, count: int | None, together: Sequence[_Waiting]) -> None:
        prompts: list[Prompt] = []
        for one in together:
            prompts += [prompt for prompt in one.query.prompts for _ in range(one.query.samples)]
        try:
            served = self._served(prompts, decoding, count)
        except BaseException as error:  # every caller waits for an answer or an error
            for one in together:
                one.future.set_exception(error)
            return
        start = 0
        for one in together:
            end = start + len(one.query.prompts) * one.query.samples
            one.future.set_result([each.cut(one.query.stop) for each in served[start:end]])
            start = end

    def _served(
        self, prompts: Sequence[Prompt], decoding: Decoding, count: int | None
    ) -> list[Served]:
        """Return the answers; with `count` likeliest tokens at each of theirs, if it is given."""
        answers: dict[int, Answer] = {}
        tokens: dict[int, tuple[ServedToken, ...]] = {}
        if count is None:
            answers |= self._tested.answers(prompts, decoding)
        else:
            for n, answer, own in self._logprobs.answers(prompts, decoding, count):
                answers[n], tokens[n] = answer, own
        lengths = map(len, self._tested.prompt_ids(prompts))
        return [
            Served(
                answers[n],
                length,
                min(self._tokens(answers[n]), decoding.max_tokens),
                tokens=tokens.get(n),
            )
            for n, length in enumerate(lengths)
        ]

    @cached_property
    def _logprobs(self) -> LogprobGenerator:
        return LogprobGenerator(self._tested.model, self._tested.tokenizer)

    def _tokens(self, answer: Answer) -> int:
        """Return the tokens of an answer, the closing one included, from its text."""
        text = (answer.reasoning or "") + answer.text
        ids = self._tested.tokenizer(text, add_special_tokens=False).input_ids
        return len(ids) + (answer.finish == "stop")
