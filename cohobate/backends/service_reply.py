"""A reply of a service with status 200: its fields, its tokens, and what they cost."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from cohobate.backends.api_errors import ReplyError, RetryableError
from cohobate.backends.error_body import ErrorBody, error_body, error_in
from cohobate.backends.prices import Price
from cohobate.backends.replies import TokenLimits, parse_reply, token_usage
from cohobate.generation.requests import Usage

_KEPT = 20_000  # characters of a reply without an answer that are kept


class ServiceReply(NamedTuple):
    """A reply that is JSON."""

    fields: Mapping[str, Any]
    """Empty where it is another JSON value than an object."""
    sent: str
    """The reply as text, cut: what is kept where it holds no answer."""
    usage: Usage
    """Its tokens and their cost; what is missing or impossible counts as the most, so that no cap
    is passed."""
    error: ErrorBody | None
    """The error that it holds, if any."""


def read_reply(
    content: bytes,
    limits: TokenLimits,
    price: Price | None,
    share: float,
    headers: Mapping[str, str],
) -> ServiceReply:
    """Read a reply.

    Args:
        content: its body.
        limits: the most tokens that prompt and answer can have.
        price: of the service; None: free.
        share: of the full price that the reply costs.
        headers: of the reply; some proxies send the usage in them.

    Raises:
        RetryableError: it is not JSON.
        ReplyError: it is a page of HTML.
    """
    sent = content.decode("utf-8", "replace")[:_KEPT]
    try:
        reply = parse_reply(content)
    except ValueError:
        raise _unreadable(content, sent) from None
    fields = reply if isinstance(reply, dict) else {}
    tokens = token_usage(fields, headers, limits)
    cost = (price or Price()).of(tokens.prompt_tokens, tokens.answer_tokens, share)
    return ServiceReply(fields, sent, tokens._replace(cost=cost), error_in(reply))


def _unreadable(content: bytes, sent: str) -> Exception:
    if not content.strip():
        return RetryableError("an empty reply", overloaded=True)
    if (body := error_body(content)).web_page:
        return ReplyError(body, 0.0, sent)
    return RetryableError("the reply is not JSON, or incomplete JSON", cost=None, reply=sent)
