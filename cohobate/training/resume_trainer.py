"""How a Trainer goes on where a killed process left it, from checkpoints of this project's own.

Trainer's own way to resume trains on in silence when a file of the state is missing. Here the
state was verified as a whole, and is set just before the first update that is still to come.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from transformers import set_seed

from cohobate import processes
from cohobate.data.examples import Example, fingerprint
from cohobate.progress import Meter, say
from cohobate.training import resuming, training_state
from cohobate.training.history import Update
from cohobate.training.hyperparameters import Hyperparameters
from cohobate.training.resuming import CheckpointDir

if TYPE_CHECKING:
    from torch import nn


class Continuing:
    """What a Trainer needs to go on; it stands before transformers' or TRL's among the bases."""

    loss_fn: "nn.Module"
    state: Any
    args: Any
    optimizer: Any
    lr_scheduler: Any

    def go_on(self, keeper: CheckpointDir | None, label: str, updates: int) -> dict[str, Any]:
        """Look what is done of a run of so many updates; return what `remembered` had said."""
        self.keeper, self.updates = keeper, updates
        self.saved = processes.on_first_worker(keeper.newest) if keeper else None
        about = training_state.read(self.saved) if self.saved else {"history": []}
        self.history = [Update(**update) for update in about["history"]]
        self.start = len(self.history)
        self.meter = Meter(label, updates, self.start)
        remembered: dict[str, Any] = about.get("remembered", {})
        return remembered

    def finish(self) -> None:
        """Train what is still to be trained of the run."""
        if self.saved:
            say(f"{self.meter.what}: goes on after update {self.start}")
            training_state.restore_weights(self.saved, self.loss_fn)
        if self.start < self.updates:
            self.train()  # type: ignore[attr-defined]

    def remembered(self) -> dict[str, Any]:
        """Return what else the rest of the run depends on, as JSON values."""
        return {}

    def restore(self) -> None:
        """Set what Trainer has made anew, but for random numbers, to what was saved."""
        self.state.global_step = self.start
        if self.saved:
            training_state.restore_optimizer(self.saved, self.optimizer, self.lr_scheduler)
        elif processes.rank():  # each worker drops out units of its own
            set_seed(self.args.seed + processes.rank() * 1_000_003)

    def save(self) -> None:
        """Write a checkpoint after this update, where one is due."""
        step = self.state.global_step
        if self.keeper is None or not self.keeper.due(step, self.updates):
            return
        about = {
            "history": [u._asdict() | {"terms": dict(u.terms)} for u in self.history],
            "random": processes.all_gather(training_state.random_state()),
            "remembered": self.remembered(),
        }
        state = (self.loss_fn, self.optimizer, self.lr_scheduler, about)
        keeper = self.keeper
        processes.on_first_worker(
            lambda: keeper.write(step, lambda folder: training_state.write(folder, *state))
        )


def keeper_of(
    hyperparameters: Hyperparameters, examples: Sequence[Example], updates: int
) -> CheckpointDir | None:
    """Return where a run over these examples keeps its checkpoints; None where it keeps none."""
    run, every = resuming.current(), hyperparameters.checkpoint_every
    if run is None or not 0 < every <= updates:
        return None
    return run.keeper(every, fingerprint(examples))
