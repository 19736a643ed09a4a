"""Figures of all answers of a model together: macro-F1, distinct n-grams, mean length.

They are reported and decide nothing: no single row has one. To add one: a class with `figure`, and
its name in `AnswersFigure` at the bottom.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from cohobate.data.records import Row
from cohobate.scoring.metrics import TaskMetric
from cohobate.scoring.verifiers import Task


class FigureOfAnswers(TaskMetric):
    """Base class of figures of all answers together."""

    type: str

    @property
    def name(self) -> str:
        """Name in tables."""
        return self.type

    def measure(self, rows: Sequence[Row], answers: Sequence[str], task: Task) -> float | None:
        """Return the figure of the answers to the rows of this metric's tasks."""
        pairs = zip(rows, answers, strict=True)
        own = [(row, answer) for row, answer in pairs if self.scores_task(row.task)]
        return self.figure([row for row, _ in own], [answer for _, answer in own], task)

    def figure(self, rows: Sequence[Row], answers: Sequence[str], task: Task) -> float | None:
        """Return the figure of answers to rows; None where there is none."""
        raise NotImplementedError


class MacroF1(FigureOfAnswers):
    """Mean over the labels of the F1 of each: every label weighs alike, however rare it is.

    The labels are the canonical forms of the reference answers; an answer that is none of them
    counts as missing, of no label.
    """

    type: Literal["macro_f1"]

    def figure(self, rows: Sequence[Row], answers: Sequence[str], task: Task) -> float | None:
        """Return the mean F1, from 0 to 1."""
        right, expected, given = Counter[str](), Counter[str](), Counter[str]()
        for row, answer in zip(rows, answers, strict=True):
            verifier = task.verifier_of(row.task)
            label, own = verifier.canonical(row.full_answer), verifier.canonical(answer)
            if label is None:
                continue
            expected[label] += 1
            right[label] += label == own
            if own is not None:
                given[own] += 1
        # 2 P R / (P + R), with P = right / given and R = right / expected
        scores = [2 * right[label] / (given[label] + n) for label, n in expected.items()]
        return sum(scores) / len(scores) if scores else None


class DistinctN(FigureOfAnswers):
    """Diversity: distinct n-grams of words over all n-grams of all answers (Li et al. 2016)."""

    type: Literal["distinct_n"]
    n: int = Field(2, ge=1, le=5)
    """Words of an n-gram."""

    @property
    def name(self) -> str:
        """Name in tables, such as `distinct_2`."""
        return f"distinct_{self.n}"

    def figure(self, rows: Sequence[Row], answers: Sequence[str], task: Task) -> float | None:
        """Return the share, from 0 to 1; None where no answer has n words."""
        total, distinct = 0, set[tuple[str, ...]]()
        for answer in answers:
            words = answer.split()
            grams = [tuple(words[start : start + self.n]) for start in range(len(words))]
            whole = [gram for gram in grams if len(gram) == self.n]
            total += len(whole)
            distinct.update(whole)
        return len(distinct) / total if total else None


class AnswerLength(FigureOfAnswers):
    """Mean length of an answer."""

    type: Literal["length"]
    unit: Literal["words", "characters"] = "words"

    @property
    def name(self) -> str:
        """Name in tables: `length_words` or `length_characters`."""
        return f"length_{self.unit}"

    def figure(self, rows: Sequence[Row], answers: Sequence[str], task: Task) -> float | None:
        """Return the mean."""
        if not answers:
            return None
        words = self.unit == "words"
        return sum(len(a.split()) if words else len(a.strip()) for a in answers) / len(answers)


AnswersFigure = MacroF1 | DistinctN | AnswerLength
