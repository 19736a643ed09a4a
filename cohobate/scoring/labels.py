"""The labels of a classification: the distinct answers of the labelled rows, and their texts."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from cohobate import params
from cohobate.data.records import Row
from cohobate.errors import UserError
from cohobate.scoring.verifiers import Verifier

NO_LABEL = -1
"""Stands for the label of a row whose answer is none."""
_VERIFIER = "label_verifier"
"""The key of config.json that says how answers are compared with a classifier's labels."""


@dataclass(frozen=True)
class LabelSet:
    """Labels in their canonical form, and the verifier that brings an answer into it."""

    names: tuple[str, ...]
    """In the order of a classifier's outputs."""
    verifier: Verifier

    @classmethod
    def of_rows(cls, rows: Iterable[Row], verifier: Verifier, where: str) -> "LabelSet":
        """Return the labels of the rows' answers, sorted.

        Raises:
            UserError: there are fewer than two, or nearly every row has a label of its own.
        """
        answers = [row.full_answer for row in rows if row.answer is not None]
        counts = Counter(verifier.canonical(answer) for answer in answers)
        names = tuple(sorted(name for name in counts if name is not None))
        if len(names) < 2 or 2 * len(names) > len(answers):
            raise UserError(
                f"the {len(answers)} labelled rows have {len(names)} distinct answers: "
                "a classifier needs at least two labels, with two rows or more for each",
                where=where,
                fix="task.verifier: {type: label} for a closed set of answers, or a student that "
                "generates: init_student: {type: teacher_layers, ...}",
            )
        return cls(names, verifier)

    @classmethod
    def of_config(cls, config: Any) -> "LabelSet":
        """Return the labels of a classifier from its configuration."""
        names = tuple(str(config.id2label[n]) for n in range(len(config.id2label)))
        # a classifier from elsewhere: its labels are compared as texts
        written = getattr(config, _VERIFIER, None) or {"type": "label"}
        return cls(names, params.validated(Verifier, written, f"config.json, {_VERIFIER}"))

    @staticmethod
    def is_in(config: Any) -> bool:
        """Say whether `write_into` has written labels into a configuration."""
        return hasattr(config, _VERIFIER)

    def write_into(self, config: Any) -> None:
        """Write names and verifier into a classifier's configuration."""
        config.id2label = dict(enumerate(self.names))
        config.label2id = {name: n for n, name in enumerate(self.names)}
        setattr(config, _VERIFIER, self.verifier.model_dump(mode="json"))

    def index(self, answer: str) -> int | None:
        """Return the place of an answer's label; None where it is none of the labels."""
        form = self.verifier.canonical(answer)
        return None if form is None else self._places.get(form)

    @cached_property
    def _places(self) -> dict[str | None, int]:
        # labels of a classifier from elsewhere need not be written in the canonical form
        return {self.verifier.canonical(name): n for n, name in enumerate(self.names)}


@dataclass(frozen=True)
class LabelTexts:
    """Labels, and how each is written as an answer: what a model that generates gives."""

    labels: LabelSet
    texts: tuple[str, ...]
    """To the letter, such as ` animal`: of each label the answer that most rows have."""

    @classmethod
    def of_rows(cls, rows: Iterable[Row], verifier: Verifier, where: str) -> "LabelTexts":
        """Return the labels of the rows' answers with their texts.

        Raises:
            UserError: the answers are no closed set.
        """
        answered = [row for row in rows if row.answer is not None]
        labels = LabelSet.of_rows(answered, verifier, where)
        counts: list[Counter[str]] = [Counter() for _ in labels.names]
        for row in answered:
            index = labels.index(row.full_answer)
            if index is not None and row.answer:
                counts[index][row.answer] += 1
        # of texts that are as common, the first in the alphabet
        texts = [min(each.items(), key=lambda item: (-item[1], item[0]))[0] for each in counts]
        return cls(labels, tuple(texts))
