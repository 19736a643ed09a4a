"""Base class of the export forms: writing, loading, generating, usage text."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple, Self

from pydantic import Field

from cohobate.data.messages import Message
from cohobate.data.records import Row
from cohobate.errors import UserError
from cohobate.params import Section


class Tolerance(Section):
    """Allowed deviation of a form from the original on the sample of dev rows."""

    score: float = Field(0.01, ge=0, le=1)
    """So much of its score (0 to 1, by the first of `evaluate.metrics`) it may lose at most."""
    agreement: float = Field(0.98, ge=0, le=1)
    """On at least this share of the rows its greedy answer is the original's to the letter, white
    space at the ends aside."""
    loss: float = Field(0.05, ge=0)
    """By so many nats a token its mean loss on the rows' right answers may rise, where its runtime
    gives the probabilities."""


class Questions(NamedTuple):
    """The prompts of the check, and how they are answered."""

    prompts: Sequence[str | tuple[Message, ...]]
    max_tokens: int
    """Maximum number of tokens of an answer, end token included."""
    threads: int
    documents: Sequence[str] = ()
    """What an embedder ranks: the answers of the dev rows."""


class Form(Section, ABC):
    """One form of the student, written to a folder of its own below models/export."""

    tolerance: Tolerance = Tolerance()
    """Allowed deviation from the original; beyond it nothing is published."""

    reader: ClassVar[str]
    """The software that loads it."""
    writes_generators: ClassVar[bool] = True
    """Whether a model that generates can be written in this form."""
    writes_classifiers: ClassVar[bool] = False
    """Whether a classifier can be written in this form."""
    writes_embedders: ClassVar[bool] = False
    """Whether an embedder can be written in this form."""
    writes_masked: ClassVar[bool] = False
    """Whether a masked model can be written in this form."""
    writes_seeing: ClassVar[bool] = False
    """Whether a model that sees can be written in this form."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Name of its folder."""

    @property
    @abstractmethod
    def usage(self) -> str:
        """How to run it, in Markdown, for the model card."""

    def usage_of(self, folder: Path) -> str:
        """Return how to run what was written to `folder`, in Markdown."""
        return self.usage

    def serving(self, student: Path, folder: Path, example: Row) -> str:
        """Return how servers open `folder`, in Markdown; write what they need beside it.

        Args:
            student: the checkpoint that was written.
            folder: with what was written.
            example: a row of the task, which says whether prompts are conversations.
        """
        return ""

    def for_restored(self) -> Self:
        """Return it with room for a student that got a vocabulary back, unless room was given.

        Prompts with tokens that it never learnt were cut into smaller ones before, and are read
        otherwise now.
        """
        if "tolerance" in self.model_fields_set:
            return self
        score, least, loss = self.tolerance.score, self.tolerance.agreement, self.tolerance.loss
        room = Tolerance(score=max(score, 0.02), agreement=min(least, 0.9), loss=max(loss, 0.05))
        return self.model_copy(update={"tolerance": room})

    @abstractmethod
    def write(self, student: Path, folder: Path) -> None:
        """Write the checkpoint `student` in this form to the empty folder `folder`.

        Raises:
            UserError: the model cannot be written so, or a library is not installed.
        """

    @abstractmethod
    def answers(self, folder: Path, questions: Questions) -> list[str]:
        """Load the written form, as users will, and generate greedily."""

    def losses(self, folder: Path, rows: Sequence[Row], threads: int) -> list[float] | None:
        """Open what was written; return the mean loss of each row's right answer, nats a token.

        None where what opens it gives no probabilities of a text that it is shown.
        """
        return None


def not_installed(library: str, form: str, extra: str = "export") -> UserError:
    """Return the error for a form whose library is not installed."""
    return UserError(
        f"{library} is not installed: it writes or reads the form {form}",
        where="params.yaml, export.forms",
        fix=f'pip install -e ".[{extra}]"',
    )
