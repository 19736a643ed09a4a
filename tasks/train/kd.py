"""Distillation from a teacher's stored distributions, on text that is given (off-policy)."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from tasks.divergences import Term
from tasks.records import Row
from tasks.train.phase import Phase, Trained

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Kd(Phase):
    """A weighted sum of divergences from the teacher, and of the rows' own answers if wished."""

    method: Literal["kd"]
    terms: tuple[Term, ...] = Field(min_length=1)
    """What the loss is made of, each with its weight; the sum is per valid token."""

    def train(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        rows: Sequence[Row],
        *,
        seed: int,
        what: str,
    ) -> Trained:
        """Train against the signal store `targets`, which must be of these rows and ids."""
        from tasks.signals import SignalStore
        from tasks.trainer import fit

        signals = SignalStore(Path(self.targets))
        examples = signals.attach(self.examples(tokenizer, rows), tokenizer)
        history = fit(
            model,
            examples,
            self.terms,
            self,
            seed=seed,
            what=what,
            signals=signals,
            vocabulary=len(tokenizer),
        )
        return Trained(history, len(examples))
