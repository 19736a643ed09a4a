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
_ANY_START = "|".join(re.escape(start) for start, _ in _TAGS)
_OPEN = re.compile(rf"\s*(?:{_ANY_START})")
_OPENED = re.compile(rf"(?:{_ANY_START})\s*\Z")
_CLOSE = re.compile("|".join(re.escape(end) for _, end in _TAGS))


def split(text: str, *, opened: bool = False) -> tuple[str, str]:
    """Return the answer and the reasoning of a text; no reasoning where the text has no tags.

    Some chat templates write the opening tag into the prompt: then the text has the closing one
    alone. A text that ends before its closing tag is all reasoning.

    Args:
        text: what a model generated.
        opened: whether it begins within the reasoning.
    """
    begun = _OPEN.match(text)
    start = begun.end() if begun else 0
    closed = _CLOSE.search(text, start)
    if closed:
        return text[closed.end() :].lstrip(), text[start : closed.start()].strip()
    return ("", text[start:].strip()) if begun or opened else (text, "")


def opens_reasoning(prompt: str) -> bool:
    """Return whether a prompt ends with an opening tag, so that the model goes on reasoning."""
    return _OPENED.search(prompt) is not None


def inline(text: str, reasoning: str) -> str:
    """Return reasoning and answer as one text, in the form that most reasoning models write."""
    if not reasoning:
        return text
    return f"<think>\n{reasoning.strip()}\n</think>\n\n{text}"


def inline_cut(reasoning: str) -> str:
    """Return reasoning that was cut off before its end as the text that a model generated."""
    return f"<think>\n{reasoning.strip()}"
