"""Training of a causal language model on text and on a teacher's distributions.

    examples = examples_of(rows, encode_all(tokenizer, rows))       # cohobate/training/batches.py
    history = fit(model, examples, [Hard()], hyperparameters, seed=1, label="adapt main")

The loop is transformers' Trainer. What is ours: the hidden rows of the completion alone go through
the head, fused with the loss (cohobate/losses/fused_head.py); the loss is a mean over the valid
tokens of the whole update, over all workers; a loss or gradient that is not finite stops
everything at once; and a run goes on from verified checkpoints of its own
(cohobate/training/resume_trainer.py).

Shapes: N valid tokens, T terms.
"""

import math
import tempfile
import time
from collections.abc import Iterator, Sequence
from operator import itemgetter
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainingArguments,
)

from cohobate import processes
from cohobate.data.examples import Example
from cohobate.errors import UserError
from cohobate.losses.divergences import Hard
from cohobate.losses.soft_targets import ResponseTerm
from cohobate.models.lm_head import check_head
from cohobate.teachers.target_sources import TargetSource
from cohobate.training.batches import MicroBatches, plan_batches
from cohobate.training.callbacks import Follow, Resume
from cohobate.training.history import Update
from cohobate.training.hyperparameters import Hyperparameters
from cohobate.training.memory import check_training_memory
from cohobate.training.model_loss import CausalLMLoss, learning
from cohobate.training.resume_trainer import Continuing, keeper_of
from cohobate.training.resuming import CheckpointDir
from cohobate.training.target_weights import TargetWeights


