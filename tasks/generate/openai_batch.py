"""The backend `openai-batch`: whole files of prompts, answered within a day at a lower price.

The service keeps the state: batches that an earlier run left behind are found by the mark that they
bear, waited for and collected before anything else is bought. So there is nothing here that a kill
could leave wrong. Lines that failed are handed in again.
"""

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pydantic import Field

from tasks.errors import UserError
from tasks.generate.asks import Ask, Batch, Unanswered
from tasks.generate.endpoint import Endpoint, Place
from tasks.generate.failures import Again, Refused
from tasks.generate.prices import Budget, Price
from tasks.models.decoding import Answer, Decoding
from tasks.progress import say

if TYPE_CHECKING:
    from openai.types import Batch as Remote

T = TypeVar("T")
_ENDED = ("completed", "failed", "expired", "cancelled")
_MARK = "cohobate"
_NEWEST = 100  # batches that are looked through for what was left behind
_TRIES = 8  # of one request


class OpenAIBatch(Endpoint):
    """A service that is handed files."""

    type: Literal["openai-batch"]
    poll_seconds: float = Field(60.0, gt=0)
    """Seconds between looks at a batch."""
    file_rows: int = Field(10_000, ge=1, le=50_000)
    """Most prompts of one file."""
    attempts: int = Field(3, ge=1)
    """How often what failed is handed in again."""

    @property
    def share(self) -> float:
        """Share of the full price that its answers cost."""
        return self.price.batch if self.price else 1.0

    def run(self, place: Place, budget: Budget) -> "HandIn":
        """Return a run against the service."""
        return HandIn(self, place, budget)


