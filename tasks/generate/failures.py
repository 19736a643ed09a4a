"""What a failed request means: ask again, let this prompt be, or stop the run.

A service's words are shortened before they are shown, and the API key is cut out of them.
"""

import json
import math
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, NamedTuple

from tasks.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from openai import APIStatusError

_NO_MONEY = ("insufficient_quota", "billing_hard_limit_reached", "billing_not_active")
_PASSING = (408, 409, 425, 429)  # and every 5xx
_OF_THE_PROMPT = (400, 413, 422)
_WORDS = 300  # of a service's message, in characters


class Again(Exception):  # noqa: N818 — it is a verdict
    """Worth another try."""

    def __init__(
        self,
        reason: str,
        after: float | None = None,
        *,
        congested: bool = False,
        cost: float = 0.0,
    ) -> None:
        super().__init__(reason)
        self.after, self.congested, self.cost = after, congested, cost


class Refused(Exception):  # noqa: N818
    """The service will not answer this prompt."""

    def __init__(self, reason: str, cost: float = 0.0) -> None:
        super().__init__(reason)
        self.cost = cost


class Service(NamedTuple):
    """What an error about a service should name and must not name."""

    url: str
    key_name: str
    key: str

    def meaning(self, error: Exception) -> Exception:
        """Return what an error of the openai client means for the prompt and the run."""
        from openai import APIConnectionError, APIStatusError

        if isinstance(error, APIStatusError):
            return self._of_status(error)
        if isinstance(error, TimeoutError):
            return Again("no whole answer in time", congested=True)
        if isinstance(error, APIConnectionError):
            cause = error.__cause__ or error
            return Again(f"connection failed: {type(cause).__name__}", congested=True)
        if isinstance(error, json.JSONDecodeError | UnicodeDecodeError):
            return Again("the answer is not JSON")
        return error

    def _of_status(self, error: "APIStatusError") -> Exception:
        status, said = error.status_code, self._shown(error)
        if status == 402 or error.code in _NO_MONEY or error.type in _NO_MONEY:
            return self._stop("the service's quota is used up", said, "pay or wait; then run again")
        if status in (401, 403):
            named = f"set {self.key_name}" if self.key_name else "name a variable in teachers.*.key"
            return self._stop("the service refuses the API key", said, named)
        if status == 404:
            return self._stop("no such model or address", said, "mend teachers.*.model or endpoint")
        if status in _OF_THE_PROMPT:
            return Refused(said)
        if status in _PASSING or status >= 500:
            return Again(said, retry_after(error.response.headers), congested=status in (429, 503))
        return self._stop("the service cannot be used", said, "mend teachers.*.endpoint")

    def too_long(self, seconds: float) -> UserError:
        """Return the error that ends a run whose service asks for too long a pause."""
        return self._stop(
            f"the service asks to wait {seconds:.0f} s",
            "",
            "run again then: what is answered stays",
        )

    def _stop(self, what: str, said: str, mend: str) -> UserError:
        return UserError(f"{what} ({said})" if said else what, where=self.url, mend=mend)

    def _shown(self, error: "APIStatusError") -> str:
        body = error.body if isinstance(error.body, dict) else {}
        text = f"{error.status_code}: {body.get('message') or 'no reason given'}"
        return (text.replace(self.key, "***") if self.key else text)[:_WORDS]


def retry_after(headers: "Mapping[str, str]") -> float | None:
    """Return the seconds that a service asks to wait: given as such, or as a date.

    A date is compared with the service's own clock where it tells it, not with ours.
    """
    asked = headers.get("retry-after")
    if asked is None:
        return None
    try:
        seconds = float(asked)
        return None if math.isnan(seconds) else max(0.0, seconds)
    except ValueError:
        until, now = _date(asked), _date(headers.get("date", "")) or datetime.now(UTC)
        return max(0.0, (until - now).total_seconds()) if until else None


def _date(text: str) -> datetime | None:
    try:
        found = parsedate_to_datetime(text)
    except ValueError:
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)
