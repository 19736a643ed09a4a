"""Lines of a batch's results files, and what each says about its prompt.

The kinds of odd replies are those of single requests (`cohobate.backends.replies`); a line can also
be garbled, come twice, hold no reply, or be one that an earlier run has counted already.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any

from cohobate.backends.api_errors import Again, ErrorReply, Refused
from cohobate.backends.endpoint import Endpoint, Place
from cohobate.backends.error_body import ErrorBody, error_body, error_in
from cohobate.backends.prices import Budget, Price
from cohobate.backends.requests import Ask, Batch, State, Unanswered
from cohobate.backends.service_record import Record
from cohobate.errors import UserError
from cohobate.generation.requests import Answer, Decoding

Lines = Mapping[str, list[dict[str, Any]]]
"""Lines of results files, by the key of their ask."""
_KEPT = 20_000  # of a garbled line, in characters
_ID = re.compile(r'"custom_id": *"([^"]*)"')


class LineError(Exception):
    """A line with an error."""

    def __init__(self, status: int, body: ErrorBody) -> None:
        super().__init__(body.message)
        self.status, self.body = status, body


def parsed_line(text: bytes) -> dict[str, Any]:
    """Return a line of a results file; of one that is garbled its id, where that can be read."""
    with suppress(ValueError):
        line = json.loads(text)
        if isinstance(line, dict):
            return line
    said = text.decode("utf-8", "replace")
    found = _ID.search(said)
    return {"custom_id": found[1] if found else "", "garbled": said[:_KEPT]}


class Results:
    """Reads lines for one run against a service."""

    def __init__(
        self, params: Endpoint, attempts: int, place: Place, budget: Budget, before: bool
    ) -> None:
        self.params, self.attempts, self.place, self.budget = params, attempts, place, budget
        self.service, self.share = place.service(), params.share
        self.price, self.record = params.price or Price(), Record(before)

    def of(
        self, lines: Lines, missing: Mapping[str, Ask], how: Decoding, *, old: bool
    ) -> list[tuple[str, "Answer | Unanswered | UserError"]]:
        """Return what the lines say about the missing prompts: answers first, then failures."""
        answers: dict[str, Answer] = {}
        results: list[tuple[str, Answer | Unanswered | UserError]] = []
        failures: list[tuple[Ask, Exception]] = []
        for key in sorted(missing.keys() & lines.keys()):
            for line in lines[key]:
                try:
                    answer = self._answer(line, missing[key], how)
                except (Again, Refused, ErrorReply, LineError) as error:
                    failures.append((missing[key], error))
                    continue
                cost = answer.usage.cost if answer.usage else 0.0
                self.budget.spent += cost
                twice = Unanswered("answered twice", cost, state="retried")
                results.append((key, twice if key in answers else answers.setdefault(key, answer)))
                self.record.answered(missing[key])
        for ask, failure in failures:
            known = old and getattr(failure, "reply", None)
            if not (known and self.service.clean(known) in ask.replies):  # counted in that run
                results.append((ask.key, self._failure(ask, failure, how, ask.key in answers)))
        return results

    def _answer(self, line: Mapping[str, Any], ask: Ask, how: Decoding) -> Answer:
        """Return the answer that a line holds.

        Raises:
            Again, Refused, ErrorReply, LineError: it holds none.
        """
        if garbled := line.get("garbled"):
            raise Again("the line is garbled", cost=None, reply=garbled)
        response = line.get("response") or {}
        body, status = response.get("body"), response.get("status_code")
        content = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        if status == 200 and body is not None:
            return self.params.accepted(content, ask, how, self.share)
        if error := error_in({"error": line.get("error")}):
            raise LineError(error.implied_status, error)
        if body is None:
            raise Again("the line holds no reply")
        said = error_body(content)
        raise LineError(status if isinstance(status, int) else said.implied_status, said)

    def _failure(
        self, ask: Ask, error: Exception, how: Decoding, answered: bool
    ) -> Unanswered | UserError:
        """Return what becomes of a prompt whose line holds no answer; tell the budget."""
        fields = self.params.body(self.place.model, ask, how)
        if isinstance(error, LineError):
            error = self.service.of_status(error.status, error.body, self.record.past, fields)
        if isinstance(error, ErrorReply):
            error = self.service.meaning(error, self.record.past, fields)
        if isinstance(error, UserError):
            return error
        assert isinstance(error, Again | Refused)
        priced = self.params.priced(how)
        most = self.price.bound(ask, priced, self.share)
        cost = most if error.cost is None else error.cost
        self.budget.spent += cost
        reason = self.service.clean(str(error))
        reply = error.reply and self.service.clean(error.reply)
        whole = isinstance(error, Refused) or error.whole
        return Unanswered(reason, cost, reply, whole, self._state(ask, error, answered))

    def _state(self, ask: Ask, error: Again | Refused, answered: bool) -> State:
        if answered:
            return "retried"
        if isinstance(error, Refused):
            return "refused" if error.certain or self.record.past.answered else "doubtful"
        if not error.once:
            more = self.record.tries[ask.key] < self.attempts
            return "retried" if more else "failed"
        if self.record.may_retry(ask, self.attempts):
            return "retried"
        return "refused" if error.whole else "failed"


def batched(results: Iterable[tuple[str, Answer | Unanswered | UserError]]) -> Iterator[Batch]:
    """Yield the outcomes in batches, each of which holds a key once."""
    batch: dict[str, Answer | Unanswered] = {}
    for key, result in results:
        if isinstance(result, UserError):
            continue
        if key in batch:
            yield batch
            batch = {}
        batch[key] = result
    if batch:
        yield batch
