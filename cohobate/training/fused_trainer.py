"""transformers' Trainer for losses that are fused with the head, over planned micro-batches."""

import math
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from operator import itemgetter
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainingArguments

from cohobate import processes
from cohobate.data.examples import Example
from cohobate.errors import UserError
from cohobate.progress import Meter, say
from cohobate.training import checkpointing
from cohobate.training.batches import MicroBatches
from cohobate.training.callbacks import CheckpointCallback, DevCallback, HistoryCallback
from cohobate.training.checkpointing import CheckpointDir
from cohobate.training.dev_checks import DevTracker
from cohobate.training.history import Update
from cohobate.training.model_loss import ModelLoss
from cohobate.training.target_weights import TargetWeights


class Rollouts(Protocol):
    """Generates the rows of an update just before it, in place of the planned ones."""

    def rows(self, update: int, planned: list[Example]) -> list[Example] | None:
        """Return the rows of the update (counted from 0); None to keep the planned ones.

        Planned and returned are the rows of all workers, the same in each of them.
        """

    def state(self) -> dict[str, Any]:
        """Return all that the rows of later updates depend on, as JSON values."""

    def restore(self, state: dict[str, Any]) -> None:
        """Set what `state` returned."""


class FusedTrainer(Trainer):
    """transformers' Trainer for a `ModelLoss` over planned micro-batches.

    It reads the history of the newest checkpoint when it is made: `start` updates are done. Weights
    are restored by `train_remaining`; optimizer, schedule and random states by
    `CheckpointCallback`.
    """

    def __init__(
        self,
        loss_fn: ModelLoss,
        arguments: TrainingArguments,
        data: MicroBatches,
        label: str,
        curriculum_stages: Sequence[int],
        *,
        checkpoints: CheckpointDir | None = None,
        rollouts: Rollouts | None = None,
        optimizer: tuple[type[torch.optim.Optimizer], dict[str, Any]] | None = None,
        dev: DevTracker | None = None,
    ) -> None:
        super().__init__(loss_fn, arguments, train_dataset=data, optimizer_cls_and_kwargs=optimizer)
        self.remove_callback(PrinterCallback)
        history = HistoryCallback(self)
        self.add_callback(history)
        if dev is not None:
            self.add_callback(DevCallback(self, dev, history))
        self.add_callback(CheckpointCallback(self))
        self.loss_is_scaled_for_ga = True  # else Trainer divides by the number of micro-batches
        self.loss_fn, self.data, self.label = loss_fn, data, label
        self.curriculum_stages = curriculum_stages
        self.updates = len(curriculum_stages)
        self.target_weights = TargetWeights(data.examples)
        self.rollouts, self.checkpoints, self.dev = rollouts, checkpoints, dev
        self._resume()
        self._losses: list[Tensor] = []
        self._losses_NF: list[Tensor] = []
        self._norm, self._items, self._tokens = math.nan, 0, 0
        self._began, self._tokens_read = time.monotonic(), 0

    def _resume(self) -> None:
        """Read the newest checkpoint, if there is one; weights and optimizer follow later."""
        latest = self.checkpoints.latest if self.checkpoints else lambda: None
        state: dict[str, Any] = {}
        while folder := processes.on_first_worker(latest):
            state = checkpointing.read_state(folder)
            if self.dev is None or self.dev.restore(state.get("dev")):
                break
            say(f"{self.label}: its best weights so far are damaged: {folder} is not used")
            processes.on_first_worker(partial(shutil.rmtree, folder))
            state = {}
            self.dev.restore(None)
        self.resumed_from = folder
        self.history = [Update(**update) for update in state.get("history", [])]
        self.start = len(self.history)
        self.meter = Meter(self.label, self.updates, self.start)
        # "remembered" in checkpoints of earlier versions
        if extra_state := state.get("extra_state") or state.get("remembered"):
            self._extra_state_owner.restore(extra_state)

    @property
    def _extra_state_owner(self) -> Rollouts | ModelLoss:
        """The object whose state is saved beside weights and optimizer."""
        return self.rollouts or self.loss_fn

    def train_remaining(self) -> None:
        """Train the updates that no earlier process has done."""
        # before the weights are restored: a reference is of the initial model
        with self.accelerator.autocast():
            self.loss_fn.before_training()
        if self.resumed_from:
            say(f"{self.label}: goes on after update {self.start}")
            checkpointing.restore_weights(self.resumed_from, self.loss_fn)
        # `stops`: it ended early, and was killed before it was published
        if self.start < self.updates and not (self.dev and self.dev.stops):
            self.train()

    def save_checkpoint(self, update: int) -> None:
        """Write a checkpoint after this update; all workers together."""
        extra = {
            "history": [u._asdict() | {"terms": dict(u.terms)} for u in self.history],
            # each worker draws dropout of its own: all states are in the one checkpoint
            "random": processes.all_gather(checkpointing.random_state()),
            "extra_state": self._extra_state_owner.state(),
        }
        if self.dev:
            extra["dev"] = self.dev.state()
        state = (self.loss_fn, self.optimizer, self.lr_scheduler, extra)
        directory = self.checkpoints
        assert directory is not None
        directory.save(update, lambda folder: checkpointing.write_state(folder, *state))
        if self.dev:
            self.dev.checkpoint_saved()

    def get_train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """Return the planned micro-batches in their order, from the first that is not done."""
        first = self.start * self.args.gradient_accumulation_steps
        # an item of the data is a whole micro-batch; gradient accumulation joins those of an update
        order = range(first, len(self.data))
        return DataLoader(self.data, batch_size=1, sampler=order, collate_fn=itemgetter(0))

    def get_batch_samples(
        self, epoch_iterator: Iterator[dict[str, Tensor]], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Tensor]], Tensor]:
        """Return the micro-batches of one update, and the number of items in all of them.

        The loss is a mean over items: completion tokens, of all workers.
        """
        batches = [next(epoch_iterator) for _ in range(num_batches)]
        if self.rollouts is not None:
            batches = self._generated(self.rollouts, batches)
        first = self.state.global_step * num_batches
        rows = [self.data.rows(first + n) for n in range(num_batches)]
        self.target_weights.add_to(batches, rows)
        counts = [(self.loss_fn.count(batch), len(batch["labels_N"])) for batch in batches]
        # before the first forward pass: each micro-batch divides its loss by the count of all
        items_tokens = processes.all_reduce_sum(torch.tensor(counts, device=device).sum(0))
        self._items, self._tokens = items_tokens.tolist()
        # an update may have no token: all its generated answers may be masked
        return batches, items_tokens[0].clamp_min(1)

    def _generated(
        self, rollouts: Rollouts, planned: list[dict[str, Tensor]]
    ) -> list[dict[str, Tensor]]:
        """Return the batches of this update as `rollouts` generates them.

        Not in the data set: the loader prefetches one batch, which would be generated by the
        student before its last update.
        """
        first = self.state.global_step * len(planned)
        numbers = range(first, first + len(planned))
        rows = [row for number in numbers for row in self.data.rows(number)]
        generated = rollouts.rows(self.state.global_step, processes.unshard(rows))
        if generated is None:
            return planned
        self.data.replace(numbers, processes.shard(generated))
        return [self.data[number] for number in numbers]

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return this micro-batch's share of the update's mean loss."""
        loss, losses_NF = model(**inputs, divisor=num_items_in_batch)
        # kept on the device: reading each would wait for the GPU once a micro-batch
        self._losses.append(loss.detach())
        self._losses_NF.append(losses_NF)
        loss = loss * self.accelerator.num_processes  # DDP takes the mean over workers, not the sum
        return (loss, losses_NF) if return_outputs else loss

    @contextmanager
    def _defer_fsdp_gradient_reduction(self) -> Iterator[None]:
        """Sum the gradients of each micro-batch over the workers at once.

        Private in transformers 5.23, which keeps them in each worker until the last micro-batch of
        an update: a gradient as large as the whole model.
        """
        yield

    def _clip_grad_norm(self, model: nn.Module) -> Tensor:
        """Clip the gradient; stop before the step where the loss or the gradient is not finite.

        Private in transformers 5.23: it gives its callbacks no norm before the step.
        """
        norm: Tensor = super()._clip_grad_norm(model)
        if isinstance(norm, DTensor):
            norm = norm.full_tensor()
        self._norm = float(norm)
        # the gradient is that of all workers together: all of them get here, and raise
        if not math.isfinite(self._norm):
            raise self._not_finite()
        return norm

    def _not_finite(self) -> UserError:
        keys, bad = [], []
        for rows, losses_NF in zip(self._rows_of_update(), self._losses_NF, strict=True):
            # losses_NF is in the order of the rows' completion tokens
            key_of_token = [row.key for row in rows for _ in range(row.length)]
            finite = losses_NF.sum(-1).isfinite().tolist()
            keys += [row.key for row in rows]
            bad += [key for key, good in zip(key_of_token, finite, strict=True) if not good]
        keys, bad = processes.union(keys), processes.union(bad)
        named = ", ".join(list(dict.fromkeys(bad or keys))[:8])
        return UserError(
            f"the {'loss' if bad else 'gradient'} is not finite; nothing is published",
            where=f"{self.label}, update {self.state.global_step + 1}, rows {named}",
            fix="lower learning_rate or clip, or look at these rows",
        )

    def _rows_of_update(self) -> list[list[Example]]:
        first = self.state.global_step * self.args.gradient_accumulation_steps
        return [self.data.rows(first + n) for n in range(len(self._losses_NF))]

    def close_update(self, learning_rate: float) -> Update:
        """Append the update whose gradient is complete to the history, and return it."""
        step = self.state.global_step
        # `_losses` are divided by the items already, losses_NF are not
        per_term = torch.stack([losses_NF.sum(0) for losses_NF in self._losses_NF]).sum(0)
        loss, *terms = processes.all_reduce_sum(
            torch.cat([torch.stack(self._losses).sum()[None], per_term / max(self._items, 1)])
        ).tolist()
        # a preference loss of one type names no term: `loss` is all of it
        named = dict(zip(self.loss_fn.names, terms, strict=False))
        stage = self.curriculum_stages[step]
        update = Update(step + 1, loss, learning_rate, stage, named, self._norm, self._tokens)
        self.history.append(update)
        # prompts included: speed is what goes through the model
        self._tokens_read += sum(len(row.ids) for rows in self._rows_of_update() for row in rows)
        self._losses.clear()
        self._losses_NF.clear()
        return update

    def progress_note(self) -> str:
        """Return loss and speed of the last update, in a few words."""
        update = self.history[-1]
        terms = ", ".join(f"{name} {loss:.3f}" for name, loss in update.terms.items())
        seconds = max(time.monotonic() - self._began, 1e-9)
        speed = f"{self._tokens_read * processes.world_size() / seconds:,.0f} tokens/s"
        loss = f"loss {update.loss:.3f}" + (f" ({terms})" if terms else "")
        extra = [self.loss_fn.progress_note(), self.dev.progress_note() if self.dev else ""]
        return ", ".join([f"stage {update.stage}", loss, *filter(None, extra), speed])
