"""The trials of a search, kept by Optuna in a file that optuna-dashboard opens too."""

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cohobate.errors import UserError
from flows.search_space import Search

if TYPE_CHECKING:
    from optuna import Study, Trial

STORAGE = "trials.log"


@dataclass(frozen=True)
class TrialResult:
    """A trial that has ended."""

    number: int
    drawn: Mapping[str, Any]
    """What was drawn of each dimension; empty for params.yaml as it is."""
    dev: float | None
    """Score on the dev rows, mean over seeds; None where the trial failed or was pruned."""
    figures: Mapping[str, Any]
    """Seconds, money, stages, parameters, FLOPs, or `why` it failed; of a pruned trial `pruned`:
    its last score on dev, and at how many per cent of its training."""

    @property
    def name(self) -> str:
        """Name of its worktree and in its experiment's name."""
        return trial_name(self.number)

    @property
    def failed(self) -> bool:
        """Whether it has no score, and was not pruned."""
        return self.dev is None and "pruned" not in self.figures


def trial_name(number: int) -> str:
    """Return the name of a trial."""
    return f"{number:04d}"


class SearchStudy:
    """The trials of one search."""

    def __init__(self, folder: Path, search: Search, *, lower_is_better: bool) -> None:
        """Open the trials in `folder`, or begin.

        Raises:
            UserError: the trials there are of another space, other settings or another metric.
        """
        optuna = _optuna()
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        self._search = search
        path = folder / STORAGE
        storage = JournalStorage(JournalFileBackend(str(path)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what is experimental in Optuna
            self._study: Study = optuna.create_study(
                storage=storage,
                study_name=folder.name,
                direction="minimize" if lower_is_better else "maximize",
                load_if_exists=True,
            )
            self._study.sampler = self._sampler()
            self._study.pruner = (
                search.prune.pruner() if search.prune else optuna.pruners.NopPruner()
            )
        self.lower_is_better = lower_is_better
        direction = "minimize" if lower_is_better else "maximize"
        started = self._study.user_attrs.get("search")
        same = started in (None, search.what_is_tried())
        if not same or self._study.direction.name.lower() != direction:
            raise UserError(
                "its trials are of another space, or of other settings",
                where=str(path),
                fix=f"give the changed search a file of another name, or rm -r {folder}",
            )
        self._study.set_user_attr("search", search.what_is_tried())

    def _sampler(self) -> Any:
        optuna = _optuna()
        # a search that goes on does not draw the same again
        seed = self._search.seed + len(self._study.get_trials(deepcopy=False))
        if self._search.sampler == "random":
            return optuna.samplers.RandomSampler(seed=seed)
        # trials that still run count as poor: those beside them look elsewhere
        return optuna.samplers.TPESampler(
            seed=seed, n_startup_trials=8, multivariate=True, constant_liar=True
        )

    def base(self, now: str) -> str:
        """Return the commit of which the trials are made: HEAD when the search began."""
        if "base" not in self._study.user_attrs:
            self._study.set_user_attr("base", now)
        base: str = self._study.user_attrs["base"]
        return base

    def unfinished(self) -> "list[Trial]":
        """Return the trials of a process that died."""
        from optuna import Trial
        from optuna.trial import TrialState

        running = self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        return [Trial(self._study, trial._trial_id) for trial in running]

    def next(self) -> "Trial":
        """Return a new trial: params.yaml as it is, then what the sampler draws."""
        if not self._study.get_trials(deepcopy=False):
            return self._study.ask()
        space = {key: one.distribution() for key, one in self._search.space.items()}
        return self._study.ask(space)

    def conclude(self, trial: "Trial", dev: float | None, figures: Mapping[str, Any]) -> None:
        """Record how a trial ended."""
        from optuna.trial import TrialState

        trial.set_user_attr("figures", json.dumps(figures))
        if "pruned" in figures:
            self._study.tell(trial, state=TrialState.PRUNED)
        elif dev is None:
            self._study.tell(trial, state=TrialState.FAIL)
        else:
            self._study.tell(trial, dev)

    def results(self) -> list[TrialResult]:
        """Return the trials that have ended, in their order."""
        return [
            TrialResult(
                trial.number,
                trial.params,
                trial.value if trial.state.name == "COMPLETE" else None,
                json.loads(trial.user_attrs.get("figures", "{}")),
            )
            for trial in self._study.get_trials(deepcopy=False)
            if trial.state.is_finished()
        ]

    def best(self) -> TrialResult | None:
        """Return the trial that is best on the dev rows, of equals the first."""
        scored = [one for one in self.results() if one.dev is not None]
        sign = -1 if self.lower_is_better else 1
        return max(scored, key=lambda one: sign * (one.dev or 0.0), default=None)

    def spent(self) -> dict[str, float]:
        """Return what the trials took: `hours` of the clock, and `money`."""
        figures = [one.figures for one in self.results()]
        ledgers: dict[str, list[float]] = {}
        for one in figures:
            for ledger, pair in one.get("ledgers", {}).items():
                ledgers.setdefault(ledger, []).extend(pair)
        return {
            "hours": self._study.user_attrs.get("seconds", 0.0) / 3600,
            "money": sum(max(sums) - min(sums) for sums in ledgers.values()),
        }

    def add_seconds(self, seconds: float) -> None:
        """Count seconds of the clock in which trials ran."""
        before = self._study.user_attrs.get("seconds", 0.0)
        self._study.set_user_attr("seconds", before + seconds)

    def is_over(self) -> bool:
        """Return whether every trial has ended, and no other may begin."""
        ended = len(self.results())
        return not self.unfinished() and self.why_no_more(ended, 0.0) is not None

    def why_no_more(self, started: int, hours: float) -> str | None:
        """Return which limit forbids another trial; None where there is room.

        Args:
            started: trials that have begun or ended.
            hours: hours of the clock of this run alone.
        """
        budget, spent = self._search.budget, self.spent()
        if started >= budget.trials:
            return f"{budget.trials} trials"
        if budget.hours is not None and spent["hours"] + hours >= budget.hours:
            return f"{budget.hours:g} hours"
        if budget.money is not None and spent["money"] >= budget.money:
            return f"{budget.money:g} US dollars"
        return None


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise UserError(
            "Optuna, which proposes the trials, is not installed",
            fix="pip install 'cohobate[search]'",
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
