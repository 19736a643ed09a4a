"""Early exits: deeper layers teach shallower ones of the same model.

Zhang et al. 2019, "Be Your Own Teacher": classifiers at several depths learn the labels and the
predictions of the deepest one. As in LayerSkip (Elhoushi et al. 2024) all exits share the model's
last norm and its head, so that the blocks up to an exit are a model of their own, which
transformers opens as it is.
"""

from collections.abc import Sequence
from copy import deepcopy
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from cohobate.data.records import Row
from cohobate.errors import UserError
from cohobate.losses.divergences import ForwardKL, Hard, Term
from cohobate.methods.phase import WHOLE, Phase, PhaseResult

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class EarlyExit(Phase):
    """A model and its exits trained at once; the model up to the first exit is published."""

    method: Literal["early_exit"]
    exits: tuple[Annotated[int, Field(ge=1)], ...] = Field(min_length=1)
    """Numbers of blocks after which the head reads too, ascending, such as `[15]` of thirty. The
    model up to the first of them is the student."""
    terms: tuple[Term, ...] = (Hard(), ForwardKL())
    """The loss of each exit: hard terms on the rows' answers, which the whole model has too, and
    soft ones from the whole model's distributions."""
    keep_whole: bool = False
    """Publish the whole model too, as `models/train/<phase>/whole`: a row of its own in the
    report."""

    @model_validator(mode="after")
    def _makes_sense(self) -> "EarlyExit":
        if self.targets != self.rows:
            raise ValueError(f"early_exit learns the rows' answers: targets must be {self.rows}")
        if list(self.exits) != sorted(set(self.exits)):
            raise ValueError("exits must ascend, each once")
        if {isinstance(term, Hard) for term in self.terms} != {True, False}:
            raise ValueError(
                "early_exit needs a hard term (the rows' answers) and a soft one (deeper layers)"
            )
        if self.dev:
            raise ValueError("dev would score the whole model, not the exit: leave it out")
        if self.adapter.type == "lora" and self.adapter.save_adapter:
            raise ValueError("early_exit publishes fewer layers: leave out save_adapter")
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
        """Train all layers of `model`, then cut it behind its first exit."""
        from cohobate.methods.early_exit_loss import EarlyExitLoss
        from cohobate.students.layer_cutting import keep_layers, layer_stack
        from cohobate.training.trainer import fit

        depth = len(layer_stack(model))
        if self.exits[-1] >= depth:
            raise UserError(
                f"an exit after block {self.exits[-1]} of {depth} has no deeper layer to learn "
                "from",
                where=f"exits of {label}",
                fix=f"exits between 1 and {depth - 1}",
            )
        examples = self.examples(tokenizer, rows)
        loss_fn = EarlyExitLoss(
            model,
            self.exits,
            self.terms,
            chunk_tokens=self.chunk_tokens,
            vocabulary=len(tokenizer),
            compiled=self.compiled,
        )
        history = fit(model, examples, self.terms, self, seed=seed, label=label, loss_fn=loss_fn)
        whole = {WHOLE: deepcopy(model)} if self.keep_whole else {}
        keep_layers(model, range(self.exits[0]))
        return PhaseResult(history, len(examples), extra_models=whole)
