"""The backend `openai`: a teacher behind any OpenAI-compatible service, asked prompt by prompt.

Every answer is yielded as it comes, and its place is given to the next prompt only once the stage
has it safe in the ledger: a kill at any moment loses no more than what was in flight.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from tasks.errors import UserError
from tasks.generate.asks import Ask, Batch, Unanswered
from tasks.generate.endpoint import Endpoint, Place
from tasks.generate.failures import Again, Refused
from tasks.generate.pace import Limits, Pace
from tasks.generate.prices import Budget, Price, most_tokens
from tasks.models.decoding import Answer, Bought, Decoding
from tasks.progress import say

if TYPE_CHECKING:
    from tenacity import RetryCallState

_IN_A_ROW = 5  # prompts that fail one after the other before the service is taken to be down


class OpenAI(Endpoint):
    """A service that is asked prompt by prompt."""

    type: Literal["openai"]
    limits: Limits = Limits()
    """How much the service may be asked."""
    attempts: int = Field(8, ge=1)
    """Most tries for one answer."""
    backoff: float = Field(30.0, ge=0)
    """Most seconds between tries, where the service does not say how long to wait."""
    longest_wait: float = Field(300.0, ge=0)
    """Most seconds that a service may ask to wait; beyond them the run ends."""

    def run(self, place: Place, budget: Budget) -> "Purchase":
        """Return a run against the service."""
        return Purchase(self, place, budget)


class Purchase:
    """A run against one service: its pace, its budget, its deadline."""

    def __init__(self, params: OpenAI, place: Place, budget: Budget) -> None:
        self.params, self.place, self.budget = params, place, budget
        self.service = place.service()
        self.pace = Pace(params.limits)
        self.price = params.price or Price()
        self.end = time.monotonic() + (params.run_seconds or float("inf"))
        self.failed_in_a_row = 0
        self.stopped: UserError | None = None

    async def stream(self, asks: Sequence[Ask], how: Decoding) -> AsyncGenerator[Batch]:
        """Yield outcomes as they come, several together where they came together.

        Raises:
            UserError: the service cannot be used, or deadline or budget are reached; all that was
                answered has been yielded by then.
        """
        if self.params.price:
            say(self.price.outlook((ask.prompt for ask in asks), how))
        waiting, running = deque(asks), dict[asyncio.Task[Answer | Unanswered], Ask]()
        async with self.place.client() as self.client:
            try:
                while waiting or running:
                    self._start(waiting, running, how)
                    if not running:
                        break
                    left = self.end - time.monotonic()
                    done, _ = await asyncio.wait(
                        running,
                        timeout=None if left == float("inf") else max(0.0, left),
                        return_when=asyncio.FIRST_COMPLETED,
                    )
                    if outcomes := {running.pop(task).key: task.result() for task in done}:
                        yield outcomes
                    if (waiting or running) and time.monotonic() >= self.end:
                        raise self._late(len(waiting) + len(running))
            finally:
                for task in running:
                    task.cancel()
        if self.stopped:
            raise self.stopped
        if waiting:
            raise self.budget.exhausted(len(waiting))

    def _start(
        self,
        waiting: deque[Ask],
        running: dict[asyncio.Task[Answer | Unanswered], Ask],
        how: Decoding,
    ) -> None:
        """Send as many of the waiting asks as pace and budget allow."""
        while waiting and not self.stopped and len(running) < self.pace.at_once:
            if not self.budget.allows(most := self.price.bound(waiting[0], how)):
                return
            self.budget.reserved += most
            ask = waiting.popleft()
            running[asyncio.create_task(self._answer(ask, how))] = ask

    async def _answer(self, ask: Ask, how: Decoding) -> Answer | Unanswered:
        """Ask until there is an answer, or none is to be hoped for; tell the budget."""
        thrown_away = 0.0

        async def attempt() -> Answer:
            nonlocal thrown_away
            try:
                return await self._try(ask, how)
            except (Again, Refused) as error:
                thrown_away += error.cost
                self.budget.spent += error.cost
                raise

        try:
            answer = await self._retrying(attempt)
        except (Again, Refused, UserError) as error:
            self._failed(error)
            return Unanswered(str(error), thrown_away)
        finally:
            self.budget.reserved -= self.price.bound(ask, how)
        self.failed_in_a_row = 0
        bought = answer.bought or Bought(0, 0, 0.0)
        self.budget.spent += bought.cost
        return answer._replace(bought=bought._replace(cost=bought.cost + thrown_away))

    async def _retrying(self, attempt: Callable[[], Awaitable[Answer]]) -> Answer:
        from tenacity import AsyncRetrying, retry_if_exception, stop_after_attempt

        def worth_it(error: BaseException) -> bool:
            return isinstance(error, Again) and not self.stopped and self.budget.allows(0.0)

        retrying = AsyncRetrying(
            stop=stop_after_attempt(self.params.attempts),
            wait=self._pause,
            retry=retry_if_exception(worth_it),
            reraise=True,
        )
        return await retrying(attempt)

    async def _try(self, ask: Ask, how: Decoding) -> Answer:
        """Send one request."""
        from openai import OpenAIError

        body = self.params.body(self.place.model, ask, how)
        sent = await self.pace.turn(most_tokens(ask.prompt) + how.max_tokens)
        try:
            async with asyncio.timeout(self.params.request_seconds):
                content = await self._post(body)
        except (OpenAIError, TimeoutError, ValueError) as error:
            meaning = self.service.meaning(error)
            if isinstance(meaning, Again):
                if (meaning.after or 0.0) > self.params.longest_wait:
                    raise self.service.too_long(meaning.after or 0.0) from None
                if meaning.congested:
                    self.pace.congested(sent, meaning.after)
            raise meaning from None
        answer = self.params.accepted(content, ask, how)
        self.pace.answered()
        return answer

    async def _post(self, body: dict[str, object]) -> bytes:
        import httpx2

        raw = await self.client.post(self.params.path, body=body, cast_to=httpx2.Response)
        return raw.content

    def _pause(self, state: "RetryCallState") -> float:
        """Return the seconds until the next try: as the service asks, or longer each time."""
        from tenacity import wait_random_exponential

        error = state.outcome.exception() if state.outcome else None
        asked = error.after if isinstance(error, Again) else None
        return wait_random_exponential(max=self.params.backoff)(state) if asked is None else asked

    def _failed(self, error: Exception) -> None:
        """Note a prompt without an answer; several in a row mean that the service is down."""
        self.failed_in_a_row += 1
        if isinstance(error, UserError):
            self.stopped = self.stopped or error
        elif self.failed_in_a_row >= _IN_A_ROW and not self.stopped:
            self.stopped = UserError(
                f"{_IN_A_ROW} prompts in a row got no answer; the last: {error}",
                where=self.place.url,
                mend="run again when the service works: what is answered stays",
            )

    def _late(self, left: int) -> UserError:
        return UserError(
            f"{self.params.run_seconds:.0f} s are over and {left} prompts are not answered yet",
            where="params.yaml, generate.backend.run_seconds",
            mend="run again: what is answered stays",
        )
