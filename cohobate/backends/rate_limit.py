"""Rate limits of a service: concurrent requests, requests and tokens a minute, and pauses.

The number of concurrent requests adapts (additive increase, multiplicative decrease, as in TCP;
Chiu & Jain 1989): it starts at one, so that a wrong API key costs one request; it doubles until the
service first reports overload, is halved then, and grows by one for each round of answers.
"""

import asyncio
import time

from pydantic import Field

from cohobate.params import Section

_MINUTE = 60.0


class Limits(Section):
    """What a service allows."""

    at_once: int = Field(64, ge=1)
    """Most requests in flight."""
    requests_per_minute: float | None = Field(None, gt=0)
    """Most requests a minute."""
    tokens_per_minute: float | None = Field(None, gt=0)
    """Most tokens a minute, of prompts and answers."""


class EvenRate:
    """Spaces requests or tokens evenly in time, on the monotonic clock."""

    def __init__(self, per_minute: float | None) -> None:
        self._seconds_each = _MINUTE / per_minute if per_minute else 0.0
        self._free = 0.0

    def reserve(self, count: int) -> float:
        """Reserve `count` units; return the time from which they may be sent."""
        turn = max(time.monotonic(), self._free)
        self._free = turn + count * self._seconds_each
        return turn


class RateLimiter:
    """Admits requests at the highest rate that the service accepts."""

    def __init__(self, limits: Limits) -> None:
        self._most = limits.at_once
        self._window, self._ceiling = 1.0, float(limits.at_once)
        self._quiet_until = self._halved = 0.0
        self._requests = EvenRate(limits.requests_per_minute)
        self._tokens = EvenRate(limits.tokens_per_minute)

    @property
    def at_once(self) -> int:
        """Requests that may be in flight now."""
        return int(self._window)

    async def acquire(self, tokens: int) -> float:
        """Wait until a request of `tokens` tokens may be sent; return the time."""
        # both are reserved before the wait: the next caller queues behind this one
        free = max(self._requests.reserve(1), self._tokens.reserve(tokens))
        # checked again after each sleep: an overload meanwhile may ask for a longer pause
        while (pause := max(free, self._quiet_until) - time.monotonic()) > 0:
            await asyncio.sleep(pause)
        return time.monotonic()

    def on_reply(self) -> None:
        """Widen the window after a reply."""
        # 1 a reply doubles the window in a round of replies; 1 / window a reply adds one
        step = 1.0 if self._window < self._ceiling else 1.0 / self._window
        self._window = min(self._most, self._window + step)

    def on_overload(self, sent: float, pause: float | None) -> None:
        """Halve the window after a request, sent at `sent`, that found the service overloaded.

        `pause`: seconds that the service asks to wait.
        """
        now = time.monotonic()
        self._quiet_until = max(self._quiet_until, now + (pause or 0.0))
        if sent > self._halved:  # once for all requests that were in flight together
            self._window = self._ceiling = max(1.0, self._window / 2)
            self._halved = now
