"""Checks on dev rows while a phase trains: their figures, the best checkpoint, an early end.

As transformers' `eval_steps`, `load_best_model_at_end` and `EarlyStoppingCallback`, with the rows
answered and scored by the metric that decides the round. A check changes nothing of the training:
random states and thread counts are put back, so updates are the same with and without it.
"""

import math
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from pydantic import Field

from cohobate.errors import UserError
from cohobate.params import Section
from cohobate.progress import DevScore, emit, say
from cohobate.training import checkpointing
from cohobate.training.best_weights import BestWeights

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class DevChecks(Section):
    """When a phase is scored on dev rows as it trains, and what follows from it."""

    every: int = Field(ge=1)
    """Updates between two checks; one always follows the last update."""
    rows: int = Field(200, ge=1)
    """Most dev rows with an answer, the first of the list."""
    by: Literal["score", "loss"] = "score"
    """What decides. score: the rows are answered and scored by the first of `evaluate.metrics`.
    loss: that of their reference answers; nothing is generated, which is quicker where answers are
    long."""
    keep: Literal["last", "best", "both"] = "last"
    """Which checkpoint is published: that of the last update, the best on dev, or both: the best
    then as `models/train/<phase>/best`, a row of its own in the report. For that the phase loads
    its start a second time."""
    patience: int | None = Field(None, ge=1)
    """Training ends after so many checks in a row without a better one; never when not given."""


class DevFigures(NamedTuple):
    """Figures of one check."""

    update: int
    """Updates done."""
    score: float | None = None
    """Mean score of the answers, or a figure of likelihood; None where the loss decides."""
    loss: float | None = None
    """Mean loss of the reference answers, in nats for each token (or label, or document)."""
    length: float | None = None
    """Mean length of the answers in tokens; None where none is generated."""
    finished: float | None = None
    """Share of the answers that the model ended itself."""


class ModelInTraining(NamedTuple):
    """A model between two updates, as a `DevScorer` reads it."""

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    start: Path
    """Checkpoint that it started from, which says of what kind it is."""
    prefix: str | None
    """Text before each prompt that it is trained with."""
    autocast: bool
    """Whether its products are in bfloat16."""
    threads: int


class DevScorer(Protocol):
    """Scores a model on dev rows."""

    def lower_is_better(self, by: Literal["score", "loss"]) -> bool:
        """Return whether a lower figure is the better one."""

    def content(self) -> Any:
        """Return what decides its figures, as JSON values: a part of the key of a run."""

    def figures(self, trained: ModelInTraining, checks: DevChecks, update: int) -> DevFigures:
        """Return the figures; of several workers each calls it, and all get the same."""


