"""The labels of a classification: the distinct answers of the labelled rows."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from cohobate import params
from cohobate.data.records import Row
from cohobate.errors import UserError
from cohobate.scoring.verifiers import Verifier

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
