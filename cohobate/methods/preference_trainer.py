"""TRL's DPOTrainer over pairs that are token ids already, with this project's order and watch."""

import copy
import math
import tempfile
import warnings
from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback
from trl import DPOConfig, DPOTrainer

from cohobate.data.examples import Example
from cohobate.errors import UserError
from cohobate.methods.phase import PhaseResult
from cohobate.methods.reference_logprobs import Both, ReferenceCache
from cohobate.training.batches import plan_batches
from cohobate.training.callbacks import Follow, Resume
from cohobate.training.history import Update
from cohobate.training.model_loss import learning
from cohobate.training.resume_trainer import Continuing, keeper_of
from cohobate.training.resuming import CheckpointDir
from cohobate.training.trainer import options

if TYPE_CHECKING:
    from cohobate.methods.dpo import Dpo


def fit_pairs(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    chosen: Sequence[Example],
    rejected: Sequence[Example],
    how: "Dpo",
    *,
    seed: int,
    label: str,
) -> PhaseResult:
    """Train `model` in place on pairs, `chosen` and `rejected` being parallel.

    Raises:
        UserError: there is no pair; or loss or gradient are not finite: names the pairs.
    """
    if not chosen:
        raise UserError("there is nothing to learn: no pair is short enough", where=label)
    torch.set_num_threads(how.threads)
    batches = plan_batches(chosen, how, seed)
    longest = max(len(row.ids) for row in [*chosen, *rejected])
    config, generation = model.config, model.generation_config
    before = config.pad_token_id, config.use_cache, generation.pad_token_id
    with (
        learning(model, how, longest, seed),
        tempfile.TemporaryDirectory() as scratch,
        warnings.catch_warnings(),
    ):
        # TRL 1.16 calls transformers 5.23 by names that are about to change
        warnings.simplefilter("ignore", FutureWarning)
        trainer = PairTrainer(
            model,
            ReferenceCache.of(how, seed, chosen, rejected),
            args=_arguments(how, len(batches), seed, scratch),
            train_dataset=_data_set(chosen, rejected),
            processing_class=copy.deepcopy(tokenizer),  # TRL gives it a padding token
        )
        pairs = list(zip(chosen, rejected, strict=True))
        both = [row for pair in pairs for row in pair]
        trainer.follow(pairs, batches, keeper_of(how, both, len(batches)), label)
        trainer.finish()
        del model.forward  # TRL's, which can give log-probabilities instead of logits
    config.pad_token_id, config.use_cache, generation.pad_token_id = before
    return PhaseResult(trainer.history, len(chosen), trainer.figures())


class PairTrainer(Continuing, DPOTrainer):
    """DPOTrainer that takes pairs as they are, in a planned order, and stops at what is not finite.

    What overrides a private method of TRL 1.16 or transformers 5.23 says so; the tests of the
    phase hold each of them.
    """

    def __init__(self, model: PreTrainedModel, references: ReferenceCache, **options: Any) -> None:
        self.references = references
        super().__init__(model, **options)
        self.loss_fn = model
        self.remove_callback(PrinterCallback)
        self.add_callback(Follow(self))
        self.add_callback(Resume(self))

    def follow(
        self,
        pairs: Sequence[tuple[Example, Example]],
        batches: Sequence[Sequence[int]],
        keeper: CheckpointDir | None,
        label: str,
    ) -> None:
        """Say which pairs each update takes, and where the run is kept from which it goes on."""
        self.pairs, self.batches = pairs, batches
        self._losses, self._norm = list[Tensor](), math.nan
        self._told: dict[str, list[float]] = {"accuracies": [], "margins": []}
        self._told |= self.go_on(keeper, label, len(batches))

    def remembered(self) -> dict[str, Any]:
        """Return what is told at the end."""
        return self._told

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        """Private in TRL: leave the pairs as they are, cut into tokens as for every method."""
        return dataset

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        """Private in TRL: ask the reference once, and keep what it said where a rerun finds it."""

        def ask() -> Both:
            loader = DataLoader(dataset, batch_size=batch_size, collate_fn=self.data_collator)
            model = self.model
            parts = [self.compute_ref_log_probs(model, self._prepare_inputs(b)) for b in loader]
            chosen, rejected = zip(*parts, strict=True)
            return torch.cat(chosen), torch.cat(rejected)

        both = self.references.read_or(ask)
        for side, logps_N in zip(("chosen", "rejected"), both, strict=True):
            dataset = dataset.add_column(f"ref_{side}_logps", logps_N.tolist())
        return dataset

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """Private in transformers: the planned order, from the first update still to come."""
        return [pair for batch in self.batches[self.start :] for pair in batch]

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return TRL's loss of a micro-batch, and remember it."""
        loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        self._losses.append(loss.detach())
        for name, seen in self._told.items():
            seen.append(float(self._metrics["train"][f"rewards/{name}"][-1]))
        return loss

    def _clip_grad_norm(self, model: nn.Module) -> Tensor:
        """Private in transformers: clip; and stop where loss or gradient are not finite."""
        norm: Tensor = super()._clip_grad_norm(model)
        self._norm = float(norm)
        if not math.isfinite(self._norm):
            step = self.state.global_step
            bad = "gradient" if all(loss.isfinite() for loss in self._losses) else "loss"
            pairs = [self.pairs[n][0].key for n in self.batches[step]]
            raise UserError(
                f"the {bad} is not finite; nothing is published",
                where=f"{self.meter.what}, update {step + 1}, pairs {', '.join(pairs[:8])}",
                fix="lower learning_rate or clip, or look at these pairs",
            )
        return norm

    def close_update(self, learning_rate: float) -> Update:
        """Note the update whose gradient is complete."""
        step = self.state.global_step
        loss = float(torch.stack(self._losses).mean())
        tokens = sum(row.length for n in self.batches[step] for row in self.pairs[n])
        done = Update(step + 1, loss, learning_rate, 0, gradient_norm=self._norm, tokens=tokens)
        self.history.append(done)
        self._losses.clear()
        return done

    def note(self) -> str:
        """Return how training goes, in a few words."""
        accuracy = self._told["accuracies"][-1]
        return f"loss {self.history[-1].loss:.3f}, right about {accuracy:.0%} of the last pairs"

    def figures(self) -> dict[str, float]:
        """Return how well the student told the pairs apart over the last tenth of the updates."""
        return {
            f"reward {name}": round(fmean(seen[-max(1, len(seen) // 10) :]), 4)
            for name, seen in self._told.items()
        }


def _data_set(chosen: Sequence[Example], rejected: Sequence[Example]) -> Dataset:
    return Dataset.from_dict(
        {
            "prompt_ids": [row.ids[: row.prompt_length].tolist() for row in chosen],
            "chosen_ids": [row.ids[row.prompt_length :].tolist() for row in chosen],
            "rejected_ids": [row.ids[row.prompt_length :].tolist() for row in rejected],
        }
    )


def _arguments(how: "Dpo", updates: int, seed: int, scratch: str) -> DPOConfig:
    return DPOConfig(
        **options(how, updates, seed, scratch),
        beta=how.beta,
        loss_type=list(how.loss_type),
        loss_weights=list(how.loss_type.values()),
        label_smoothing=how.label_smoothing,
        precompute_ref_log_probs=True,
        max_length=None,  # too long pairs are left out, none is cut
        gradient_checkpointing=False,
    )
