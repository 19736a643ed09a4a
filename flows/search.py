"""The flow of a search: rounds with different params, of which the dev rows choose one.

Each trial is a round up to its dev score (`challenge`), in a worktree of its own. The test rows are
read once, at the end: for the best trial and for params.yaml as it is. A search that was killed
goes on where it was; stages that had finished are kept.
"""

import json
import time
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextvars import ContextVar, copy_context
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import flow

from cohobate import params
from cohobate.dvc_bridge import versioning
from cohobate.dvc_bridge.stale_lock import drop_stale_lock
from cohobate.errors import UserError
from cohobate.evaluation.score_text import ScoreText
from flows import overrides, placement, search_results, search_space
from flows.distill_round import named_round
from flows.git import git
from flows.search_folders import SearchFolders
from flows.search_pruning import TrialPruning
from flows.search_space import Search, Settings
from flows.search_study import SearchStudy, TrialResult, trial_name
from flows.selection import resources_for, select_stages

if TYPE_CHECKING:
    from optuna import Trial

LAST_STAGE = "challenge"
"""The stage that scores the dev rows."""
_FAILURES = 3
"""Trials in a row that fail before the search gives up: what they share is at fault."""

TrialHandler = Callable[[TrialResult, SearchStudy], None]
"""Called with each trial that has ended."""

trial_handler: ContextVar[TrialHandler] = ContextVar("trials", default=lambda result, study: None)
"""The terminal's lines where a person started the search; by default, nothing."""


@flow(name="search", flow_run_name="search-{path.stem}", persist_result=False, log_prints=False)
def search_params(root: Path = Path(), path: Path = Path("search.yaml")) -> dict[str, Any]:
    """Run the trials of a search within its budget, then evaluate the best one.

    Args:
        root: The project's folder: a git repository with dvc.yaml and params.yaml.
        path: The search's file (`flows/search_space.py`).

    Returns:
        What `cohobate search show --json` prints.

    Raises:
        UserError: the file is wrong, another process runs this search, three trials in a row
            failed, or none has a score.
    """
    root = root.absolute()
    search = search_space.read(root / path)
    folders = SearchFolders(root, path.stem)
    with folders.exclusive():
        study = open_study(root, path.stem, search)
        best = study.best()
        if study.is_over() and best and search_results.tested_trial(folders.folder) == best.number:
            return search_results.as_values(study, search, folders)
        base = study.base(git(root, "rev-parse", "HEAD"))
        base_project = folders.open("base", base)
        search_space.check(search, base_project, path)
        with placement.ray_cluster(base_project, _needs(base_project)):
            run = _SearchRun(search, folders, study, base)
            run.trials()
            return run.finish()


def open_study(root: Path, name: str, search: Search) -> SearchStudy:
    """Return the trials of a search of the project at `root`."""
    metric = params.load(root / params.PARAMS)["evaluate"]["metrics"][0]["type"]
    folder = SearchFolders(root, name).folder
    return SearchStudy(folder, search, lower_is_better=ScoreText(metric).lower_is_better)


def _needs(base_project: Path) -> dict[str, Any]:
    document = params.load(base_project / params.PARAMS)
    return resources_for(select_stages(versioning.stages(base_project), None), document)


