"""Direct preference optimisation: the better of two answers becomes likelier than the worse one.

Rafailov et al. 2023, "Direct Preference Optimization". On pairs that a teacher ranked this is the
last step of Zephyr (Tunstall et al. 2023). The losses are TRL's, under TRL's names
(cohobate/losses/preferences.py). The reference model is the student before training: its
log-probabilities are computed once, before the first update, and kept on disk
(cohobate/methods/reference_logprobs.py), so that no second model is in memory.
"""

from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from cohobate.data.records import Row
from cohobate.losses.preferences import LossType
from cohobate.methods.phase import Phase, PhaseResult

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Dpo(Phase):
    """Preference training on pairs; `rows` and `targets` are the pairs' file."""

    method: Literal["dpo"]
    beta: float = Field(0.1, gt=0)
    """β: how strongly the student is held to the reference; higher is closer. IPO's τ."""
    loss_type: dict[LossType, float] = Field({"sigmoid": 1.0}, min_length=1)
    """Losses as TRL names them, each with its weight; `{sigmoid: 1, sft: 0.1}` also keeps the
    chosen answers likely."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """Share of the pairs whose preference is taken to be the wrong way round (robust, exo_pair,
    aot)."""

    @model_validator(mode="after")
    def _learns_pairs(self) -> "Dpo":
        if self.targets != self.rows:
            raise ValueError(f"dpo learns pairs: targets must be the rows' file, {self.rows}")
        # a stage of this project writes pairs below data/preferences alone
        folders = PurePosixPath(self.rows).parts
        if folders[0] == "data" and folders[1:2] != ("preferences",):
            raise ValueError(
                f"{self.rows} has no pairs: dpo needs those of data/preferences/pairs.jsonl, or a "
                "file of your own with `prompt`, `chosen` and `rejected`"
            )
        if self.batch_size % self.rows_at_once:
            raise ValueError("micro_batch_size must divide batch_size: micro-batches count alike")
        if self.task_weights and {"aot", "aot_unpaired"}.intersection(self.loss_type):
            raise ValueError(
                "aot sorts its pairs, which then have no weight: leave out task_weights"
            )
        if "exo_pair" in self.loss_type and not self.label_smoothing:
            raise ValueError("exo_pair needs a label_smoothing above 0, such as 0.001")
        return self

    def train(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        rows: Sequence[Any],
        *,
        seed: int,
        label: str,
    ) -> PhaseResult:
        """Train on the pairs; both answers are tokenised as for every other method."""
        from cohobate.methods.preference_loss import PreferenceLoss, fit_pairs
        from cohobate.methods.reference_logprobs import ReferenceLogprobs

        chosen, rejected = (
            self.examples(tokenizer, [_row(pair, side, n) for n, pair in enumerate(rows)])
            for side in ("chosen", "rejected")
        )
        # `examples` leaves out long answers: a pair needs both of its sides
        both = {row.key for row in chosen} & {row.key for row in rejected}
        chosen, rejected = ([row for row in x if row.key in both] for x in (chosen, rejected))
        loss_fn = PreferenceLoss(
            model,
            self.loss_type,
            ReferenceLogprobs.of(self, seed, chosen, rejected),
            beta=self.beta,
            label_smoothing=self.label_smoothing,
            chunk_tokens=self.chunk_tokens,
            vocabulary=len(tokenizer),
        )
        history = fit_pairs(model, chosen, rejected, loss_fn, self, seed=seed, label=label)
        return PhaseResult(history, len(both), loss_fn.summary())


def _row(pair: Any, side: str, number: int) -> Row:
    """Return one side of a pair; its key has the pair's number, as a prompt may have many pairs."""
    return Row(
        id=f"{pair.id}/{number}",
        prompt=pair.prompt,
        prefix=pair.prefix,
        answer=getattr(pair, side),
        reasoning=getattr(pair, f"{side}_reasoning"),
        tool_calls=getattr(pair, f"{side}_tool_calls"),
        task=pair.task,
        weight=pair.weight,
    )
