"""Training of a causal language model on text and on a teacher's distributions.

    examples = examples_of(rows, encode_all(tokenizer, rows))       # tasks/batches.py
    history = fit(model, examples, [Hard()], hyperparameters, seed=1, what="adapt main")

The loop is transformers' Trainer. What is ours: the hidden rows of the completion alone go through
the head, fused with the loss (tasks/fused_head.py); the loss is a mean over the valid tokens of the
whole update; a loss or gradient that is not finite stops everything at once.

Shapes: N valid tokens, T terms.
"""

import math
import tempfile
from collections.abc import Iterator, Sequence
from operator import itemgetter
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from tasks.batches import Batches, Example, plan
from tasks.divergences import Divergence, Term
from tasks.errors import UserError
from tasks.heads import check_head
from tasks.hyperparameters import Hyperparameters
from tasks.learner import Learner, attention, freeze
from tasks.progress import Meter
from tasks.signals import SignalStore


class Rollouts(Protocol):
    """What writes the rows of an update when its turn has come."""

    def rows(self, update: int, planned: list[Example]) -> list[Example] | None:
        """Return the rows of the update (counted from 0); None for those that were planned."""


class Update(NamedTuple):
    """One optimiser step."""

    step: int
    loss: float
    learning_rate: float
    stage: int


def fit(
    model: PreTrainedModel,
    examples: Sequence[Example],
    terms: Sequence[Term],
    hyperparameters: Hyperparameters,
    *,
    seed: int,
    what: str,
    signals: SignalStore | None = None,
    vocabulary: int | None = None,
    teacher: PreTrainedModel | None = None,
    rollouts: Rollouts | None = None,
    learner: nn.Module | None = None,
) -> list[Update]:
    """Train `model` in place (its weights end as float32, in eval mode) and return the history.

    Args:
        model: any causal LM of transformers.
        examples: rows as token ids, in any order.
        terms: what the loss is made of (tasks/divergences.py); `[Hard()]` is plain SFT.
        hyperparameters: how long and how fast.
        seed: of the order of rows, and of dropout.
        what: name of this run in the progress, such as `train kd, seed 1`.
        signals: where the teacher's stored distributions are read; every soft term needs them.
        vocabulary: number of real ids (`len(tokenizer)`) where the head is padded to be wider.
        teacher: a model that is asked for its distributions on every batch, in place of signals.
        rollouts: what writes the rows of an update just before it, in place of the planned ones.
        learner: what gives the loss of a batch, where that is more than `model` alone.

    Raises:
        UserError: the loss or its gradient is not finite: names the rows; no rows to learn from; a
            soft term without signals; or a head that is more than a linear map.
    """
    if not examples:
        raise UserError("there is nothing to learn: no row has an answer", where=what)
    taught = signals or teacher or learner
    if taught is None and any(isinstance(term, Divergence) for term in terms):
        raise UserError(
            "a soft term needs a teacher's signals", where=what, mend="targets: data/capture/…"
        )
    torch.set_num_threads(hyperparameters.threads)
    freeze(model.float(), hyperparameters.freeze)
    check_head(model)
    batches = plan(examples, hyperparameters, seed)
    data = Batches(examples, batches, hyperparameters.rows_at_once, signals)
    learner = learner or Learner(
        model, terms, hyperparameters.chunk_tokens, signals, vocabulary, teacher=teacher
    )
    stages = [examples[batch[0]].stage for batch in batches]
    longest = max(len(example.ids) for example in examples)
    with attention(model, hyperparameters, longest), tempfile.TemporaryDirectory() as scratch:
        arguments = TrainingArguments(**options(hyperparameters, len(batches), seed, scratch))
        meter = Meter(what, len(batches))
        trainer = FusedTrainer(learner, arguments, data, meter, stages, rollouts=rollouts)
        trainer.train()
    model.eval().requires_grad_(True)
    return trainer.history


