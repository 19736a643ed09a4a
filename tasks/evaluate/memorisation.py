"""Memorisation: the share of a model's answers that is copied from the training answers.

A copy is a run of words in common, as in Carlini et al. 2023. The teacher's share is the control:
it was not trained on these answers, so what it repeats as often is common phrasing.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import Field

from cohobate.params import Section

_BREAK = ""
"""Separates two answers: no word is empty, so no run of words crosses it."""


class Memorisation(Section):
    """What counts as a copy."""

    words: int = Field(8, ge=1)
    """Fewest words in a row that count as a copy; shorter answers are not looked at."""

    def index(self, answers: Iterable[str]) -> "TrainingAnswers":
        """Return an index of the training answers."""
        return TrainingAnswers(answers, self.words)


class TrainingAnswers:
    """An index of the training answers by their runs of words."""

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
        # where each run of `words` words begins in the answers laid end to end
        for start in range(len(self._text) - words + 1):
            run = tuple(self._text[start : start + words])
            if _BREAK not in run:
                self._runs[run].append(start)

    def longest(self, answer: str) -> int:
        """Return the length of the longest run shared with a training answer; 0 below `words`."""
        words = answer.lower().split()
        longest = 0
        for at in range(len(words) - self.words + 1):
            for start in self._runs.get(tuple(words[at : at + self.words]), ()):
                # a known run is extended word by word, up to the end of either answer
                size = self.words
                while (
                    at + size < len(words)
                    and start + size < len(self._text)
                    and words[at + size] == self._text[start + size]
                ):
                    size += 1
                longest = max(longest, size)
        return longest

    def figures(self, answers: Sequence[str]) -> dict[str, Any]:
        """Return the shares of `answers` that are copied in part and as a whole."""
        # an answer of fewer words cannot have a run: it would only lower the share
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
