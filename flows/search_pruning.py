"""Poor trials of a search end early: their scores on dev rows while the student trains."""

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cohobate.progress import DevScore
from flows.events import event_handler
from flows.placement import StagePrunedError

if TYPE_CHECKING:
    from optuna import Trial


class TrialPruning:
    """Reports the checks of one trial to Optuna, and ends its stage where Optuna says so.

    A score counts at the per cent of the training at which it was measured: trials may have other
    numbers of updates. Only the first seed of the student's phase is followed.
    """

    def __init__(self, trial: "Trial") -> None:
        self._trial = trial
        self._stage, self._seed = "", 0
        self._others = event_handler.get()
        self.last: dict[str, float] = {}
        """The last score, and at how many per cent of the training."""

    def follow(self, document: Mapping[str, Any]) -> None:
        """Follow the events of the round that this context starts; `document`: its params."""
        self._stage = f"train@{document['evaluate']['student']}"
        self._seed = document["seeds"][0]
        self._others = event_handler.get()
        event_handler.set(self._on_event)

    def _on_event(self, address: str, event: Any) -> None:
        self._others(address, event)
        if not isinstance(event, DevScore) or address != self._stage:
            return
        if not event.label.endswith(f"seed {self._seed}"):
            return
        per_cent = round(100 * event.update / event.updates)
        self.last = {"dev": event.value, "per_cent": per_cent}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a resumed stage checks an update again
            self._trial.report(event.value, per_cent)
        # the last check is the trial's result: nothing is left to save
        if event.update < event.updates and self._trial.should_prune():
            raise StagePrunedError(f"{self._stage}: {self}", fix="cohobate search show")

    def __str__(self) -> str:
        share, score = self.last["per_cent"], self.last["dev"]
        return f"pruned at {share:.0f} % of its training, dev {score:.3f}"
