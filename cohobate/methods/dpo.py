"""Direct preference optimisation: raise the better of two answers over the worse one.

Rafailov et al. 2023, "Direct Preference Optimization". On pairs that a teacher chose this is the
last step of Zephyr (Tunstall et al. 2023). The loss is TRL's, under TRL's names; what the student
said before training (the reference) is asked once, before the first update, and kept on disk
(cohobate/methods/reference_logprobs.py): no second model is ever in memory.
"""

from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from cohobate.data.records import Row
from cohobate.methods.phase import PhaseResult, SingleProcess

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LossType = Literal[
    "sigmoid",
    "sigmoid_norm",
    "hinge",
    "ipo",
    "exo_pair",
    "nca_pair",
    "robust",
    "bco_pair",
    "sppo_hard",
    "aot",
    "aot_unpaired",
    "apo_zero",
    "apo_down",
    "discopop",
    "sft",
]


class Dpo(SingleProcess):
    """Preference training on pairs; `rows` and `targets` are the pairs' file."""

    method: Literal["dpo"]
    beta: float = Field(0.1, gt=0)
    """β: how hard the student is held to what it said before; higher is closer. IPO's τ."""
    loss_type: dict[LossType, float] = Field({"sigmoid": 1.0}, min_length=1)
    """Losses as TRL names them, each with its weight; `{sigmoid: 1, sft: 0.1}` also keeps the
    chosen answers likely."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """Share of the pairs that are taken to be the wrong way round (cDPO, robust, exo_pair)."""

    @model_validator(mode="after")
    def _learns_pairs(self) -> "Dpo":
        if self.targets != self.rows:
            raise ValueError(f"dpo learns pairs: targets must be the rows' file, {self.rows}")
        folders = PurePosixPath(self.rows).parts
        if folders[0] == "data" and folders[1:2] != ("preferences",):
            raise ValueError(
                f"{self.rows} has no pairs: dpo needs those of data/preferences/pairs.jsonl, or a "
                "file of your own with `prompt`, `chosen` and `rejected`"
            )
        if self.batch_size % self.rows_at_once:
            raise ValueError("micro_batch_size must divide batch_size: dpo's loss is a mean a pair")
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
        """Train on the pairs, both answers cut into tokens by the rule of every other method."""
        from cohobate.methods.preference_trainer import fit_pairs

        chosen, rejected = (
            self.examples(tokenizer, [_row(pair, side) for pair in rows])
            for side in ("chosen", "rejected")
        )
        both = {row.key for row in chosen} & {row.key for row in rejected}
        chosen, rejected = ([row for row in x if row.key in both] for x in (chosen, rejected))
        trained = fit_pairs(model, tokenizer, chosen, rejected, self, seed=seed, label=label)
        return PhaseResult(trained.history, len(both), trained.notes)


def _row(pair: Any, side: str) -> Row:
    answer = getattr(pair, side)
    return Row(id=pair.id, prompt=pair.prompt, prefix=pair.prefix, answer=answer)
