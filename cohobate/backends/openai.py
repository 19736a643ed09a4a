"""The backend `openai`: a teacher behind any OpenAI-compatible service, one request per prompt.

Every answer is yielded as it arrives, and no new prompt is started until the caller has written it
to the ledger; requests in flight go on. A kill at any moment loses no more than these.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from cohobate.backends.api_errors import RefusedError, ReplyError, RetryableError, fix_in_reason
from cohobate.backends.endpoint import Endpoint, ServiceAddress
from cohobate.backends.prices import Budget, Price, most_tokens_sent
from cohobate.backends.rate_limit import Limits, RateLimiter
from cohobate.backends.requests import NoAnswer, Outcomes, State, TeacherRequest
from cohobate.backends.service_record import ServiceRecord
from cohobate.errors import UserError
from cohobate.generation.requests import Answer, Decoding
from cohobate.progress import say

if TYPE_CHECKING:
    from tenacity import RetryCallState


class OpenAI(Endpoint):
    """A service that gets one request per prompt."""

    type: Literal["openai"]
    limits: Limits = Limits()
    """Rate limits."""
    attempts: int = Field(8, ge=1)
    """Most attempts for one answer; after a reply that the service may charge for, one more."""
    backoff: float = Field(30.0, ge=0)
    """Most seconds between attempts, where the service does not say how long to wait."""
    longest_wait: float = Field(300.0, ge=0)
    """Longest pause in seconds that a service may request; a longer one ends the run."""

    def run(
        self, address: ServiceAddress, budget: Budget, answered_before: bool = False
    ) -> "OpenAIRun":
        """Return a run against the service."""
        return OpenAIRun(self, address, budget, answered_before)


class OpenAIRun:
    """A run against one service, with its rate limiter, budget and deadline."""

    def __init__(
        self, params: OpenAI, address: ServiceAddress, budget: Budget, answered_before: bool = False
    ) -> None:
        self.params, self.address, self.budget = params, address, budget
        self.service = address.service()
        self.limiter = RateLimiter(params.limits)
        self.price = params.price or Price()
        self.deadline = time.monotonic() + (params.run_seconds or float("inf"))
        self.record = ServiceRecord(answered_before)
        self.sent: dict[str, float] = {}
        """The most that each request in flight can cost, by key."""
        self.stopped: UserError | None = None

    async def stream(
        self, requests: Sequence[TeacherRequest], decoding: Decoding
    ) -> AsyncGenerator[Outcomes]:
        """Yield outcomes as they arrive, several together where they arrived together.

        Raises:
            UserError: the service cannot be used, or deadline or budget are reached; all
                answers have been yielded by then.
        """
        if self.params.price and any(request.prompt for request in requests):
            say(
                self.price.estimate(
                    (request.prompt for request in requests), self.params.billed(decoding)
                )
            )
        waiting, running = deque(requests), dict[asyncio.Task[Answer | NoAnswer], TeacherRequest]()
        async with self.address.client() as self.client:
            try:
                while waiting or running:
                    self._start(waiting, running, decoding)
                    # nothing may be sent any more: the budget is used up, or an error stops the run
                    if not running:
                        break
                    left = self.deadline - time.monotonic()
                    done, _ = await asyncio.wait(
                        running,
                        timeout=None if left == float("inf") else max(0.0, left),
                        return_when=asyncio.FIRST_COMPLETED,
                    )
                    ended = {running.pop(task): task.result() for task in done}
                    # a retried request goes first: it is older than all that wait
                    waiting.extendleft(a for a, outcome in ended.items() if _is_retried(outcome))
                    if outcomes := self.record.settle(ended):
                        yield outcomes
                    if (waiting or running) and time.monotonic() >= self.deadline:
                        yield self._cut_off()
                        raise self._late(len(waiting) + len(running))
            finally:
                for task in running:
                    task.cancel()
        # after the loop: what was in flight has been waited for, yielded and paid
        if self.stopped:
            raise self.stopped
        if waiting:
            raise self.budget.exhausted(len(waiting))
        if outcomes := self.record.remaining():
            yield outcomes

    def _start(
        self,
        waiting: deque[TeacherRequest],
        running: dict[asyncio.Task[Answer | NoAnswer], TeacherRequest],
        decoding: Decoding,
    ) -> None:
        """Send as many of the waiting requests as rate limit and budget allow."""
        while waiting and not self.stopped and len(running) < self.limiter.at_once:
            max_cost = self.price.upper_bound(waiting[0], self.params.billed(decoding))
            if not self.budget.allows(max_cost):
                return
            self.budget.reserved += max_cost
            request = waiting.popleft()
            self.record.add(request)
            running[asyncio.create_task(self._answer(request, decoding, max_cost))] = request

    async def _answer(
        self, request: TeacherRequest, decoding: Decoding, max_cost: float
    ) -> Answer | NoAnswer:
        """Send until there is an answer, a refusal or a charge; add the cost to the budget."""
        try:
            answer = await self._retrying(request, decoding, max_cost)
        except (RetryableError, RefusedError, UserError) as error:
            outcome = self._unanswered(request, error, max_cost)
            self.budget.spent += outcome.cost
            return outcome
        finally:
            self.budget.reserved -= max_cost
        self.budget.spent += answer.usage.cost if answer.usage else 0.0
        return answer

    def _unanswered(self, request: TeacherRequest, error: Exception, max_cost: float) -> NoAnswer:
        """Return the outcome of a prompt without an answer; stop the run if it is hopeless."""
        if isinstance(error, UserError):
            self.stopped = self.stopped or error
            return NoAnswer(str(error))
        assert isinstance(error, RetryableError | RefusedError)
        cost = max_cost if error.cost is None else error.cost
        reason = self.service.redact(str(error))
        reply = error.reply and self.service.redact(error.reply)
        if isinstance(error, RefusedError):
            # one refusal says little; a row of them says that the service refuses all
            self._stop_after(self.record.on_refusal(request, error.certain, cost), error)
            state: State = "refused" if error.certain else "doubtful"
            return NoAnswer(reason, cost, reply, reply is not None, state)
        # retried by `stream`, not here: the cost is in the ledger before the next attempt
        if error.may_be_charged and self.record.may_retry(request, self.params.attempts):
            return NoAnswer(reason, cost, reply, error.whole, "retried")
        self._stop_after(self.record.on_failure(request), error)
        state = "refused" if error.whole else "failed"
        return NoAnswer(reason, cost, reply, error.whole, state)

    def _stop_after(self, in_a_row: int, error: Exception) -> None:
        """Stop the run where too many prompts in a row got no answer."""
        if not in_a_row or self.stopped:
            return
        reason, fix = self.service.redact(str(error)), "repeat the command when the service works"
        if isinstance(error, RefusedError):
            fix = "check generate.template, and whether this model answers such prompts"
        self.stopped = UserError(
            f"{in_a_row} prompts in a row got no answer; the last: {reason}",
            where=self.service.url,
            fix=fix_in_reason(reason) or f"{fix}; finished answers are kept",
        )

    async def _retrying(
        self, request: TeacherRequest, decoding: Decoding, max_cost: float
    ) -> Answer:
        from tenacity import AsyncRetrying, retry_if_exception

        def worth_it(error: BaseException) -> bool:
            again = isinstance(error, RetryableError) and not error.may_be_charged
            # `allows(0.0)` is false where replies cost more than was reserved for them
            return again and not self.stopped and self.budget.allows(0.0)

        retrying = AsyncRetrying(
            stop=lambda _: self.record.tries[request.key] >= self.params.attempts,
            wait=self._pause,
            retry=retry_if_exception(worth_it),
            reraise=True,
        )
        return await retrying(self._try, request, decoding, max_cost)

    async def _try(self, request: TeacherRequest, decoding: Decoding, max_cost: float) -> Answer:
        """Send one request."""
        from openai import OpenAIError

        body = self.params.body(self.address.model, request, decoding)
        # `sent` is the time after the wait: requests of one time halve the window once
        sent = await self.limiter.acquire(most_tokens_sent(request) + decoding.max_tokens)
        self.record.tries[request.key] += 1
        self.sent[request.key] = max_cost
        try:
            async with asyncio.timeout(self.params.request_seconds):
                content, headers = await self._post(self.params.path_of(request), body)
            answer = self.params.parse_answer(content, request, decoding, headers=headers)
        except TimeoutError:
            # a service that is slow is overloaded, and may charge for what it did not deliver
            self.limiter.on_overload(sent, None)
            seconds = f"{self.params.request_seconds:g} s"
            reason = f"no complete answer within {seconds}: raise generate.backend.request_seconds"
            raise RetryableError(reason, cost=None) from None
        except (OpenAIError, ReplyError) as error:
            classified = self.service.classify(error, self.record.past, body)
            if isinstance(classified, RetryableError):
                if (classified.after or 0.0) > self.params.longest_wait:
                    raise self.service.too_long(classified.after or 0.0) from None
                if classified.overloaded:
                    self.limiter.on_overload(sent, classified.after)
            raise classified from None
        finally:
            # only requests without an outcome may be charged unseen (`_cut_off`)
            del self.sent[request.key]
        self.limiter.on_reply()
        self.record.on_answer(request)
        return answer

    async def _post(self, path: str, body: dict[str, object]) -> tuple[bytes, Mapping[str, str]]:
        import httpx2

        raw = await self.client.post(path, body=body, cast_to=httpx2.Response)
        return raw.content, raw.headers

    def _pause(self, state: "RetryCallState") -> float:
        """Return the seconds until the next attempt: as the service asks, else growing."""
        from tenacity import wait_random_exponential

        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, RetryableError) and error.after is not None:
            return error.after
        return wait_random_exponential(max=self.params.backoff)(state)

    def _cut_off(self) -> Outcomes:
        """Return the requests in flight as failures: the service may charge for them."""
        return {
            key: NoAnswer("cut off at the end of run_seconds", max_cost)
            for key, max_cost in self.sent.items()
        }

    def _late(self, left: int) -> UserError:
        return UserError(
            f"the limit of {self.params.run_seconds:.0f} s is reached, and {left} prompts have no "
            "answer yet",
            where="params.yaml, generate.backend.run_seconds",
            fix="repeat the command: finished answers are kept",
        )


def _is_retried(outcome: Answer | NoAnswer) -> bool:
    return isinstance(outcome, NoAnswer) and outcome.state == "retried"