class Rollouts(Protocol):
    """What writes the rows of an update when its turn has come."""

    def rows(self, update: int, planned: list[Example]) -> list[Example] | None:
        """Return the rows of the update (counted from 0); None for those that were planned."""

    def state(self) -> dict[str, Any]:
        """Return all that the rows of later updates depend on, as JSON values."""

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned."""


def fit(
    model: PreTrainedModel,
    examples: Sequence[Example],
    terms: Sequence[ResponseTerm],
    hyperparameters: Hyperparameters,
    *,
    seed: int,
    label: str,
    target_source: TargetSource | None = None,
    vocabulary: int | None = None,
    rollouts: Rollouts | None = None,
    loss_fn: Any = None,
) -> list[Update]:
    """Train `model` in place (its weights end as float32, in eval mode) and return the history.

    Args:
        model: any causal LM of transformers.
        examples: rows as token ids, in any order.
        terms: what the loss is made of (cohobate/losses/divergences.py); `[Hard()]` is plain SFT.
        hyperparameters: how long and how fast.
        seed: of the order of rows, and of dropout.
        label: name of this run in the progress, such as `train kd, seed 1`.
        target_source: where the teacher's distributions come from; every soft term needs it.
        vocabulary: number of real ids (`len(tokenizer)`) where the head is padded to be wider.
        rollouts: what writes the rows of an update just before it, in place of the planned ones.
        learner: what gives the loss of a batch, where that is more than `model` alone: a module
            with `names`, as `CausalLMLoss` has them.

    Raises:
        UserError: the loss or its gradient is not finite: names the rows; no rows to learn from; a
            soft term without signals; more memory is needed than there is; or a head that is more
            than a linear map.
    """
    _check_there_is_something_to_learn(examples, terms, target_source or loss_fn, label)
    torch.set_num_threads(hyperparameters.threads)
    check_head(model)
    longest = max(len(example.ids) for example in examples)
    batches = plan_batches(examples, hyperparameters, seed)
    shares = [processes.shard(batch) for batch in batches]
    data = MicroBatches(examples, shares, hyperparameters.rows_at_once, target_source)
    stages = [examples[batch[0]].stage for batch in batches]
    _check_memory(model, hyperparameters, longest, target_source, label)
    keeper = keeper_of(hyperparameters, examples, len(batches))
    with (
        learning(model, hyperparameters, longest, seed),
        tempfile.TemporaryDirectory() as scratch,
    ):
        chunk, compiled = hyperparameters.chunk_tokens, hyperparameters.compiled
        loss_fn = loss_fn or CausalLMLoss(
            model, terms, chunk, target_source, vocabulary, compiled=compiled
        )
        arguments = TrainingArguments(**options(hyperparameters, len(batches), seed, scratch))
        trainer = FusedTrainer(
            loss_fn, arguments, data, label, stages, keeper=keeper, rollouts=rollouts
        )
        trainer.finish()
    return trainer.history


def _check_there_is_something_to_learn(
    examples: Sequence[Example], terms: Sequence[ResponseTerm], taught: Any, label: str
) -> None:
    if not examples:
        raise UserError("there is nothing to learn: no row has an answer", where=label)
    if taught is None and any(not isinstance(term, Hard) for term in terms):
        raise UserError(
            "a soft term needs a teacher's signals", where=label, fix="targets: data/capture/…"
        )


def _check_memory(
    model: PreTrainedModel,
    hyperparameters: Hyperparameters,
    longest: int,
    target_source: TargetSource | None,
    label: str,
) -> None:
    """Refuse, before the first update, what would end for lack of memory."""
    if torch.cuda.is_available():
        return  # a GPU says so itself, at once
    asked = list(getattr(target_source, "models", {}).values())
    check_training_memory(
        model, hyperparameters, longest, asked, where=label, workers=processes.world_size()
    )


class FusedTrainer(Continuing, Trainer):
    """transformers' Trainer with its loss, its order of rows, its watch, and its way to resume."""

    def __init__(
        self,
        loss_fn: Any,
        arguments: TrainingArguments,
        data: MicroBatches,
        label: str,
        stages: Sequence[int],
        *,
        keeper: CheckpointDir | None = None,
        rollouts: Rollouts | None = None,
    ) -> None:
        super().__init__(loss_fn, arguments, train_dataset=data)
        self.remove_callback(PrinterCallback)
        self.add_callback(Follow(self))
        self.add_callback(Resume(self))
        self.loss_is_scaled_for_ga = True
        self.loss_fn, self.data, self.label, self.stages = loss_fn, data, label, stages
        self.names, self.weights = loss_fn.names, TargetWeights(data.examples)
        self.rollouts = rollouts
        remembered = self.go_on(keeper, label, len(stages))
        if rollouts is not None and remembered:
            rollouts.restore(remembered)
        self._losses: list[Tensor] = []
        self._parts: list[Tensor] = []
        self._norm, self._valid = math.nan, 0
        self._began, self._read = time.monotonic(), 0

    def remembered(self) -> dict[str, Any]:
        """Return what has been written, and how often."""
        return self.rollouts.state() if self.rollouts is not None else {}

    def get_train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """Return the planned micro-batches in their order, from the first still to come."""
        first = self.start * self.args.gradient_accumulation_steps
        order = range(first, len(self.data))
        return DataLoader(self.data, batch_size=1, sampler=order, collate_fn=itemgetter(0))

    def get_batch_samples(
        self, epoch_iterator: Iterator[dict[str, Tensor]], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Tensor]], Tensor]:
        """Return the micro-batches of one update, and the number of valid tokens in all of them."""
        batches = [next(epoch_iterator) for _ in range(num_batches)]
        if self.rollouts is not None:
            batches = self._written_now(self.rollouts, batches)
        first = self.state.global_step * num_batches
        self.weights.put(batches, [self.data.rows(first + n) for n in range(num_batches)])
        valid = torch.tensor(sum(len(batch["labels_N"]) for batch in batches), device=device)
        self._valid = int(processes.all_reduce_sum(valid))
        return batches, processes.all_reduce_sum(valid).clamp_min(1)

    def _written_now(
        self, rollouts: Rollouts, planned: list[dict[str, Tensor]]
    ) -> list[dict[str, Tensor]]:
        """Return the batches of this update as `rollouts` has them; here, not in the data set.

        A loader reads one batch ahead: that one would be written by the student of an update ago.
        """
        first = self.state.global_step * len(planned)
        numbers = range(first, first + len(planned))
        rows = [row for number in numbers for row in self.data.rows(number)]
        written = rollouts.rows(self.state.global_step, rows)
        if written is None:
            return planned
        self.data.put(numbers, written)
        return [self.data[number] for number in numbers]

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return this micro-batch's share of the update's mean loss over valid tokens."""
        loss, losses_NF = model(**inputs, divisor=num_items_in_batch)
        self._losses.append(loss.detach())
        self._parts.append(losses_NF)
        loss = loss * self.accelerator.num_processes  # what DDP's mean divides by
        return (loss, losses_NF) if return_outputs else loss

    def _clip_grad_norm(self, model: nn.Module) -> Tensor:
        """Clip; and stop before the step when the loss or the gradient is not finite."""
        norm: Tensor = super()._clip_grad_norm(model)
        self._norm = float(norm)
        if not math.isfinite(self._norm):
            raise self._not_finite()
        return norm

    def _not_finite(self) -> UserError:
        rows, bad = [], []
        for some, losses_NF in zip(self._rows_of_update(), self._parts, strict=True):
            owner = [row.key for row in some for _ in range(row.length)]
            finite = losses_NF.sum(-1).isfinite().tolist()
            rows += [row.key for row in some]
            bad += [key for key, good in zip(owner, finite, strict=True) if not good]
        rows, bad = processes.union(rows), processes.union(bad)
        shown = ", ".join(list(dict.fromkeys(bad or rows))[:8])
        return UserError(
            f"the {'loss' if bad else 'gradient'} is not finite; nothing is published",
            where=f"{self.label}, update {self.state.global_step + 1}, rows {shown}",
            fix="lower learning_rate or clip, or look at these rows",
        )

    def _rows_of_update(self) -> list[list[Example]]:
        first = self.state.global_step * self.args.gradient_accumulation_steps
        return [self.data.rows(first + n) for n in range(len(self._parts))]

    def close_update(self, learning_rate: float) -> Update:
        """Note the update whose gradient is complete."""
        step = self.state.global_step
        per_term = torch.stack([losses_NF.sum(0) for losses_NF in self._parts]).sum(0)
        loss, *terms = processes.all_reduce_sum(
            torch.cat([torch.stack(self._losses).sum()[None], per_term / max(self._valid, 1)])
        ).tolist()
        named = dict(zip(self.names, terms, strict=True))
        stage = self.stages[step]
        done = Update(step + 1, loss, learning_rate, stage, named, self._norm, self._valid)
        self.history.append(done)
        self._read += sum(len(row.ids) for rows in self._rows_of_update() for row in rows)
        self._losses.clear()
        self._parts.clear()
        return done

    def note(self) -> str:
        """Return how training goes, in a few words."""
        update = self.history[-1]
        terms = ", ".join(f"{name} {loss:.3f}" for name, loss in update.terms.items())
        pace = self._read * processes.world_size() / max(time.monotonic() - self._began, 1e-9)
        return f"stage {update.stage}, loss {update.loss:.3f} ({terms}), {pace:,.0f} tokens/s"


def options(
    hyperparameters: Hyperparameters, updates: int, seed: int, scratch: str
) -> dict[str, Any]:
    """Return the options of transformers' TrainingArguments, and of what TRL derives from them."""
    on_gpu = torch.cuda.is_available()
    share = hyperparameters.batch_size // processes.world_size()
    at_once = min(hyperparameters.rows_at_once, share)
    return {
        "output_dir": scratch,
        "use_cpu": not on_gpu,
        "bf16": hyperparameters.number_format == "bfloat16",
        "per_device_train_batch_size": at_once,
        "gradient_accumulation_steps": math.ceil(share / at_once),
        "max_steps": updates,
        "learning_rate": hyperparameters.learning_rate,
        "lr_scheduler_type": {"constant": "constant_with_warmup"}.get(
            hyperparameters.schedule, hyperparameters.schedule
        ),
        "warmup_steps": round(hyperparameters.warmup * updates),
        "weight_decay": hyperparameters.weight_decay,
        "adam_beta1": hyperparameters.betas[0],
        "adam_beta2": hyperparameters.betas[1],
        "max_grad_norm": hyperparameters.clip,
        "optim": {"adamw": "adamw_torch_fused"}.get(
            hyperparameters.optimiser, hyperparameters.optimiser
        ),
        "seed": seed,
        "report_to": "none",
        "logging_strategy": "no",
        "logging_nan_inf_filter": False,
        "save_strategy": "no",
        "eval_strategy": "no",
        "disable_tqdm": True,
        "log_level": "error",
        "remove_unused_columns": False,
        "dataloader_pin_memory": on_gpu,
        "ddp_find_unused_parameters": False,
    }