class DevTracker:
    """The checks of one training run: figures so far, the best of them, and when to stop.

    Args:
        checks: the phase's settings.
        scorer: scores a model.
        label: name of the run in the log.
    """

    def __init__(self, checks: DevChecks, scorer: DevScorer, label: str) -> None:
        self.checks, self.scorer, self.label = checks, scorer, label
        self.trained: ModelInTraining | None = None
        self.is_over = False
        """Whether the run is over: what follows gives a new model the best weights."""
        self.history: list[DevFigures] = []
        self.updates = 0
        """Of the whole run."""
        self.weights: BestWeights | None = None
        self._sign = -1 if scorer.lower_is_better(checks.by) else 1
        # best updates of the training checkpoints on disk
        self._referenced: deque[int] = deque(maxlen=checkpointing.KEPT)

    def open(self, folder: Path, updates: int) -> None:
        """Begin a run of so many updates, whose best weights are kept in a folder."""
        self.updates = updates
        if self.checks.keep != "last":
            self.weights = BestWeights(folder)

    def is_due(self, update: int) -> bool:
        """Return whether a check follows this update."""
        return update % self.checks.every == 0 or update == self.updates

    @property
    def best(self) -> DevFigures:
        """The best check so far, of equals the first."""
        return max(self.history, key=lambda one: self._sign * self.value(one))

    def value(self, figures: DevFigures) -> float:
        """Return the figure that decides; the worst where it is no number."""
        value = figures.loss if self.checks.by == "loss" else figures.score
        return -self._sign * math.inf if value is None or math.isnan(value) else value

    @property
    def stops(self) -> bool:
        """Whether `patience` is at its end."""
        if not self.history or self.checks.patience is None:
            return False
        since = sum(one.update > self.best.update for one in self.history)
        return since >= self.checks.patience

    def check(self, update: int, module: "nn.Module", *, resumes: bool) -> DevFigures:
        """Score the model after an update, and keep its weights where it is the best so far.

        Args:
            update: updates done.
            module: whose trained weights are kept; all workers together.
            resumes: whether training checkpoints are kept, which may refer to earlier best weights.
        """
        import torch

        threads = torch.get_num_threads()
        assert self.trained is not None
        with checkpointing.random_state_kept():
            figures = self.scorer.figures(self.trained, self.checks, update)
        torch.set_num_threads(threads)  # answering in threads of its own sets another number
        self.history.append(figures)
        if self.weights and self.best.update == update:
            self.weights.save(update, module)
            if not resumes:
                self.weights.drop_all_but({update})
        emit(DevScore(self.label, update, self.updates, self.value(figures), _text(figures)))
        if self.stops and update < self.updates:
            say(
                f"{self.label}: ends here, {self.updates - update} updates saved: none of the last "
                f"{self.checks.patience} checks is better than that of update {self.best.update}"
            )
        return figures

    def progress_note(self) -> str:
        """Return the last check in a few words; nothing before the first."""
        last = self.history[-1] if self.history else None
        return f"dev {self.value(last):.4g}" if last else ""

    def state(self) -> list[list[Any]]:
        """Return the figures as JSON values, for a training checkpoint."""
        return [list(figures) for figures in self.history]

    def checkpoint_saved(self) -> None:
        """Drop best weights that no training checkpoint on disk refers to."""
        if self.weights and self.history:
            self._referenced.append(self.best.update)
            self.weights.drop_all_but({*self._referenced})

    def restore(self, state: list[list[Any]] | None) -> bool:
        """Set what `state` returned; return whether the best weights among it are here."""
        self._referenced.clear()
        self.history = [DevFigures(*figures) for figures in state or []]
        if self.weights is None or not self.history:
            return True
        self._referenced.append(self.best.update)
        return self.weights.has(self.best.update)

    def finish(self, module: "nn.Module") -> None:
        """Give the model the best weights, where these are what is published."""
        best = self.is_over or self.checks.keep == "best"
        if best and self.weights and (self.is_over or self.best != self.history[-1]):
            self.weights.load(self.best.update, module)

    def notes(self) -> dict[str, Any]:
        """Return entries of summary.json."""
        best, last = self.best, self.history[-1]
        shown = {"dev, last": self.value(last), "dev, best": self.value(best)}
        notes: dict[str, Any] = {
            name: round(value, 4) if math.isfinite(value) else None for name, value in shown.items()
        }
        notes["update of the best"] = best.update
        return notes | ({"updates saved": saved} if (saved := self.updates - last.update) else {})


_current: ContextVar[DevTracker | None] = ContextVar("dev_tracker", default=None)


def current_tracker() -> DevTracker | None:
    """Return the tracker of the enclosing `checked` block; None outside of one."""
    return _current.get()


@contextmanager
def checked(tracker: DevTracker | None) -> Iterator[None]:
    """Let the training within the block be checked on dev rows."""
    token = _current.set(tracker)
    try:
        yield
    finally:
        _current.reset(token)


def _text(figures: DevFigures) -> str:
    """Return figures in a few words."""
    parts = {"score": figures.score, "loss": figures.loss, "tokens": figures.length}
    words = [f"{name} {value:.4g}" for name, value in parts.items() if value is not None]
    if figures.finished is not None:
        words.append(f"{100 * figures.finished:.0f} % end")
    return ", ".join(words)


def no_dev_rows(phase: str) -> UserError:
    """Return the error of a phase that is to be checked where no dev row has an answer."""
    return UserError(
        f"{phase} is to be scored on dev rows as it trains, and no dev row has an answer",
        where=f"params.yaml, {phase}.dev",
        fix=f"cohobate run --set collect.split.dev=200, or --set {phase}.dev=null",
    )
