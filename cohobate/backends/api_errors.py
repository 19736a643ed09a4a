"""What a failed request means: ask again, let this prompt be, or stop the run.

A service's words are shortened before they are shown, and the API key is cut out of them.
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
_OVERLOADED = (429, 498, 502, 503, 504, 524, 529)


class RetryableError(Exception):
    """Worth another try."""

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
        """Keep what the next try depends on.

        Args:
            reason: why there is no answer.
            after: seconds that the service asks to wait.
            congested: whether the service has too much to do.
            cost: what the reply cost; None where it may have cost the most it can.
            reply: what came, where the service may have charged for it.
            whole: whether it is a whole reply that holds no answer.
        """
        super().__init__(reason)
        self.after, self.overloaded, self.cost, self.reply = after, overloaded, cost, reply
        self.whole = whole

    @property
    def once(self) -> bool:
        """Whether the service may have charged for it: then it is tried once more at most."""
        return self.whole or self.cost != 0.0


class RefusedError(Exception):
    """The service will not answer this prompt.

    `certain` says whether it is the prompt, and not the account or the service, that is at fault.
    """

    def __init__(
        self, reason: str, cost: float = 0.0, reply: str | None = None, *, certain: bool = True
    ) -> None:
        super().__init__(reason)
        self.cost, self.reply, self.certain = cost, reply, certain


class ReplyError(Exception):
    """A reply with status 200 that holds an error."""

    def __init__(self, body: ErrorBody, cost: float, reply: str) -> None:
        super().__init__(body.message)
        self.body, self.cost, self.reply = body, cost, reply


class ServiceHistory(NamedTuple):
    """What a service did for this teacher up to now."""

    answered: bool = False
    """Whether it answered a prompt in this run."""
    before: bool = False
    """Whether it did so in an earlier run."""


NO_SERVICE_HISTORY = ServiceHistory()


class ServiceErrors(NamedTuple):
    """What an error about a service should name and must not name."""

    url: str
    key_name: str
    key: str

    def classify(
        self,
        error: Exception,
        past: ServiceHistory = NO_SERVICE_HISTORY,
        sent: Collection[str] = (),
    ) -> Exception:
        """Return what an error means for the prompt and the run.

        Args:
            error: the openai client's, or an `ErrorReply`.
            past: what the service did before.
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
            return RetryableError("no whole answer in time", overloaded=True)
        if isinstance(error, APIConnectionError):
            return self._classify_connection(error.__cause__ or error)
        if isinstance(error, ValueError):
            return RetryableError("the reply is not what was asked for")
        return error

    def classify_status(
        self,
        status: int,
        body: ErrorBody,
        past: ServiceHistory = NO_SERVICE_HISTORY,
        sent: Collection[str] = (),
        where: str = "",
    ) -> Exception:
        """Return what a status and the body below it mean."""
        said, kind = f"{status}{where}: {self.redact(body.message or 'no reason given')}", body.kind
        if body.status == 429:  # below another status: as busy as with its own
            status = 429
        if stop := self._run_wide_error(status, kind, past):
            what, fix = stop
            return self._stop(what, said, fix)
        if (kind == "too_long" and status < 500) or status == 413:
            return RefusedError(said)
        if status in _PASSING or status >= 500:
            return RetryableError(said, body.after, overloaded=status in _OVERLOADED)
        if status == 403:
            return RefusedError(said, certain=kind == "filter")
        return self._classify_request(said, body, past, sent)

    def _run_wide_error(
        self, status: int, kind: ErrorKind, past: ServiceHistory
    ) -> tuple[str, str] | None:
        """Return what is wrong and the next step, where no request of the run can succeed."""
        if kind == "money" or status == 402:
            return "the service's quota is used up", "pay or wait; then run again"
        if status == 407:
            return "a proxy refuses the request", "check HTTPS_PROXY and NO_PROXY"
        denied = kind == "access" or not any(past)  # else a 403 may be for the prompt
        if status == 401 or (status == 403 and kind != "filter" and denied):
            return "the service refuses the API key", self._key()
        if status < 400 or status in (404, 405, 410):
            return "no such model or address", self._address()
        return None

    def _classify_request(
        self, said: str, body: ErrorBody, past: ServiceHistory, sent: Collection[str]
    ) -> Exception:
        """Return what it means that the service refuses a request: its fields, or its prompt."""
        field = body.field(sent, quoted=past.before)
        if field and not past.answered:
            what = f"the service refuses the parameter {field}"
            return self._stop(what, said, _without(field, body.message))
        if body.kind == "filter":
            return RefusedError(said)
        if body.kind == "access" and not past.answered:
            return self._stop("the service refuses the API key", said, self._key())
        if body.kind == "address" and not past.answered:
            return self._stop("no such model or address", said, self._address())
        return RefusedError(said, certain=False)

    def _classify_reply_error(
        self, error: ReplyError, past: ServiceHistory, sent: Collection[str]
    ) -> Exception:
        body = error.body
        wrong_place = body.web_page or not re.search(r"/v\d", self.url)
        status = body.implied_status
        if body.status is None and body.kind in ("other", "address"):
            status = 404 if wrong_place and not past.answered else 502
        meant = self.classify_status(status, body, past, sent, where=" in a reply with status 200")
        if isinstance(meant, RetryableError):
            paid = error.cost > 0
            reply = error.reply if paid else None
            return RetryableError(
                str(meant), body.after, overloaded=meant.overloaded, cost=error.cost, reply=reply
            )
        if isinstance(meant, RefusedError):
            return RefusedError(str(meant), error.cost, error.reply, certain=meant.certain)
        return meant

    def _classify_connection(self, cause: BaseException) -> Exception:
        kind, words = type(cause).__name__, self.redact(str(cause))
        if kind == "DecodingError" or "complete message body" in words:
            return RetryableError(f"half a reply: {words}", overloaded=True, cost=None)
        return RetryableError(f"connection failed: {kind}{words and f': {words}'}", overloaded=True)

    def too_long(self, seconds: float) -> UserError:
        """Return the error that ends a run whose service asks for too long a pause."""
        return self._stop(
            f"the service asks to wait {seconds:.0f} s",
            "",
            "run again then: what is answered stays",
        )

    def redact(self, text: str) -> str:
        """Return a service's words without the API key."""
        return text.replace(self.key, "***") if self.key else text

    def _key(self) -> str:
        return f"set {self.key_name}" if self.key_name else "name a variable in teachers.*.key"

    def _address(self) -> str:
        if re.search(r"/v\d", self.url):
            return "check teachers.*.model and teachers.*.endpoint"
        return f"set teachers.*.endpoint to {self.url}/v1 (most services answer below /v1)"

    def _stop(self, what: str, said: str, fix: str) -> UserError:
        return UserError(f"{what} ({said})" if said else what, where=self.url, fix=fix)


