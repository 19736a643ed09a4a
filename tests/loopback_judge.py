"""A judge behind an OpenAI-compatible service on loopback, whose verdicts follow a rule."""

import json
import re
from collections.abc import Callable
from typing import Any

from tests.loopback_teacher import LoopbackTeacher, text_of

Verdict = Callable[[list[str]], str]
"""From the texts that are shown (the task first) to a reply."""


def larger_number(texts: list[str]) -> str:
    """Prefer the answer with the larger number; rate an answer by its number."""
    numbers = [int((re.findall(r"\d+", text) or ["0"])[-1]) for text in texts[1:]]
    if len(numbers) == 1:
        return json.dumps({"score": max(1, min(10, numbers[0]))})
    better = "tie" if numbers[0] == numbers[1] else "second" if numbers[1] > numbers[0] else "first"
    return json.dumps({"better": better})


def first_always(texts: list[str]) -> str:
    """Prefer the position, whatever stands there."""
    return json.dumps({"better": "first"})


def off_schema(texts: list[str]) -> str:
    """Reply with prose."""
    return "I think that the first one is better."


class LoopbackJudge(LoopbackTeacher):
    """The service; `rule` makes the verdicts."""

    def __init__(self, rule: Verdict = larger_number, **options: Any) -> None:
        super().__init__(times=0, **options)
        self.rule = rule

    def good(self, request: dict, path: str) -> bytes:
        """Reply with the verdict on what is shown."""
        blocks = re.findall(r"<([0-9a-f]{16})>\n(.*?)\n</\1>", text_of(request), re.S)
        reply = json.loads(super().good(request, path))
        reply["choices"][0]["message"]["content"] = self.rule([text for _, text in blocks])
        return json.dumps(reply).encode()
