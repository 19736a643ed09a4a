"""What follows each update of a training run: it is told, drawn, and kept."""

from typing import Any, Protocol

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from cohobate import processes
from cohobate.progress import Meter
from cohobate.training import resuming, training_state
from cohobate.training.history import TensorBoardCurves, Update


class Followed(Protocol):
    """A trainer, as far as it is followed."""

    start: int
    """Updates that were done before."""
    meter: Meter

    def close_update(self, learning_rate: float) -> Update:
        """Note the update whose gradient is complete."""

    def note(self) -> str:
        """Return how training goes, in a few words."""


class Follow(TrainerCallback):
    """Tells the history, the curves and the meter of each update."""

    def __init__(self, trainer: Followed) -> None:
        self.trainer = trainer
        self.curves: TensorBoardCurves | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Open the curves."""
        run = resuming.current()
        if run is not None and processes.rank() == 0:
            self.curves = TensorBoardCurves(run.name, self.trainer.start + 1)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Close the update."""
        update = self.trainer.close_update(kwargs["optimizer"].param_groups[0]["lr"])
        if self.curves is not None:
            self.curves.draw(update)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Count it."""
        self.trainer.meter.advance(note=self.trainer.note())

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Say that it is over."""
        self.trainer.meter.finish()
        if self.curves is not None:
            self.curves.close()


class Resumed(Followed, Protocol):
    """A trainer that goes on where another process left it."""

    saved: Any
    """The checkpoint that it goes on from, if any."""

    def restore(self) -> None:
        """Set what was made anew, but for random numbers, to what was saved."""

    def save(self) -> None:
        """Write a checkpoint after this update, where one is due."""


class Resume(TrainerCallback):
    """Says when to restore and to save. It comes after `Follow`: what is saved has been told."""

    def __init__(self, trainer: Resumed) -> None:
        self.trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Restore all but random numbers."""
        self.trainer.restore()

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Restore these just before the first update: whatever was drawn since then."""
        saved = self.trainer.saved
        if saved and state.global_step == self.trainer.start:
            training_state.restore_random(training_state.read(saved)["random"][processes.rank()])

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Save, where it is time."""
        self.trainer.save()
