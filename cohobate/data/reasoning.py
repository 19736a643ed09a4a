"""Reasoning that a model writes before its answer, between tags.

Metrics, filters and rows read the answer behind it. A service with a reasoning parser returns the
reasoning in a field of its own; one without leaves it in the text, as local models do.
"""

import re

_TAGS = (
    ("<think>", "</think>"),  # DeepSeek, Qwen
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),  # Magistral
    ("◁think▷", "◁/think▷"),  # Kimi
)
_OPEN = re.compile(r"\s*(?:" + "|".join(re.escape(start) for start, _ in _TAGS) + ")")
_CLOSE = re.compile("|".join(re.escape(end) for _, end in _TAGS))


def split(text: str) -> tuple[str, str]:
    """Return the answer and the reasoning of a text; no reasoning where the text has no tags.

    Some chat templates write the opening tag into the prompt: then the text has the closing one
    alone. A text that ends before its closing tag is all reasoning.
    """
    opened = _OPEN.match(text)
    start = opened.end() if opened else 0
    closed = _CLOSE.search(text, start)
    if closed:
        return text[closed.end() :].lstrip(), text[start : closed.start()].strip()
    return ("", text[start:].strip()) if opened else (text, "")


def inline(text: str, reasoning: str) -> str:
    """Return reasoning and answer as one text, in the form that most reasoning models write."""
    if not reasoning:
        return text
    return f"<think>\n{reasoning.strip()}\n</think>\n\n{text}"
