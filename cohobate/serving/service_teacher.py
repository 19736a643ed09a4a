"""The teacher of a route, behind its endpoint: its answers are bought through a ledger.

The ledger is that of the teacher's routed requests, beside the one of the rounds: answers of either
are never bought again by the other, and each has a cap of its own.
"""

import asyncio
import threading
from collections.abc import Mapping, Sequence

from cohobate.backends.endpoint import Endpoint, ServiceAddress, identity_of
from cohobate.backends.ledger import Ledger
from cohobate.backends.ledger_storage import routed_storage_for
from cohobate.backends.openai import OpenAI
from cohobate.backends.prices import Budget, Price, likely_tokens
from cohobate.backends.rate_limit import RateLimiter
from cohobate.backends.requests import NoAnswer, TeacherRequest
from cohobate.backends.run_teacher import make_request, missing_requests
from cohobate.data.messages import Prompt
from cohobate.data.records import Row, row_id
from cohobate.errors import UserError
from cohobate.generation.requests import Decoding, split_reasoning
from cohobate.progress import reporting_to
from cohobate.serving.openai_api import NoTeacherError, Query, Served


class ServiceTeacher:
    """A teacher behind an endpoint, for requests of many threads.

    Args:
        backend: how its answers are requested; of a batch backend, price and form alone.
        address: where it is.
        ledger: folder or S3 prefix of the ledgers, as `generate.ledger` has it.
        cap: most US dollars of all that was bought through its ledger of routed requests.
    """

    def __init__(
        self, backend: Endpoint, address: ServiceAddress, ledger: str, cap: float | None
    ) -> None:
        self._address, self._backend = address, _one_by_one(backend)
        self._price = self._backend.price or Price()
        address.secret()  # a missing key is refused now
        self._ledger = Ledger(routed_storage_for(identity_of(address), ledger)).__enter__()
        self._counted, self._lock = self._ledger.spent, threading.Lock()
        self._budget = Budget(cap, self._ledger.spent)
        self._limiter = RateLimiter(self._backend.limits)
        self._pending: dict[str, asyncio.Event] = {}
        """By key, of what is being bought: set at its end."""
        self._slots = asyncio.Semaphore(self._backend.limits.at_once)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Release the ledger."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._ledger.storage.close()

    def answers(self, query: Query) -> list[Served]:
        """Return the answers of a query, each prompt's samples together.

        Raises:
            NoTeacherError: one of them has none.
        """
        future = asyncio.run_coroutine_threadsafe(self._answers(query), self._loop)
        return [one.cut(query.stop) for one in future.result()]

    def value(self, prompt_tokens: int, answer_tokens: int) -> float:
        """Return the US dollars that an answer of so many tokens costs."""
        return self._price.of(prompt_tokens, answer_tokens)

    def new_cost(self) -> float:
        """Return the US dollars that were paid since the last call."""
        with self._lock:
            cost, self._counted = self._ledger.spent - self._counted, self._ledger.spent
        return cost

    async def _answers(self, query: Query) -> list[Served]:
        requests = [
            self._request(query, prompt, sample)
            for prompt in query.prompts
            for sample in range(query.samples)
        ]
        # the same prompt of two callers is bought once
        while pending := [self._pending[one.key] for one in requests if one.key in self._pending]:
            await pending[0].wait()
        missing = missing_requests(self._ledger, requests, "remember")
        failures: dict[str, str] = {}
        if missing:
            done = asyncio.Event()
            self._pending |= dict.fromkeys(missing, done)
            try:
                failures = await self._buy([*missing.values()], query.decoding)
            finally:
                for key in missing:
                    del self._pending[key]
                done.set()
        return [self._served(request, failures) for request in requests]

    def _request(self, query: Query, prompt: Prompt, sample: int) -> TeacherRequest:
        # as `generate` makes it: the next round finds the answer in the ledger
        row = Row(id=row_id(prompt), prompt=prompt)
        return make_request(self._backend, query.decoding, row, prompt, sample)

    async def _buy(self, requests: Sequence[TeacherRequest], decoding: Decoding) -> dict[str, str]:
        """Add answers to the ledger; return why requests have none, by key."""
        billed = self._backend.billed(decoding)
        if not self._budget.allows(sum(self._price.upper_bound(one, billed) for one in requests)):
            raise NoTeacherError(
                f"the cap of requests that are handed on is reached: {self._budget.spent:.4f} of "
                f"{self._budget.cap or 0:.4f} USD are spent",
                where="params.yaml, route.cap",
                fix="raise route.cap, and start cohobate serve --route again",
            )
        run = self._backend.run(self._address, self._budget, answered_before=True)
        run.limiter = self._limiter  # the service counts the requests of all callers
        failures: dict[str, str] = {}
        async with self._slots:
            try:
                with reporting_to(lambda _: None):  # `run` says what each request may cost
                    async for outcomes in run.stream(requests, decoding):
                        self._ledger.append(outcomes)  # before anything else
                        for key, outcome in outcomes.items():
                            if isinstance(outcome, NoAnswer):
                                failures[key] = outcome.reason
            except UserError as error:
                raise NoTeacherError(error.what, where=error.where, fix=error.fix) from error
        return failures

    def _served(self, request: TeacherRequest, failures: Mapping[str, str]) -> Served:
        if request.key not in self._ledger:
            reasons = {**self._ledger.refusals, **failures}
            reason = reasons.get(request.key, "no answer came")
            raise NoTeacherError(f"the teacher gave no answer: {reason}", where=self._address.model)
        answer = split_reasoning(self._ledger[request.key])
        if answer.usage:
            tokens = (answer.usage.prompt_tokens, answer.usage.answer_tokens)
        else:
            tokens = (likely_tokens(request.prompt), likely_tokens(answer.text))
        return Served(answer, *tokens)


def _one_by_one(backend: Endpoint) -> OpenAI:
    """Return the backend that sends one request per prompt; a caller waits no longer than one."""
    if not isinstance(backend, OpenAI):
        shared = {name: getattr(backend, name) for name in Endpoint.model_fields}
        alone = OpenAI(type="openai", **shared)
        alone._model = backend._model  # signals are kept as `generate` keeps them
        backend = alone
    return backend.model_copy(update={"run_seconds": backend.request_seconds})
