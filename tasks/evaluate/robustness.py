"""Robustness: scores on perturbed prompts, on the longest test rows, and out of distribution.

Out-of-distribution rows are those of data/collect/ood.jsonl, where `collect` wrote it. Teacher and
student answer the same rows. A drop that both show lies in the task; one that the student alone
shows comes from distillation. Score arrays are (Z, R): Z seeds, R rows.
"""

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from cohobate.data.messages import Message
from cohobate.data.records import COLLECT, EVALUATE, Row, read_rows
from cohobate.evaluation.bootstrap import Bootstrap, Floats, Interval, unpaired_difference
from cohobate.params import Section
from tasks.evaluate.perturbations import TEXT, Perturbation

OUT_OF_DISTRIBUTION = COLLECT / "ood.jsonl"
ROBUSTNESS = EVALUATE / "robustness.json"
PERTURBED = EVALUATE / "perturbed.jsonl"
PERTURBED_ROLES = ("teacher", "baseline", "student")
"""Roles that answer the perturbed and out-of-distribution rows."""


class Variant(BaseModel):
    """A perturbed or out-of-distribution row, with the models' answers.

    {"variant": "typos", "id": "9f8a…", "prompt": "Definition: a smlal rodent\\nCategory:",
     "answers": {"teacher": [" animal"], "student": [" animal"]},
     "scores": {"teacher": [1.0], "student": [1.0]}}
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    variant: str
    id: str
    """Id of the test row, or of the out-of-distribution row."""
    prompt: str | tuple[Message, ...]
    answers: dict[str, list[str]]
    """By role, one for each seed."""
    scores: dict[str, list[float]]


class Robustness(Section):
    """Which prompts are perturbed, and how."""

    rows: int = Field(100, ge=0)
    """Test rows for each perturbation, and most rows out of distribution; 0: none."""
    template: str = Field(TEXT, pattern=r"\{text\}")
    """Template of this task's prompts: only `{text}` is perturbed."""
    perturbations: tuple[Perturbation, ...] = ()
    longest: float = Field(0.25, gt=0, lt=1)
    """Share of the test rows that counts as long; these are compared with the others."""
    seed: int = 0
    """Seed of the choice of rows and of the perturbations."""

    def variants(self, rows: Sequence[Row]) -> list[tuple[str, Row]]:
        """Return the perturbed and the out-of-distribution rows, each with its variant's name."""
        variants = []
        for perturbation, name in zip(self.perturbations, self._names(), strict=True):
            for row in self.chosen(rows):
                # by row: other rows or perturbations change no text
                rng = random.Random(f"{self.seed}/{name}/{row.id}")
                prompt = self._changed(row.prompt, perturbation, rng)
                # a teacher reads the perturbed prompt too, and none of its own
                changed = {"prompt": prompt, "teacher_prompt": None}
                variants.append((name, row.model_copy(update=changed)))
        return variants + [("out of distribution", row) for row in self._out_of_distribution()]

    def chosen(self, rows: Sequence[Row]) -> list[Row]:
        """Return the rows to perturb, the same for every perturbation."""
        return random.Random(self.seed).sample(list(rows), min(self.rows, len(rows)))

    def _names(self) -> list[str]:
        kinds = [perturbation.type for perturbation in self.perturbations]
        return [
            kind if kinds.count(kind) == 1 else f"{kind} {kinds[: n + 1].count(kind)}"
            for n, kind in enumerate(kinds)
        ]

    def _out_of_distribution(self) -> list[Row]:
        if not OUT_OF_DISTRIBUTION.exists():
            return []
        rows = [row for row in read_rows(OUT_OF_DISTRIBUTION, Row) if row.answer is not None]
        return self.chosen(rows)

    def _changed(
        self, prompt: str | tuple[Message, ...], perturbation: Perturbation, rng: random.Random
    ) -> str | tuple[Message, ...]:
        if isinstance(prompt, str):
            before, _, after = self.template.partition(TEXT)
            # a prompt that is not made of the template is text as a whole
            framed = prompt.startswith(before) and prompt.endswith(after)
            text = prompt[len(before) : len(prompt) - len(after)] if framed else prompt
            return perturbation.change(text, self.template if framed else TEXT, rng)
        last = prompt[-1]  # of a conversation only the last turn is perturbed
        changed = self._changed(last.content, perturbation, rng)
        return (*prompt[:-1], last.model_copy(update={"content": changed}))


