"""The body of an error reply: the service's message, its code, and the kind of error.

OpenAI-compatible services agree on `{"error": {"message": ..., "code": ...}}` and then differ: the
error is a text, a list, a field `detail` or `message`, stands in the first choice, or is a page of
HTML. The kind is recognised by code and message: services use one status for different errors.
"""

import html
import json
import re
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

ErrorKind = Literal["money", "access", "filter", "too_long", "busy", "address", "other"]

_PATTERNS: tuple[tuple[ErrorKind, str], ...] = (  # the first that matches counts
    (
        "money",
        r"insufficient[_ ](quota|balance|credit|funds)|billing_(hard_limit|not_active)|payment requ"
        r"|(credit|account) balance|(out of|not enough|more) credits|(key|spend\w*) limit exceeded",
    ),
    ("access", r"(account|organi[sz]ation|project)\b.{0,60}(flag|block|suspend|deactiv|disable)"),
    (
        "filter",
        r"content[_ -]?(filter|polic|manage|moder)|moderation|flagged|safety|responsible[_ ]ai"
        r"|(?<!case-)(?<!case )sensitive|inappropriate|data_?inspection|guardrail|blocked_prompt"
        r"|(usage|acceptable use) polic",
    ),
    (
        "too_long",
        r"context[_ ](length|window|size)|maximum context|string_above_max|reduce the (length|size)"
        r"|request (entity )?too large|(prompt|input|messages?)\b.{0,40}too (long|large|many)"
        r"|too many (input )?tokens|exceeds?\b.{0,40}(context|input|sequence|prompt)",
    ),
    (
        "busy",
        r"rate[_ ]?limit|too many requests|overload|capacity|resource[_ ]?exhausted|slow down"
        r"|temporarily|try again|time(d )?[_ ]?out|unavailable|loading",
    ),
    (
        "access",
        r"api[_ -]?key|unauthori[sz]ed|authentic|permission|access denied|credential"
        r"|not allowed to|(country|region|territory)",
    ),
    (
        "address",
        r"unexpected endpoint|invalid url|no such|unknown (model|url|route|path)|not[_ ]found"
        r"|model.{0,60}(does not exist|not exist|not available|decommissioned)|deployment",
    ),
)
_REFUSED_FIELD = re.compile(
    r"un(supported|recogni[sz]ed|known|expected)|invalid|extra|not (permitted|supported|allowed)"
    r"|does not support|must be|validation|deprecated|too (large|big)|at most|out of range|between",
    re.IGNORECASE,
)
_STATUS: dict[ErrorKind, int] = {
    "money": 402, "access": 403, "filter": 400, "too_long": 400, "busy": 429, "address": 404,
}  # fmt: skip
_OF_THE_PROMPT = ("messages", "prompt", "input", "model")
_DELAY = re.compile(r'"retryDelay": *"([\d.]+)s"')
_TITLE = re.compile(r"<(?:title|h1)[^>]*>(.*?)</", re.IGNORECASE | re.DOTALL)
_WORDS = 300  # characters of a service's message


class ErrorBody(NamedTuple):
    """The body of an error reply."""

    message: str
    code: str = ""
    """The error's code and type, as text."""
    status: int | None = None
    """The status in the body, where it differs from the HTTP status."""
    param: str = ""
    """The field of the request that is the cause."""
    after: float | None = None
    """Seconds to wait before the next attempt."""
    web_page: bool = False
    """Whether it is a page of HTML, as proxies and logins send them."""

    @property
    def kind(self) -> ErrorKind:
        """Return the kind of error, by code and message."""
        text = f"{self.code} {self.message}"
        for kind, pattern in _PATTERNS:
            if re.search(pattern, text, re.IGNORECASE):
                return kind
        return "other"

    @property
    def implied_status(self) -> int:
        """Return the HTTP status that this error should have had."""
        return self.status or _STATUS.get(self.kind, 500)

    def field(self, sent: Iterable[str], *, quoted: bool) -> str:
        """Return the field of the request that is refused; empty where it is none but the prompt.

        Args:
            sent: names of the request's fields.
            quoted: whether a message must name it in quotes, for it may cite the prompt.
        """
        names = [name for name in sent if name not in _OF_THE_PROMPT]
        # the service names the field: nothing needs to be guessed from the message
        if self.param:
            name = re.split(r"[.\[]", self.param.removeprefix("body."))[0]
            return name if name in names else ""
        if not _REFUSED_FIELD.search(f"{self.code} {self.message}"):
            return ""
        # whole names only: `n` is in most words
        form = r"[`'\"]{}[`'\"]" if quoted else r"(?<![a-z_]){}(?![a-z_])"
        named = (name for name in names if re.search(form.format(name), self.message))
        return next(named, "")


def error_body(content: bytes) -> ErrorBody:
    """Read the body of an error reply."""
    text = content.decode("utf-8", "replace").strip()
    try:
        value = json.loads(text)
    except ValueError:
        if text[:1] == "<":
            title = _TITLE.search(text)
            words = " ".join(html.unescape(title[1]).split()) if title else ""
            return ErrorBody(f"a web page{words and f': {words[:_WORDS]}'}", web_page=True)
        return ErrorBody(" ".join(text.split())[:_WORDS])
    after = _DELAY.search(text)
    return error_in(value, float(after[1]) if after else None) or ErrorBody("")


def error_in(value: Any, after: float | None = None) -> ErrorBody | None:
    """Return the error that a JSON reply holds; None where it holds none."""
    while isinstance(value, list) and value:
        value = value[0]
    if not isinstance(value, dict):
        return ErrorBody(value[:_WORDS]) if isinstance(value, str) and value else None
    # some put the error into the first choice of an otherwise normal reply
    choices = value.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    inner = first.get("error") if isinstance(first, dict) else None
    error = value.get("error") or value.get("errors") or inner
    # a reply with choices may have fields of these names, and is no error
    if error is None and value.get("choices") is None:
        error = value.get("detail") or value.get("base_resp") or value
    while isinstance(error, list) and error:
        error = error[0]
    if isinstance(error, str):
        return ErrorBody(error[:_WORDS], str(value.get("error_type") or value.get("code") or ""))
    return _of_fields(error, after) if isinstance(error, dict) else None


def _of_fields(error: dict[str, Any], after: float | None) -> ErrorBody | None:
    words = ("message", "msg", "error_msg", "status_msg", "detail", "title", "error_description")
    message = next((str(error[name]) for name in words if error.get(name)), "")
    extra = error.get("metadata")
    # OpenRouter: the message of the service behind it, or of its filter
    if isinstance(extra, dict):
        details = (extra.get(name) for name in ("raw", "reasons", "provider_name"))
        message += "".join(f" ({json.dumps(d, ensure_ascii=False)})" for d in details if d)
    names = ("code", "type", "status", "error_code", "status_code")
    codes = [error[name] for name in names if error.get(name) not in (None, "", 0)]
    if not message and not codes:
        return None
    places = error.get("loc") or error.get("param") or ""
    param = ".".join(map(str, places)) if isinstance(places, list) else str(places)
    code = " ".join(map(str, codes))
    return ErrorBody(message[:_WORDS] or "no reason given", code, _status(codes), param, after)


def _status(codes: list[Any]) -> int | None:
    numbers = (int(code) for code in codes if str(code).isdecimal())
    return next((number for number in numbers if 400 <= number < 600), None)