class HandIn:
    """A run against one service."""

    def __init__(self, params: OpenAIBatch, place: Place, budget: Budget) -> None:
        self.params, self.place, self.budget = params, place, budget
        self.service = place.service()
        self.price = params.price or Price()
        self.end = time.monotonic() + (params.run_seconds or float("inf"))
        self.found: dict[str, Any] | None = None
        """Lines of batches that earlier runs left behind, by the key of their ask."""

    async def stream(self, asks: Sequence[Ask], how: Decoding) -> AsyncGenerator[Batch]:
        """Yield what earlier batches hold, then hand in the rest until it is answered or given up.

        Raises:
            UserError: the service cannot be used, or deadline or budget are reached.
        """
        missing, tries = {ask.key: ask for ask in asks}, Counter[str]()
        async with self.place.client() as self.client:
            if self.found is None:
                self.found = await self._left_behind()
            lines = self.found
            while missing:
                both = missing.keys() & lines.keys()
                outcomes = {k: self._outcome(lines[k], missing[k], how) for k in sorted(both)}
                if outcomes:
                    yield outcomes
                for key, outcome in outcomes.items():
                    tries[key] += lines is not self.found
                    if isinstance(outcome, Answer) or tries[key] >= self.params.attempts:
                        del missing[key]
                if missing:
                    lines = await self._bought(list(missing.values()), how)

    async def _bought(self, asks: list[Ask], how: Decoding) -> dict[str, Any]:
        """Hand in files, as far as the budget allows, and wait for them; return their lines."""
        share, reserved = self.price.batch, 0.0
        allowed: list[Ask] = []
        for ask in asks:
            if not self.budget.allows(most := self.price.bound(ask, how, share)):
                break
            self.budget.reserved += most
            reserved += most
            allowed.append(ask)
        if not allowed:
            raise self.budget.exhausted(len(asks))
        size = self.params.file_rows
        if self.params.price:
            say(self.price.outlook((ask.prompt for ask in allowed), how, share))
        files = [allowed[start : start + size] for start in range(0, len(allowed), size)]
        remotes = [await self._handed_in(file, how) for file in files]
        lines: dict[str, Any] = {ask.key: None for ask in allowed}
        for remote in remotes:
            lines |= await self._lines(await self._ended(remote))
        self.budget.reserved -= reserved
        return lines

    async def _handed_in(self, asks: list[Ask], how: Decoding) -> "Remote":
        """Upload a file of requests and have the service start on it."""
        model, url = self.place.model, f"/v1{self.params.path}"
        requests = [
            {
                "custom_id": a.key,
                "method": "POST",
                "url": url,
                "body": self.params.body(model, a, how),
            }
            for a in asks
        ]
        content = "".join(json.dumps(request) + "\n" for request in requests).encode()
        named = ("asks.jsonl", content)
        file = await self._call(lambda: self.client.files.create(file=named, purpose="batch"))
        remote = await self._call(
            lambda: self.client.batches.create(
                input_file_id=file.id,
                endpoint=url,  # type: ignore[arg-type]
                completion_window="24h",
                metadata={_MARK: model},
            )
        )
        say(f"handed in {len(asks)} prompts as {remote.id}")
        return remote

    async def _ended(self, remote: "Remote") -> "Remote":
        """Look at a batch now and then until it has ended.

        Raises:
            UserError: the service refuses the file, or the run's time is over.
        """
        while remote.status not in _ENDED:
            if time.monotonic() + self.params.poll_seconds > self.end:
                raise UserError(
                    f"{self.params.run_seconds:.0f} s are over and {remote.id} is not answered yet",
                    where="params.yaml, generate.backend.run_seconds",
                    mend="run again: the service goes on, and its answers are collected then",
                )
            await asyncio.sleep(self.params.poll_seconds)
            remote = await self._call(partial(self.client.batches.retrieve, remote.id))
        if remote.status == "failed":
            told = remote.errors.data if remote.errors and remote.errors.data else []
            reason = told[0].message if told else "no reason given"
            raise UserError(
                f"the service refuses the batch {remote.id}: {reason}", where=self.place.url
            )
        return remote

    async def _lines(self, remote: "Remote") -> dict[str, Any]:
        """Return the lines of a batch's output and error files; one cut off or garbled is left."""
        lines: dict[str, Any] = {}
        for file in filter(None, (remote.error_file_id, remote.output_file_id)):
            content = await self._call(partial(self.client.files.content, file))
            for text in content.content.splitlines():
                with suppress(ValueError, KeyError, TypeError):
                    line = json.loads(text)
                    lines[line["custom_id"]] = line["response"]
        return lines

    async def _left_behind(self) -> dict[str, Any]:
        """Return the lines of the newest batches that bear the mark; wait for those under way."""
        listed = await self._call(lambda: self.client.batches.list(limit=_NEWEST))
        lines: dict[str, Any] = {}
        for remote in reversed(listed.data):  # oldest first: a later line of the same key counts
            if (remote.metadata or {}).get(_MARK) == self.place.model and remote.status != "failed":
                lines |= await self._lines(await self._ended(remote))
        return lines

    def _outcome(self, response: Any, ask: Ask, how: Decoding) -> Answer | Unanswered:
        """Return what a line says."""
        try:
            status, body = response["status_code"], response["body"]
        except (KeyError, TypeError):
            return Unanswered("the line holds no reply")
        if status != 200:
            return Unanswered(f"{status}: {str(body)[:300]}")
        try:
            answer = self.params.accepted(json.dumps(body).encode(), ask, how, self.price.batch)
        except (Again, Refused) as error:
            self.budget.spent += error.cost
            return Unanswered(str(error), error.cost)
        self.budget.spent += answer.bought.cost if answer.bought else 0.0
        return answer

    async def _call(self, send: Callable[[], Awaitable[T]]) -> T:
        """Send a request, again where that may help.

        Raises:
            UserError: it does not help.
        """
        from openai import OpenAIError
        from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt
        from tenacity import wait_random_exponential as pause

        async def once() -> T:
            try:
                async with asyncio.timeout(self.params.request_seconds):
                    return await send()
            except (OpenAIError, TimeoutError, ValueError) as error:
                raise self.service.meaning(error) from None

        retrying = AsyncRetrying(
            stop=stop_after_attempt(_TRIES),
            wait=pause(max=30),
            retry=retry_if_exception_type(Again),
            reraise=True,
        )
        try:
            return await retrying(once)
        except (Again, Refused) as error:
            raise UserError(
                f"the batch service fails: {error}", where=self.place.url, mend="run again later"
            ) from None
