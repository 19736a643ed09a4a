"""What is left of teacher and student where prompts are not those they were taught with.

Three kinds of rows: test rows said otherwise (`perturbations`), the longest of the test rows as
they are, and rows from elsewhere, where `collect` wrote data/collect/ood.jsonl. Both models answer
the same ones, and the student's drop stands beside the teacher's: what the teacher loses as well
is the task's doing, what the student alone loses is distillation's.

Legend: K seeds, N rows.
"""

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from cohobate.data.records import COLLECT, EVALUATE, Message, Row, read_rows
from cohobate.evaluation.bootstrap import Bootstrap, Floats, Interval, difference_apart
from cohobate.params import Section
from tasks.evaluate.perturbations import TEXT, Perturbation

OUT_OF_DISTRIBUTION = COLLECT / "ood.jsonl"
ROBUSTNESS = EVALUATE / "robustness.json"
PERTURBED = EVALUATE / "perturbed.jsonl"
VARIED = ("teacher", "baseline", "student")
"""Who answers the prompts that are not test rows as they stand."""


class Variant(BaseModel):
    """A row that is not a test row as it stands, and what was answered.

    {"variant": "typos", "id": "9f8a…", "prompt": "Definition: a smlal rodent\\nCategory:",
     "answers": {"teacher": [" animal"], "student": [" animal"]},
     "scores": {"teacher": [1.0], "student": [1.0]}}
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    variant: str
    id: str
    """Of the test row, or of the row from elsewhere."""
    prompt: str | tuple[Message, ...]
    answers: dict[str, list[str]]
    """By role, an answer for each seed."""
    scores: dict[str, list[float]]


class Robustness(Section):
    """How prompts are changed, and how many of them."""

    rows: int = Field(100, ge=0)
    """Test rows that are changed in each way, and at most so many from elsewhere; 0: none."""
    template: str = Field(TEXT, pattern=r"\{text\}")
    """How the prompts of this task read; `{text}` is what is changed, the rest is kept."""
    perturbations: tuple[Perturbation, ...] = ()
    """The ways."""
    longest: float = Field(0.25, gt=0, lt=1)
    """Share of the test rows that counts as long; they are compared with the others."""
    seed: int = 0
    """Of the choice of rows, and of the changes."""

    def variants(self, rows: Sequence[Row]) -> list[tuple[str, Row]]:
        """Return the changed rows and those from elsewhere, each with the name of its kind."""
        found = []
        for perturbation, name in zip(self.perturbations, self._names(), strict=True):
            for row in self.chosen(rows):
                chance = random.Random(f"{self.seed}/{name}/{row.id}")
                prompt = self._changed(row.prompt, perturbation, chance)
                found.append((name, row.model_copy(update={"prompt": prompt})))
        return found + [("out of distribution", row) for row in self._elsewhere()]

    def chosen(self, rows: Sequence[Row]) -> list[Row]:
        """Return the test rows that are changed, the same for every change."""
        return random.Random(self.seed).sample(list(rows), min(self.rows, len(rows)))

    def _names(self) -> list[str]:
        kinds = [perturbation.type for perturbation in self.perturbations]
        return [
            kind if kinds.count(kind) == 1 else f"{kind} {kinds[: n + 1].count(kind)}"
            for n, kind in enumerate(kinds)
        ]

    def _elsewhere(self) -> list[Row]:
        if not OUT_OF_DISTRIBUTION.exists():
            return []
        rows = [row for row in read_rows(OUT_OF_DISTRIBUTION, Row) if row.answer is not None]
        return self.chosen(rows)

    def _changed(
        self, prompt: str | tuple[Message, ...], how: Perturbation, chance: random.Random
    ) -> str | tuple[Message, ...]:
        if isinstance(prompt, str):
            before, _, after = self.template.partition(TEXT)
            framed = prompt.startswith(before) and prompt.endswith(after)
            text = prompt[len(before) : len(prompt) - len(after)] if framed else prompt
            return how.change(text, self.template if framed else TEXT, chance)
        last = prompt[-1]  # of a conversation, the last turn is what is asked
        changed = self._changed(last.content, how, chance)
        return (*prompt[:-1], last.model_copy(update={"content": changed}))


@dataclass(frozen=True)
class Scores:
    """What teacher and student scored: by role, (K, N)."""

    test: Mapping[str, Floats]
    variants: Mapping[str, Mapping[str, Floats]]
    """By variant; the perturbed ones in the order of `chosen`."""
    chosen: Sequence[int]
    """Places of the changed rows among the test rows."""
    long: Sequence[int]
    """Places of the longest test rows."""
    draws: int
    seed: int

    def table(self) -> list[dict[str, Any]]:
        """Return a line for each variant: scores, drops, and how much more the student loses."""
        apart = {"out of distribution"}
        lines = [
            self._apart(name, scores, self.test) if name in apart else self._paired(name, scores)
            for name, scores in self.variants.items()
        ]
        rest = np.setdiff1d(np.arange(next(iter(self.test.values())).shape[1]), self.long)
        if len(self.long) and len(rest):
            long = {role: s_KN[:, list(self.long)] for role, s_KN in self.test.items()}
            others = {role: s_KN[:, rest] for role, s_KN in self.test.items()}
            lines.append(self._apart("longest test rows", long, others))
        return lines

    def _paired(self, name: str, scores: Mapping[str, Floats]) -> dict[str, Any]:
        drops = {role: self.test[role][:, list(self.chosen)] - s for role, s in scores.items()}
        none = {"nothing": np.zeros((1, len(self.chosen)))}
        lost = Bootstrap({**drops, **none}, self.draws, self.seed)
        found = {role: lost.difference(role, "nothing") for role in drops}
        return self._line(name, scores, found, lost.difference("student", "teacher"))

    def _apart(
        self, name: str, scores: Mapping[str, Floats], others: Mapping[str, Floats]
    ) -> dict[str, Any]:
        """The rows are others than those they are compared with: nothing pairs them."""
        here = Bootstrap(_with_gap(scores), self.draws, self.seed)
        there = Bootstrap(_with_gap(others), self.draws, self.seed + 1)
        found = {role: difference_apart(there, here, role) for role in scores}
        return self._line(name, scores, found, difference_apart(here, there, "gap"))

    def _line(
        self,
        name: str,
        scores: Mapping[str, Floats],
        drops: Mapping[str, Interval],
        extra: Interval,
    ) -> dict[str, Any]:
        bootstrap = Bootstrap(scores, self.draws, self.seed)
        return {
            "variant": name,
            "rows": next(iter(scores.values())).shape[1],
            "score": {role: bootstrap.score(role).rounded() for role in scores},
            "drop": {role: drop.rounded() for role, drop in drops.items()},
            "students_extra_drop": extra.rounded(),
        }


def _with_gap(scores: Mapping[str, Floats]) -> dict[str, Floats]:
    """Add how far the student is behind the teacher, row by row."""
    return {**scores, "gap": scores["teacher"] - scores["student"]}


def longest(rows: Sequence[Row], share: float) -> list[int]:
    """Return the places of the longest prompts."""
    size = [len(str(row.prompt)) for row in rows]
    return sorted(sorted(range(len(rows)), key=lambda n: (-size[n], n))[: int(share * len(rows))])


def by_variant(variants: Iterable[Variant]) -> dict[str, dict[str, Floats]]:
    """Return the scores of each variant by role, (K, N), from the rows of a file."""
    lines: dict[str, list[Variant]] = {}
    for row in variants:
        lines.setdefault(row.variant, []).append(row)
    return {
        name: {role: np.array([row.scores[role] for row in found]).T for role in found[0].scores}
        for name, found in lines.items()
    }


def read_variants(path: Path = PERTURBED) -> dict[str, dict[str, Floats]]:
    """Return what was answered on the variants, by variant and role."""
    return by_variant(read_rows(path, Variant))
