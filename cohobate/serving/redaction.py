"""Redaction: what is replaced in prompts before they are written to disk."""

import re
from functools import cached_property
from typing import Literal

from pydantic import Field, field_validator

from cohobate.data.messages import Message, Prompt
from cohobate.params import Section

FilterName = Literal["email", "url", "ip", "key", "iban", "card", "phone"]
FILTERS: dict[FilterName, str] = {
    "email": r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+",
    "url": r"\bhttps?://[^\s<>\"']+",
    "ip": r"\b(?:\d{1,3}\.){3}\d{1,3}\b|\b(?:[0-9a-fA-F]{1,4}:){7}[0-9a-fA-F]{1,4}\b",
    "key": r"\b(?:sk|pk|ghp|gho|xox[abp]|AKIA)[-_]?[A-Za-z0-9_-]{16,}",
    "iban": r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){3,7}(?: ?[A-Z0-9]{1,3})?\b",
    "card": r"\b(?:\d[ -]?){12,18}\d\b",
    "phone": r"(?<![\w.])\+?\d[\d ()/.-]{6,}\d(?![\w.])",
}
"""Patterns of the named filters, in the order in which they are applied."""


class RedactedPattern(Section):
    """A regular expression of your own."""

    pattern: str = Field(min_length=1)
    """What is replaced, as Python's `re` reads it."""
    by: str = "[redacted]"
    """What is written in its place."""

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from None
        return pattern


class Redaction(Section):
    """Texts that are replaced before a prompt is kept."""

    filters: tuple[FilterName, ...] = tuple(FILTERS)
    """Named filters: each writes its own name, such as `[email]`. They find what looks like one by
    its characters; names of persons they do not find."""
    patterns: tuple[RedactedPattern, ...] = ()
    """Regular expressions, applied after the filters."""

    @cached_property
    def _replacements(self) -> list[tuple[re.Pattern[str], str]]:
        # in the order of FILTERS: an IBAN and a card have digits that look like a phone number
        named = [
            (re.compile(FILTERS[name]), f"[{name}]") for name in FILTERS if name in self.filters
        ]
        return named + [(re.compile(one.pattern), one.by) for one in self.patterns]

    def text(self, text: str) -> str:
        """Return a text without what is redacted."""
        for pattern, by in self._replacements:
            # a function: a backslash in `by` is no reference to a group
            text = pattern.sub(lambda _, by=by: by, text)  # type: ignore[misc]
        return text

    def prompt(self, prompt: Prompt) -> Prompt:
        """Return a prompt without what is redacted, in all of its turns."""
        if isinstance(prompt, str):
            return self.text(prompt)
        return tuple(self._turn(turn) for turn in prompt)

    def _turn(self, turn: Message) -> Message:
        return turn.model_copy(update={"content": self.text(turn.content)})