@dataclass(frozen=True)
class RobustnessScores:
    """Scores on the test rows and on the variants, by role, (Z, R)."""

    test: Mapping[str, Floats]
    variants: Mapping[str, Mapping[str, Floats]]
    """By variant; perturbed rows in the order of `chosen`."""
    chosen: Sequence[int]
    """Positions of the perturbed rows among the test rows."""
    long: Sequence[int]
    """Positions of the longest test rows."""
    draws: int
    seed: int

    def table(self) -> list[dict[str, Any]]:
        """Return a line for each variant: scores, drops, and how much more the student loses."""
        unpaired = {"out of distribution"}
        lines = [
            self._unpaired(name, scores, self.test)
            if name in unpaired
            else self._paired(name, scores)
            for name, scores in self.variants.items()
        ]
        # the longest rows against all others of the test
        rest = np.setdiff1d(np.arange(next(iter(self.test.values())).shape[1]), self.long)
        if len(self.long) and len(rest):
            long = {role: s_ZR[:, list(self.long)] for role, s_ZR in self.test.items()}
            others = {role: s_ZR[:, rest] for role, s_ZR in self.test.items()}
            lines.append(self._unpaired("longest test rows", long, others))
        return lines

    def _paired(self, name: str, scores: Mapping[str, Floats]) -> dict[str, Any]:
        drops = {role: self.test[role][:, list(self.chosen)] - s for role, s in scores.items()}
        # a drop is a difference already: its interval is that of its difference to 0
        zero = {"zero": np.zeros((1, len(self.chosen)))}
        bootstrap = Bootstrap({**drops, **zero}, self.draws, self.seed)
        intervals = {role: bootstrap.difference(role, "zero") for role in drops}
        extra = bootstrap.difference("student", "teacher")
        return self._line(name, scores, intervals, extra)

    def _unpaired(
        self, name: str, scores: Mapping[str, Floats], others: Mapping[str, Floats]
    ) -> dict[str, Any]:
        """Compare scores on different rows, which cannot be paired."""
        here = Bootstrap(_with_gap(scores), self.draws, self.seed)
        # another seed: the two sets of rows are drawn independently
        there = Bootstrap(_with_gap(others), self.draws, self.seed + 1)
        intervals = {role: unpaired_difference(there, here, role) for role in scores}
        extra = unpaired_difference(here, there, "gap")
        return self._line(name, scores, intervals, extra)

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
    """Add the gap from student to teacher, row by row."""
    return {**scores, "gap": scores["teacher"] - scores["student"]}


def longest(rows: Sequence[Row], share: float) -> list[int]:
    """Return the positions of the longest prompts."""
    size = [len(str(row.prompt)) for row in rows]
    # by length, then by position: equal lengths give the same rows everywhere
    return sorted(sorted(range(len(rows)), key=lambda n: (-size[n], n))[: int(share * len(rows))])


def by_variant(variants: Iterable[Variant]) -> dict[str, dict[str, Floats]]:
    """Return the scores of each variant by role, (Z, R)."""
    lines: dict[str, list[Variant]] = {}
    for row in variants:
        lines.setdefault(row.variant, []).append(row)
    return {
        name: {role: np.array([row.scores[role] for row in rows]).T for role in rows[0].scores}
        for name, rows in lines.items()
    }


def read_variants(path: Path = PERTURBED) -> dict[str, dict[str, Floats]]:
    """Read the scores of each variant by role."""
    return by_variant(read_rows(path, Variant))
