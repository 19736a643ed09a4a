"""How much of what a model says is copied from the answers that the student learned from.

Overlap by words in a row, as in Carlini et al. 2023. The teacher's own rate stands beside the
student's: what the teacher says as often without having been taught it is the language's doing.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import Field

from cohobate.params import Section

_BREAK = ""
"""Stands between two answers: no word is empty, so no run of words crosses it."""


class Memorisation(Section):
    """What counts as copied."""

    words: int = Field(8, ge=1)
    """Words in a row that are no chance; shorter answers cannot show any."""

    def index(self, answers: Iterable[str]) -> "Copies":
        """Return the training answers, ready for the search."""
        return Copies(answers, self.words)


class Copies:
    """Training answers, searched for runs of words."""

    def __init__(self, answers: Iterable[str], words: int) -> None:
        self.words = words
        self._whole: set[tuple[str, ...]] = set()
        self._text: list[str] = []
        for answer in answers:
            split = tuple(answer.lower().split())
            if split and split not in self._whole:
                self._whole.add(split)
                self._text += [*split, _BREAK]
        self._runs: dict[tuple[str, ...], list[int]] = defaultdict(list)
        for start in range(len(self._text) - words + 1):
            run = tuple(self._text[start : start + words])
            if _BREAK not in run:
                self._runs[run].append(start)

    def longest(self, answer: str) -> int:
        """Return the most words in a row that also stand in a training answer; 0 below `words`."""
        given = answer.lower().split()
        most = 0
        for at in range(len(given) - self.words + 1):
            for start in self._runs.get(tuple(given[at : at + self.words]), ()):
                size = self.words
                while (
                    at + size < len(given)
                    and start + size < len(self._text)
                    and given[at + size] == self._text[start + size]
                ):
                    size += 1
                most = max(most, size)
        return most

    def figures(self, answers: Sequence[str]) -> dict[str, Any]:
        """Return how much of some answers is copied."""
        long = [answer for answer in answers if len(answer.split()) >= self.words]
        runs = [self.longest(answer) for answer in long]
        whole = sum(tuple(answer.lower().split()) in self._whole for answer in answers)
        return {
            "answers": len(answers),
            "long_enough": len(long),
            "copied_share": round(sum(map(bool, runs)) / len(runs), 6) if runs else None,
            "longest_run": max(runs, default=0),
            "whole_share": round(whole / len(answers), 6) if answers else None,
        }
