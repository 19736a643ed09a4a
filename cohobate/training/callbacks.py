"""Trainer callbacks: progress and TensorBoard curves, checks on dev rows, and checkpoints."""

from typing import Any, Protocol

from transformers import (
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)

from cohobate import processes
from cohobate.progress import Meter
from cohobate.training import checkpointing
from cohobate.training.checkpointing import CheckpointDir
from cohobate.training.dev_checks import DevTracker
from cohobate.training.history import TrainingCurves, Update


class LoggedTrainer(Protocol):
    """A trainer as `HistoryCallback` sees it."""

    start: int
    """Updates that an earlier process did."""
    meter: Meter

    def close_update(self, learning_rate: float) -> Update:
        """Append the update whose gradient is complete to the history, and return it."""

    def progress_note(self) -> str:
        """Return loss and speed of the last update, in a few words."""


class HistoryCallback(TrainerCallback):
    """Records each update in the history, the TensorBoard curves and the progress."""

    def __init__(self, trainer: LoggedTrainer) -> None:
        self.trainer = trainer
        self.curves: TrainingCurves | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Open the curves."""
        run = checkpointing.current_run()
        if run is not None and processes.rank() == 0:
            self.curves = TrainingCurves(run.name, self.trainer.start + 1)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Record the update; its learning rate is that of the step that comes now."""
        # some optimizers have it as a tensor
        update = self.trainer.close_update(float(kwargs["optimizer"].param_groups[0]["lr"]))
        if self.curves is not None:
            self.curves.add(update)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Advance the progress."""
        self.trainer.meter.advance(note=self.trainer.progress_note())

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Report the end, and close the curves."""
        self.trainer.meter.finish()
        if self.curves is not None:
            self.curves.close()


class CheckedTrainer(Protocol):
    """A trainer as `DevCallback` sees it."""

    checkpoints: CheckpointDir | None
    """Where checkpoints are kept, if they are."""
    loss_fn: Any
    """The module in training."""


class DevCallback(TrainerCallback):
    """Checks the model on dev rows, and ends the training where it gets no better.

    It comes after `HistoryCallback`, and before `CheckpointCallback`, which saves the figures.
    """

    def __init__(
        self, trainer: CheckedTrainer, tracker: DevTracker, history: HistoryCallback
    ) -> None:
        self.trainer, self.tracker, self.history = trainer, tracker, history

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Check where it is due."""
        if not self.tracker.is_due(state.global_step):
            return
        resumes = self.trainer.checkpoints is not None
        figures = self.tracker.check(state.global_step, self.trainer.loss_fn, resumes=resumes)
        if self.history.curves is not None:
            self.history.curves.add_dev(figures)
        if self.tracker.stops:
            control.should_training_stop = True


class ResumableTrainer(Protocol):
    """A trainer as `CheckpointCallback` sees it."""

    start: int
    """Updates that an earlier process did."""
    updates: int
    """Updates of the whole run."""
    checkpoints: CheckpointDir | None
    """Where checkpoints are kept, if they are."""
    resumed_from: Any
    """The checkpoint that the run resumes from, if any."""

    def save_checkpoint(self, update: int) -> None:
        """Write a checkpoint after this update."""


class CheckpointCallback(TrainerCallback):
    """Restores the state of a resumed run, and saves checkpoints.

    It comes after `HistoryCallback`: the history that it saves includes the update.
    """

    def __init__(self, trainer: ResumableTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Restore what Trainer has just made anew: step, optimizer and schedule."""
        # Trainer starts at 0: the data loader skips the same updates
        state.global_step = self.trainer.start
        if self.trainer.resumed_from:
            checkpointing.restore_optimizer(
                self.trainer.resumed_from, kwargs["optimizer"], kwargs["lr_scheduler"]
            )
        elif processes.rank():  # else all workers would drop out the same units
            set_seed(args.seed + processes.rank() * 1_000_003)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Restore the random states just before the first update.

        Not earlier: Trainer draws numbers of its own between `on_train_begin` and the first step.
        """
        folder = self.trainer.resumed_from
        if folder and state.global_step == self.trainer.start:
            states = checkpointing.read_state(folder)["random"]
            checkpointing.restore_random(states[processes.rank()])

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Save a checkpoint where one is due, and where training ends."""
        folder, update = self.trainer.checkpoints, state.global_step
        if folder is None:
            return
        # control: `DevCallback` ends the training early
        if folder.is_due(update, self.trainer.updates) or control.should_training_stop:
            self.trainer.save_checkpoint(update)