def fix_in_reason(reason: str) -> str:
    """Return the command that sets the param which a reason names; empty where it names none."""
    named = re.search(r": raise (\S+)$", reason)
    return f"cohobate run --set {named[1]}=..." if named else ""


def _without(field: str, message: str) -> str:
    """Return how a round goes on without a field that the service refuses."""
    run = "cohobate run --set"
    if field == "max_tokens" and "max_completion_tokens" in message:
        return f"{run} generate.backend.max_tokens_key=max_completion_tokens"
    if field in ("max_tokens", "max_completion_tokens"):
        return f"{run} generate.decoding.max_tokens=... (as many as the service allows)"
    if field in ("logprobs", "top_logprobs"):
        return f"{run} generate.backend.logprobs=false --set generate.backend.top_logprobs=0"
    left_out = f"{run} 'generate.backend.extra={{{field}: null}}'   (leaves it out)"
    if field in ("temperature", "top_p"):
        return f"{left_out}; or another value of generate.decoding.{field}"
    return left_out


def retry_after(headers: "Mapping[str, str]") -> float | None:
    """Return the seconds that a service asks to wait: given as such, in milliseconds or as a date.

    A date is compared with the service's own clock where it tells it, not with ours.
    """
    for name, unit in (("retry-after-ms", 1000), ("retry-after", 1)):
        if (seconds := _number(headers.get(name))) is not None:
            return max(0.0, seconds / unit)
    until = _date(headers.get("retry-after", ""))
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
        found = parsedate_to_datetime(text)
    except ValueError:
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)
