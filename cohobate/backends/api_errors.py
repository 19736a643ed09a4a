"""Classify a failed request: retry it, give this prompt up, or stop the run.

A service's messages are shortened before they are shown, and the API key is removed from them.
"""

import math
import re
from collections.abc import Collection
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, NamedTuple

from cohobate.backends.error_body import ErrorBody, ErrorKind, error_body
from cohobate.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping

_PASSING = (408, 409, 425, 429, 498)  # and every 5xx
_SCORING = ("prompt_logprobs", "return_logprob", "logprob_start_len", "top_logprobs_num")
_OVERLOADED = (429, 498, 502, 503, 504, 524, 529)


class RetryableError(Exception):
    """Another attempt may succeed."""

    def __init__(
        self,
        reason: str,
        after: float | None = None,
        *,
        overloaded: bool = False,
        cost: float | None = 0.0,
        reply: str | None = None,
        whole: bool = False,
    ) -> None:
        """Keep what the next attempt depends on.

        Args:
            reason: why there is no answer.
            after: seconds that the service asks to wait.
            overloaded: whether the service has too much to do.
            cost: what the reply cost; None where it may have cost the most it can.
            reply: the reply, where the service may have charged for it.
            whole: whether `reply` is complete and contains no answer.
        """
        super().__init__(reason)
        self.after, self.overloaded, self.cost, self.reply = after, overloaded, cost, reply
        self.whole = whole

    @property
    def may_be_charged(self) -> bool:
        """Whether the service may have charged for it: then there is one more attempt at most."""
        return self.whole or self.cost != 0.0


class RefusedError(Exception):
    """The service will not answer this prompt.

    `certain`: the prompt is the cause, and not the account or the service.
    """

    def __init__(
        self, reason: str, cost: float = 0.0, reply: str | None = None, *, certain: bool = True
    ) -> None:
        super().__init__(reason)
        self.cost, self.reply, self.certain = cost, reply, certain


class ReplyError(Exception):
    """A reply with status 200 that contains an error."""

    def __init__(self, body: ErrorBody, cost: float, reply: str) -> None:
        super().__init__(body.message)
        self.body, self.cost, self.reply = body, cost, reply


class ServiceHistory(NamedTuple):
    """Whether a service has answered this teacher's prompts: one that has is set up correctly."""

    answered: bool = False
    """Whether it answered a prompt in this run."""
    answered_before: bool = False
    """Whether it did so in an earlier run."""


NO_SERVICE_HISTORY = ServiceHistory()


