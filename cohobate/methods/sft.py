"""Supervised fine-tuning: the rows' answers are the targets.

On a teacher's answers this is sequence-level distillation (Kim & Rush 2016).
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from cohobate.data.records import Row
from cohobate.losses.divergences import Hard
from cohobate.methods.phase import Phase, PhaseResult

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Sft(Phase):
    """Plain cross-entropy on the rows' answers."""

    method: Literal["sft"]
    # left out of params where it is not given: earlier runs resume
    turns: Literal["all", "last"] = Field("all", exclude_if=lambda turns: turns == "all")
    """Of conversations whose earlier assistant turns are marked as learnt (`collect.learn: all`, or
    a template of `generate`): all of them are learnt, or the answer alone."""

    @model_validator(mode="after")
    def _targets_are_the_rows(self) -> "Sft":
        if self.targets != self.rows:
            raise ValueError(f"sft learns the rows' own answers: targets must be {self.rows}")
        return self

    def train(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        rows: Sequence[Row],
        *,
        seed: int,
        label: str,
    ) -> PhaseResult:
        """Train on the answers' tokens and the end of sequence after them."""
        from cohobate.training.trainer import fit

        examples = self.examples(tokenizer, rows)
        if self.turns == "last":
            examples = [replace(one, spans=one.spans[-1:]) for one in examples]
        history = fit(
            model, examples, [Hard()], self, seed=seed, label=label, vocabulary=len(tokenizer)
        )
        return PhaseResult(history, len(examples))