@dataclass
class _SearchRun:
    """One run of a search, by one process."""

    search: Search
    folders: SearchFolders
    study: SearchStudy
    base: str

    def trials(self) -> None:
        """Run what is unfinished, then new trials until the budget is spent."""
        counted = time.monotonic()
        waiting = self.study.unfinished()
        started = len(self.study.results()) + len(waiting)
        running: set[Future[None]] = set()
        with ThreadPoolExecutor(self.search.at_once) as threads:
            try:
                while True:
                    # what all share is computed once: the first trial runs alone
                    slots = self.search.at_once if self.study.results() else 1
                    while len(running) < slots:
                        hours = (time.monotonic() - counted) / 3600
                        if not waiting:
                            if self.study.why_no_more(started, hours):
                                break
                            waiting, started = [self.study.next()], started + 1
                        # in a copy of this context, so that its flow is part of this one
                        running.add(threads.submit(copy_context().run, self._one, waiting.pop(0)))
                    if not running:
                        return
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    counted = self._count_since(counted)  # a kill loses one trial's time at most
                    for future in done:
                        future.result()
                    self._give_up_on_failures()
            except BaseException:  # Ctrl-C, or cancelled in the UI: the trials go on next time
                placement.stop_all()
                raise
            finally:
                self._count_since(counted)

    def _count_since(self, counted: float) -> float:
        """Add the seconds since a time of the monotonic clock to the budget's; return the time."""
        now = time.monotonic()
        self.study.add_seconds(now - counted)
        return now

    def _one(self, trial: "Trial") -> None:
        name, began = trial_name(trial.number), time.monotonic()
        settings = self.search.settings_of(trial.params)
        figures: dict[str, Any] = {"settings": settings}
        dev = None
        label = f"{self.folders.experiment(name)} {self.search.label(trial.params)}"
        pruning = TrialPruning(trial) if self.search.prune else None
        try:
            worktree = self._prepared(name, settings)
            if pruning:  # in the context of this trial alone
                pruning.follow(params.load(worktree / params.PARAMS))
            results = named_round(label)(worktree, LAST_STAGE)
            dev = json.loads((worktree / "reports/challenge.json").read_text())["challenger"]
            figures |= search_results.figures_of(worktree, results)
            self.folders.save(name, self.base, f"{label}\n\ndev {dev:.3f}\n")
        except placement.StageStoppedError:
            raise  # the search was stopped: the trial goes on next time
        except placement.StagePrunedError:
            assert pruning is not None
            figures["pruned"] = pruning.last
            self.folders.save(f"{name}-pruned", self.base, f"{label}\n\n{pruning}\n", worktree=name)
        except UserError as error:
            figures["why"] = str(error)
        figures["seconds"] = round(time.monotonic() - began, 1)
        self.study.conclude(trial, dev, figures)
        self.folders.remove(name)
        ended = [one for one in self.study.results() if one.number == trial.number]
        trial_handler.get()(ended[0], self.study)

    def _prepared(self, name: str, settings: Settings) -> Path:
        """Return a worktree whose params.yaml has the recipe and the settings."""
        worktree = self.folders.open(name, self.base)
        drop_stale_lock(worktree)
        options = search_space.as_options(self.search.settings | settings)
        overrides.apply(worktree, options, self.search.recipe)
        return worktree

    def _give_up_on_failures(self) -> None:
        last = self.study.results()[-_FAILURES:]
        if len(last) == _FAILURES and all(one.failed for one in last):
            raise UserError(
                f"{_FAILURES} trials in a row failed; the last: {last[-1].figures.get('why')}",
                where=str(self.folders.folder),
                fix="cohobate search show lists them; then the same command goes on",
            )

    def finish(self) -> dict[str, Any]:
        """Evaluate the best trial and the params as they are on the test rows; return the whole."""
        best = self.study.best()
        if best is None:
            raise UserError(
                "no trial has a score on the dev rows",
                where=str(self.folders.folder),
                fix="cohobate search show says why each failed",
            )
        arms: Mapping[str, Settings] = {
            "default": {},
            "best": self.search.settings_of(best.drawn),
        }
        worktrees = {}
        for name, settings in arms.items():
            worktree = worktrees[name] = self._prepared(name, settings)
            label = f"{self.folders.experiment(name)} {self.search.label(best.drawn)}"
            label = label if name == "best" else self.folders.experiment(name)
            named_round(label)(worktree)
            self.folders.save(name, self.base, f"{label}\n")
        test = search_results.compare(worktrees["best"], worktrees["default"])
        search_results.write_test(self.folders.folder, best.number, test)
        for name in (*arms, "base"):
            self.folders.remove(name)
        return search_results.as_values(self.study, self.search, self.folders)
