"""The backend `openai-batch`: files of prompts, answered within a day at a lower price.

The service keeps the state: batches of an earlier run are found by their metadata, waited for and
collected before anything is bought. So there is no local state that a kill could leave wrong. Lines
that failed are submitted again.
"""

import asyncio
import json
import time
from collections import defaultdict
from collections.abc import (
    AsyncGenerator,
    Awaitable,
    Callable,
    Sequence,
)
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pydantic import Field

from cohobate.backends.api_errors import RefusedError, RetryableError
from cohobate.backends.batch_results import BatchResults, Lines, group_outcomes, parse_line
from cohobate.backends.endpoint import Endpoint, ServiceAddress
from cohobate.backends.prices import Budget, Price
from cohobate.backends.requests import Outcomes, TeacherRequest
from cohobate.errors import UserError
from cohobate.generation.requests import Answer, Decoding
from cohobate.progress import say

if TYPE_CHECKING:
    from openai.types import Batch as RemoteBatch

T = TypeVar("T")
_ENDED = ("completed", "failed", "expired", "cancelled")
_MARK = "cohobate"
_NEWEST = 100  # batches that are searched for those of an earlier run
_ATTEMPTS = 8  # of one API request


class OpenAIBatch(Endpoint):
    """A service with a batch API."""

    type: Literal["openai-batch"]
    poll_seconds: float = Field(60.0, gt=0)
    """Seconds between two requests for the status of a batch."""
    file_rows: int = Field(10_000, ge=1, le=50_000)
    """Most prompts in one file."""
    attempts: int = Field(3, ge=1)
    """Most times that a prompt is submitted; after a reply that was charged for, once more."""

    @property
    def share(self) -> float:
        """Share of the full price that answers cost."""
        return self.price.batch if self.price else 1.0

    def run(
        self, address: ServiceAddress, budget: Budget, answered_before: bool = False
    ) -> "BatchRun":
        """Return a run against the service."""
        return BatchRun(self, address, budget, answered_before)


