"""Lines of a batch's result files, and the outcome of each.

Unusual replies are the same as those to single requests (`cohobate.backends.replies`). A line can
also be malformed, be duplicated, contain no reply, or have been counted by an earlier run.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any

from cohobate.backends.api_errors import RefusedError, ReplyError, RetryableError
from cohobate.backends.endpoint import Endpoint, ServiceAddress
from cohobate.backends.error_body import ErrorBody, error_body, error_in
from cohobate.backends.prices import Budget, Price
from cohobate.backends.requests import NoAnswer, Outcomes, State, TeacherRequest
from cohobate.backends.service_record import ServiceRecord
from cohobate.errors import UserError
from cohobate.generation.requests import Answer, Decoding

Lines = Mapping[str, list[dict[str, Any]]]
"""Lines of result files, by the key of their request."""
_KEPT = 20_000  # characters of a malformed line that are kept
_ID = re.compile(r'"custom_id": *"([^"]*)"')


class LineError(Exception):
    """A line with an error."""

    def __init__(self, status: int, body: ErrorBody) -> None:
        super().__init__(body.message)
        self.status, self.body = status, body


def parse_line(text: bytes) -> dict[str, Any]:
    """Return a line of a result file; of a malformed one its id, where that can be read."""
    with suppress(ValueError):
        line = json.loads(text)
        if isinstance(line, dict):
            return line
    content = text.decode("utf-8", "replace")
    match = _ID.search(content)
    return {"custom_id": match[1] if match else "", "garbled": content[:_KEPT]}


class BatchResults:
    """Reads lines for one run against a service."""

    def __init__(
        self,
        params: Endpoint,
        attempts: int,
        address: ServiceAddress,
        budget: Budget,
        answered_before: bool,
    ) -> None:
        self.params, self.attempts, self.address, self.budget = params, attempts, address, budget
        self.service, self.share = address.service(), params.share
        self.price, self.record = params.price or Price(), ServiceRecord(answered_before)

    def outcomes(
        self, lines: Lines, missing: Mapping[str, TeacherRequest], decoding: Decoding, *, old: bool
    ) -> list[tuple[str, "Answer | NoAnswer | UserError"]]:
        """Return the outcomes of the missing prompts in the lines: answers first, then failures."""
        answers: dict[str, Answer] = {}
        results: list[tuple[str, Answer | NoAnswer | UserError]] = []
        failures: list[tuple[TeacherRequest, Exception]] = []
        for key in sorted(missing.keys() & lines.keys()):
            for line in lines[key]:
                try:
                    answer = self._answer(line, missing[key], decoding)
                except (RetryableError, RefusedError, ReplyError, LineError) as error:
                    failures.append((missing[key], error))
                    continue
                cost = answer.usage.cost if answer.usage else 0.0
                self.budget.spent += cost
                # a second answer is paid for too: its cost counts, its text is dropped
                twice = NoAnswer("answered twice", cost, state="retried")
                results.append((key, twice if key in answers else answers.setdefault(key, answer)))
                self.record.on_answer(missing[key])
        # after the answers: they say whether the service works, which decides what a failure means
        for request, failure in failures:
            reply = old and getattr(failure, "reply", None)
            # a line that an earlier run read has its cost in the ledger already
            if not (reply and self.service.redact(reply) in request.replies):
                results.append(
                    (request.key, self._failure(request, failure, decoding, request.key in answers))
                )
        return results

    def _answer(
        self, line: Mapping[str, Any], request: TeacherRequest, decoding: Decoding
    ) -> Answer:
        """Return the answer in a line.

        Raises:
            RetryableError, RefusedError, ReplyError, LineError: there is none.
        """
        if garbled := line.get("garbled"):
            raise RetryableError("the line is malformed", cost=None, reply=garbled)
        response = line.get("response") or {}
        body, status = response.get("body"), response.get("status_code")
        # some services write the reply as text inside the JSON of the line
        content = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        if status == 200 and body is not None:
            return self.params.parse_answer(content, request, decoding, self.share)
        if error := error_in({"error": line.get("error")}):
            raise LineError(error.implied_status, error)
        if body is None:
            raise RetryableError("the line contains no reply")
        error = error_body(content)
        raise LineError(status if isinstance(status, int) else error.implied_status, error)

    def _failure(
        self, request: TeacherRequest, error: Exception, decoding: Decoding, answered: bool
    ) -> NoAnswer | UserError:
        """Return the outcome of a prompt whose line has no answer; add its cost to the budget."""
        # classified only now: `past` then says whether this file has an answer at all
        fields = self.params.body(self.address.model, request, decoding)
        if isinstance(error, LineError):
            error = self.service.classify_status(error.status, error.body, self.record.past, fields)
        if isinstance(error, ReplyError):
            error = self.service.classify(error, self.record.past, fields)
        if isinstance(error, UserError):
            return error
        assert isinstance(error, RetryableError | RefusedError)
        billed = self.params.billed(decoding)
        most = self.price.upper_bound(request, billed, self.share)
        cost = most if error.cost is None else error.cost
        self.budget.spent += cost
        reason = self.service.redact(str(error))
        reply = error.reply and self.service.redact(error.reply)
        whole = isinstance(error, RefusedError) or error.whole
        return NoAnswer(reason, cost, reply, whole, self._state(request, error, answered))

    def _state(
        self, request: TeacherRequest, error: RetryableError | RefusedError, answered: bool
    ) -> State:
        # another line of the prompt has its answer: this one only costs
        if answered:
            return "retried"
        if isinstance(error, RefusedError):
            return "refused" if error.certain or self.record.past.answered else "doubtful"
        if not error.may_be_charged:
            more = self.record.tries[request.key] < self.attempts
            return "retried" if more else "failed"
        if self.record.may_retry(request, self.attempts):
            return "retried"
        return "refused" if error.whole else "failed"


def group_outcomes(
    results: Iterable[tuple[str, Answer | NoAnswer | UserError]],
) -> Iterator[Outcomes]:
    """Yield the outcomes in batches that contain each key once."""
    batch: dict[str, Answer | NoAnswer] = {}
    for key, result in results:
        if isinstance(result, UserError):
            continue
        # a mapping has each key once: the second outcome of a key begins another
        if key in batch:
            yield batch
            batch = {}
        batch[key] = result
    if batch:
        yield batch