class FusedTrainer(Trainer):
    """transformers' Trainer with its loss, its order of rows and its watch; it writes nothing."""

    def __init__(
        self,
        learner: nn.Module,
        arguments: TrainingArguments,
        data: Batches,
        meter: Meter,
        stages: Sequence[int],
        *,
        rollouts: Rollouts | None = None,
    ) -> None:
        super().__init__(learner, arguments, train_dataset=data)
        self.remove_callback(PrinterCallback)
        self.add_callback(Follow(self))
        self.loss_is_scaled_for_ga = True
        self.data, self.meter, self.stages, self.rollouts = data, meter, stages, rollouts
        self.history: list[Update] = []
        self._losses: list[Tensor] = []
        self._parts: list[Tensor] = []

    def get_train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """Return the planned micro-batches in their order."""
        loader = DataLoader(self.data, batch_size=1, collate_fn=itemgetter(0))
        prepared: DataLoader[dict[str, Tensor]] = self.accelerator.prepare(loader)
        return prepared

    def get_batch_samples(
        self, epoch_iterator: Iterator[dict[str, Tensor]], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Tensor]], Tensor]:
        """Return the micro-batches of one update, and the number of valid tokens in all of them."""
        batches = [next(epoch_iterator) for _ in range(num_batches)]
        if self.rollouts is not None:
            batches = self._written_now(self.rollouts, batches)
        valid = torch.tensor(sum(len(batch["targets_N"]) for batch in batches), device=device)
        if self.args.world_size > 1:
            valid = self.accelerator.gather(valid).sum()
        return batches, valid.clamp_min(1)

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
        loss, losses_NT = model(**inputs, divisor=num_items_in_batch)
        self._losses.append(loss.detach())
        self._parts.append(losses_NT)
        loss = loss * self.accelerator.num_processes  # what DDP's mean divides by
        return (loss, losses_NT) if return_outputs else loss

    def _clip_grad_norm(self, model: nn.Module) -> Tensor:
        """Clip; and stop before the step when the loss or the gradient is not finite."""
        norm: Tensor = super()._clip_grad_norm(model)
        if not math.isfinite(norm):
            raise self._not_finite()
        return norm

    def _not_finite(self) -> UserError:
        first = self.state.global_step * self.args.gradient_accumulation_steps
        rows, bad = [], []
        for number, losses_NT in enumerate(self._parts, start=first):
            some = self.data.rows(number)
            owner = [row.key for row in some for _ in range(row.length)]
            finite = losses_NT.sum(-1).isfinite().tolist()
            rows += [row.key for row in some]
            bad += [key for key, good in zip(owner, finite, strict=True) if not good]
        shown = ", ".join(list(dict.fromkeys(bad or rows))[:8])
        return UserError(
            f"the {'loss' if bad else 'gradient'} is not finite; nothing is published",
            where=f"{self.meter.what}, update {self.state.global_step + 1}, rows {shown}",
            mend="lower learning_rate or clip, or look at these rows",
        )

    def close_update(self, learning_rate: float) -> None:
        """Note the update whose gradient is complete."""
        step = self.state.global_step
        loss = float(torch.stack(self._losses).sum())
        self.history.append(Update(step + 1, loss, learning_rate, self.stages[step]))
        self._losses.clear()
        self._parts.clear()


class Follow(TrainerCallback):
    """Tells the meter and the history of each update."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Close the update."""
        self.trainer.close_update(kwargs["optimizer"].param_groups[0]["lr"])

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Count it."""
        self.trainer.meter.advance()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Say that it is over."""
        self.trainer.meter.finish()


def options(
    hyperparameters: Hyperparameters, updates: int, seed: int, scratch: str
) -> dict[str, Any]:
    """Return the options of transformers' TrainingArguments, and of what TRL derives from them."""
    on_gpu = torch.cuda.is_available()
    at_once = hyperparameters.rows_at_once
    return {
        "output_dir": scratch,
        "use_cpu": not on_gpu,
        "bf16": hyperparameters.precision == "bfloat16",
        "per_device_train_batch_size": at_once,
        "gradient_accumulation_steps": math.ceil(hyperparameters.batch_size / at_once),
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
        "optim": "adamw_torch_fused",
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