class BatchRun:
    """A run against one service."""

    def __init__(
        self,
        params: OpenAIBatch,
        address: ServiceAddress,
        budget: Budget,
        answered_before: bool = False,
    ) -> None:
        self.params, self.address, self.budget = params, address, budget
        self.results = BatchResults(params, params.attempts, address, budget, answered_before)
        self.service = address.service()
        self.price = params.price or Price()
        self.end = time.monotonic() + (params.run_seconds or float("inf"))
        self.earlier: Lines | None = None
        """Lines of batches of earlier runs."""

    async def stream(
        self, requests: Sequence[TeacherRequest], decoding: Decoding
    ) -> AsyncGenerator[Outcomes]:
        """Yield the results of earlier batches, then submit the rest until nothing is missing.

        Raises:
            UserError: the service cannot be used, or deadline or budget are reached.
        """
        missing = {request.key: request for request in requests}
        for request in requests:
            # numbered in their order, by which failures in a row are counted
            self.results.record.add(request)
        async with self.address.client() as self.client:
            if self.earlier is None:
                self.earlier = await self._earlier_lines()
            lines = self.earlier
            while missing:
                results = self.results.outcomes(lines, missing, decoding, old=lines is self.earlier)
                for outcomes in group_outcomes(results):
                    yield outcomes
                    for key, outcome in outcomes.items():
                        # what is retried stays missing, and is bought again below
                        if isinstance(outcome, Answer) or outcome.state != "retried":
                            missing.pop(key, None)
                for _, result in results:
                    # raised after all answers of the file were yielded: they are paid for
                    if isinstance(result, UserError):
                        raise result
                if missing:
                    lines = await self._buy(list(missing.values()), decoding)

    async def _buy(self, requests: list[TeacherRequest], decoding: Decoding) -> Lines:
        """Submit files, as far as the budget allows, and wait for them; return their lines."""
        share, reserved = self.price.batch, 0.0
        allowed: list[TeacherRequest] = []
        for request in requests:
            most = self.price.upper_bound(request, self.params.billed(decoding), share)
            if not self.budget.allows(most):
                break
            self.budget.reserved += most
            reserved += most
            allowed.append(request)
        if not allowed:
            raise self.budget.exhausted(len(requests))
        size = self.params.file_rows
        if self.params.price:
            billed = self.params.billed(decoding)
            say(self.price.estimate((request.prompt for request in allowed), billed, share))
        files = [allowed[start : start + size] for start in range(0, len(allowed), size)]
        # all files are submitted before any is waited for: the service works on them at once
        remotes = [await self._submit(file, decoding) for file in files]
        self.results.record.tries.update(request.key for request in allowed)
        lines: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for remote in remotes:
            for key, more in (await self._lines(await self._wait(remote))).items():
                lines[key] += more
        self.budget.reserved -= reserved
        # a prompt without a line gets an empty one, which counts as a failure
        return {request.key: lines[request.key] or [{}] for request in allowed}

    async def _submit(self, requests: list[TeacherRequest], decoding: Decoding) -> "RemoteBatch":
        """Upload a file of requests and start a batch of it."""
        model, url = self.address.model, f"/v1{self.params.path}"
        lines = [
            {
                "custom_id": a.key,
                "method": "POST",
                "url": url,
                "body": self.params.body(model, a, decoding),
            }
            for a in requests
        ]
        content = "".join(json.dumps(line) + "\n" for line in lines).encode()
        named = ("asks.jsonl", content)
        file = await self._call(lambda: self.client.files.create(file=named, purpose="batch"))
        remote = await self._call(
            lambda: self.client.batches.create(
                input_file_id=file.id,
                endpoint=url,  # type: ignore[arg-type]
                completion_window="24h",
                # by this a later run finds the batch, if this one is killed
                metadata={_MARK: model},
            )
        )
        say(f"submitted {len(requests)} prompts as batch {remote.id}")
        return remote

    async def _wait(self, remote: "RemoteBatch") -> "RemoteBatch":
        """Wait until a batch has ended.

        Raises:
            UserError: the service refuses the file, or the run's time is over.
        """
        while remote.status not in _ENDED:
            if time.monotonic() + self.params.poll_seconds > self.end:
                raise UserError(
                    f"the limit of {self.params.run_seconds:.0f} s is reached, "
                    f"and {remote.id} has not ended",
                    where="params.yaml, generate.backend.run_seconds",
                    fix="repeat the command later: the service goes on, and its answers are kept",
                )
            await asyncio.sleep(self.params.poll_seconds)
            remote = await self._call(partial(self.client.batches.retrieve, remote.id))
        # expired and cancelled batches have lines too: of what was finished, and charged
        if remote.status == "failed":
            errors = remote.errors.data if remote.errors and remote.errors.data else []
            reason = errors[0].message if errors else "no reason given"
            raise UserError(
                f"the service refuses the batch {remote.id}: {reason}", where=self.service.url
            )
        return remote

    async def _lines(self, remote: "RemoteBatch") -> Lines:
        """Return the lines of a batch's output and error files; a file with garbled ones is read
        a second time."""
        lines: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for file in filter(None, (remote.error_file_id, remote.output_file_id)):
            parsed: list[Any] = []
            # a download that broke off has a malformed last line
            for _ in range(2):
                content = await self._call(partial(self.client.files.content, file))
                parsed = [parse_line(text) for text in content.content.splitlines() if text.strip()]
                if not any("garbled" in line for line in parsed):
                    break
            for line in parsed:
                lines[str(line.get("custom_id", ""))].append(line)
        return lines

    async def _earlier_lines(self) -> Lines:
        """Return the lines of this project's newest batches; wait for those in progress."""
        listed = await self._call(lambda: self.client.batches.list(limit=_NEWEST))
        lines: dict[str, list[dict[str, Any]]] = defaultdict(list)
        # oldest first, as they were answered
        for remote in reversed(listed.data):
            if (remote.metadata or {}).get(
                _MARK
            ) == self.address.model and remote.status != "failed":
                ended = await self._wait(remote)
                try:
                    results = await self._lines(ended)
                except UserError as error:  # services delete the files of old batches
                    say(f"{remote.id}: its files no longer exist: {error.what}")
                    continue
                for key, more in results.items():
                    lines[key] += more
        return lines

    async def _call(self, send: Callable[[], Awaitable[T]]) -> T:
        """Send a request to the API, with retries.

        Raises:
            UserError: it failed for good.
        """
        from openai import OpenAIError
        from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt
        from tenacity import wait_random_exponential as pause

        async def once() -> T:
            try:
                async with asyncio.timeout(self.params.request_seconds):
                    result = await send()
                if isinstance(result, str):  # the client returns a web page as text
                    raise RefusedError("the reply is not an object of the batch API")
                return result
            except AttributeError:  # the client fails so on a page in place of a list
                raise RefusedError("the reply is not an object of the batch API") from None
            except (OpenAIError, TimeoutError, ValueError) as error:
                raise self.service.classify(error) from None

        retrying = AsyncRetrying(
            stop=stop_after_attempt(_ATTEMPTS),
            wait=pause(max=30),
            retry=retry_if_exception_type(RetryableError),
            reraise=True,
        )
        try:
            return await retrying(once)
        except (RetryableError, RefusedError) as error:
            raise UserError(
                f"the batch service fails: {error}",
                where=self.service.url,
                fix="repeat the command later",
            ) from None