class ServiceErrors(NamedTuple):
    """Turns the errors of one service into exceptions, without showing its API key."""

    url: str
    key_name: str
    key: str

    def classify(
        self,
        error: Exception,
        past: ServiceHistory = NO_SERVICE_HISTORY,
        sent: Collection[str] = (),
    ) -> Exception:
        """Return the exception for an error: retryable, refused, or a `UserError` to stop.

        Args:
            error: the openai client's, or a `ReplyError`.
            past: whether the service has answered before.
            sent: names of the request's fields.
        """
        from openai import APIConnectionError, APIStatusError

        if isinstance(error, APIStatusError):
            body = error_body(error.response.content)
            after = retry_after(error.response.headers)
            if after is not None:
                body = body._replace(after=after)
            return self.classify_status(error.status_code, body, past, sent)
        if isinstance(error, ReplyError):
            return self._classify_reply_error(error, past, sent)
        if isinstance(error, TimeoutError):
            return RetryableError("no complete answer in time", overloaded=True)
        if isinstance(error, APIConnectionError):
            return self._classify_connection(error.__cause__ or error)
        # such as JSON that the client cannot parse
        if isinstance(error, ValueError):
            return RetryableError("the reply has another form than requested")
        return error

    def classify_status(
        self,
        status: int,
        body: ErrorBody,
        past: ServiceHistory = NO_SERVICE_HISTORY,
        sent: Collection[str] = (),
        where: str = "",
    ) -> Exception:
        """Return the exception for an HTTP status and the body of its reply."""
        message, kind = (
            f"{status}{where}: {self.redact(body.message or 'no reason given')}",
            body.kind,
        )
        if body.status == 429:  # in the body of a reply with another status
            status = 429
        # the order counts: services use one status for different errors, and the widest scope comes
        # first
        if stop := self._run_wide_error(status, kind, past):
            what, fix = stop
            return self._stop(what, message, fix)
        if (kind == "too_long" and status < 500) or status == 413:
            return RefusedError(message)
        if status in _PASSING or status >= 500:
            return RetryableError(message, body.after, overloaded=status in _OVERLOADED)
        if status == 403:
            return RefusedError(message, certain=kind == "filter")
        return self._classify_request(message, body, past, sent)

    def _run_wide_error(
        self, status: int, kind: ErrorKind, past: ServiceHistory
    ) -> tuple[str, str] | None:
        """Return message and fix of an error with which no request of the run can succeed."""
        if kind == "money" or status == 402:
            return (
                "the service's quota is used up",
                "pay, or wait for the quota to renew; then repeat the command",
            )
        if status == 407:
            return "a proxy refuses the request", "check the variables HTTPS_PROXY and NO_PROXY"
        # a service that answered before may refuse the prompt alone
        denied = kind == "access" or not any(past)
        if status == 401 or (status == 403 and kind != "filter" and denied):
            return "the service refuses the API key", self._key()
        if status < 400 or status in (404, 405, 410):
            return "no such model or address", self._address()
        return None

    def _classify_request(
        self, message: str, body: ErrorBody, past: ServiceHistory, sent: Collection[str]
    ) -> Exception:
        """Return the exception for a request that is refused for its fields or its prompt."""
        # once a prompt was answered the fields are right: the cause is this prompt
        field = body.field(sent, quoted=past.answered_before)
        if field and not past.answered:
            what = f"the service refuses the parameter {field}"
            return self._stop(what, message, _fix_without(field, body.message))
        if body.kind == "filter":
            return RefusedError(message)
        if body.kind == "access" and not past.answered:
            return self._stop("the service refuses the API key", message, self._key())
        if body.kind == "address" and not past.answered:
            return self._stop("no such model or address", message, self._address())
        return RefusedError(message, certain=False)

    def _classify_reply_error(
        self, error: ReplyError, past: ServiceHistory, sent: Collection[str]
    ) -> Exception:
        body = error.body
        # a proxy or the root of a site replies 200 to any path, and with a page
        wrong_address = body.web_page or not re.search(r"/v\d", self.url)
        status = body.implied_status
        if body.status is None and body.kind in ("other", "address"):
            # 404 stops the run, 502 is retried
            status = 404 if wrong_address and not past.answered else 502
        exception = self.classify_status(
            status, body, past, sent, where=" in a reply with status 200"
        )
        if isinstance(exception, RetryableError):
            reply = error.reply if error.cost > 0 else None
            return RetryableError(
                str(exception),
                body.after,
                overloaded=exception.overloaded,
                cost=error.cost,
                reply=reply,
            )
        if isinstance(exception, RefusedError):
            return RefusedError(str(exception), error.cost, error.reply, certain=exception.certain)
        return exception

    def _classify_connection(self, cause: BaseException) -> Exception:
        kind, words = type(cause).__name__, self.redact(str(cause))
        # the reply broke off after its head: the answer was computed, and may be charged in full
        if kind == "DecodingError" or "complete message body" in words:
            return RetryableError(f"incomplete reply: {words}", overloaded=True, cost=None)
        return RetryableError(f"connection failed: {kind}{words and f': {words}'}", overloaded=True)

    def too_long(self, seconds: float) -> UserError:
        """Return the error that ends a run whose service asks for a pause that is too long."""
        return self._stop(
            f"the service asks to wait {seconds:.0f} s",
            "",
            "repeat the command then: finished answers are kept",
        )

    def redact(self, text: str) -> str:
        """Return a service's message without the API key."""
        return text.replace(self.key, "***") if self.key else text

    def _key(self) -> str:
        return (
            f"export {self.key_name}=..." if self.key_name else "name a variable in teachers.*.key"
        )

    def _address(self) -> str:
        if re.search(r"/v\d|/deployments/", self.url):
            return "check teachers.*.model and teachers.*.endpoint"
        return f"set teachers.*.endpoint to {self.url}/v1 (most services answer below /v1)"

    def _stop(self, what: str, message: str, fix: str) -> UserError:
        return UserError(f"{what} ({message})" if message else what, where=self.url, fix=fix)


def fix_in_reason(reason: str) -> str:
    """Return the command that sets the param that a reason names; empty where it names none."""
    named = re.search(r": raise (\S+)$", reason)
    return f"cohobate run --set {named[1]}=..." if named else ""


def _fix_without(field: str, message: str) -> str:
    """Return the command that leaves out, or changes, a field that the service refuses."""
    run = "cohobate run --set"
    if field == "max_tokens" and "max_completion_tokens" in message:
        return f"{run} generate.backend.max_tokens_key=max_completion_tokens"
    if field in ("max_tokens", "max_completion_tokens"):
        return f"{run} generate.decoding.max_tokens=... (as many as the service allows)"
    if field in ("logprobs", "top_logprobs"):
        without = "generate.backend.logprobs=false --set generate.backend.top_logprobs=0"
        return f"{run} {without}; with signals: true, lower teachers.*.top_logprobs"
    if field in _SCORING:
        return "set teachers.*.scoring to what the service is: vllm, sglang, or none"
    left_out = f"{run} 'generate.backend.extra={{{field}: null}}'   (leaves it out)"
    if field in ("temperature", "top_p"):
        return f"{left_out}; or another value of generate.decoding.{field}"
    return left_out


def retry_after(headers: "Mapping[str, str]") -> float | None:
    """Return the seconds that a service asks to wait, by headers in seconds, ms or as a date.

    A date is compared with the service's own clock where the reply has one, not with ours.
    """
    for name, unit in (("retry-after-ms", 1000), ("retry-after", 1)):
        if (seconds := _number(headers.get(name))) is not None:
            return max(0.0, seconds / unit)
    until = _date(headers.get("retry-after", ""))
    # the local clock may be wrong by more than the pause
    now = _date(headers.get("date", "")) or datetime.now(UTC)
    return max(0.0, (until - now).total_seconds()) if until else None


def _number(text: str | None) -> float | None:
    try:
        number = float(text or "nan")
    except ValueError:
        return None
    return None if math.isnan(number) else number


def _date(text: str) -> datetime | None:
    try:
        date = parsedate_to_datetime(text)
    except ValueError:
        return None
    return date if date.tzinfo else date.replace(tzinfo=UTC)
