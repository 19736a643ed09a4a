"""The history of a training run: history.csv beside the checkpoint, and TensorBoard curves.

Lines of history.csv, a column for each term of the loss:

    step,loss,forward_kl,hard,gradient_norm,tokens,learning_rate,stage
    1,4.33,3.9,0.43,2.17,96,0.0,0

Lines of dev.csv, of a phase with `dev`, a line for each check:

    update,score,loss,length,finished
    20,0.61,1.204,2,1
"""

import csv
import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from cohobate.progress import CurvePoints, emit
from cohobate.training.dev_checks import DevFigures

TENSORBOARD_DIR = Path("reports/training")
"""TensorBoard's files, a folder for each run; outside of everything that is hashed."""
_SEND_SECONDS = 1.0


class Update(NamedTuple):
    """One optimiser step."""

    step: int
    loss: float
    learning_rate: float
    stage: int
    terms: Mapping[str, float] = MappingProxyType({})
    """Weighted loss of each term; `loss` is their sum."""
    gradient_norm: float = math.nan
    """Global norm of the gradient before clipping."""
    tokens: int = 0
    """Completion tokens of the update."""


def term_names(terms: Sequence[Any]) -> list[str]:
    """Return a name for each term: its type, with a number from the second of a type on."""
    seen: Counter[str] = Counter()
    names = []
    for term in terms:
        # two terms of one type, such as two temperatures, need two columns
        seen[term.type] += 1
        names.append(f"{term.type}_{seen[term.type]}" if seen[term.type] > 1 else term.type)
    return names


def write_history(path: Path, history: Sequence[Update]) -> None:
    """Write a line for each update as CSV; `dvc plots` and the report read it."""
    terms = list(history[0].terms) if history else []
    columns = ["step", "loss", *terms, "gradient_norm", "tokens", "learning_rate", "stage"]
    with path.open("w", newline="") as out:
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(columns)
        for u in history:
            losses = [f"{loss:.6g}" for loss in (u.loss, *u.terms.values())]
            figures = [f"{u.gradient_norm:.6g}", u.tokens, f"{u.learning_rate:.6g}", u.stage]
            writer.writerow([u.step, *losses, *figures])


def write_dev(path: Path, history: Sequence[DevFigures]) -> None:
    """Write a line for each check on dev rows as CSV; figures that a check lacks are empty."""
    with path.open("w", newline="") as out:
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(DevFigures._fields)
        for update, *figures in history:
            writer.writerow([update, *("" if f is None else f"{f:.6g}" for f in figures)])


class TrainingCurves:
    """Curves of a run, as it trains: for TensorBoard (`tensorboard --logdir reports`) and trackers.

    Trackers follow the driver of the round, to which the points go as events.
    """

    def __init__(self, name: str, first: int) -> None:
        from tensorboardX import SummaryWriter

        self._name, self._unsent = name, list[tuple[int, dict[str, float]]]()
        self._sent = time.monotonic()
        folder = TENSORBOARD_DIR / name.replace("/", "-")
        # a killed run drew points beyond its last checkpoint: they are purged, and drawn again
        self._writer = SummaryWriter(str(folder), purge_step=first)

    def add(self, update: Update) -> None:
        """Add a point to each curve."""
        points = {"loss": update.loss, "learning_rate": update.learning_rate}
        points |= {f"terms/{name}": loss for name, loss in update.terms.items()}
        points |= {"gradient_norm": update.gradient_norm, "tokens": update.tokens}
        self._draw(update.step, points)

    def _draw(self, step: int, points: dict[str, float]) -> None:
        for name, value in points.items():
            self._writer.add_scalar(name, value, step)
        self._unsent.append((step, points))
        # an event is a message of Ray's, and updates may be many in a second
        if time.monotonic() - self._sent >= _SEND_SECONDS:
            self._send()

    def _send(self) -> None:
        if self._unsent:
            emit(CurvePoints(self._name, tuple(self._unsent)))
        self._unsent, self._sent = [], time.monotonic()

    def add_dev(self, figures: DevFigures) -> None:
        """Add a point to each curve of the checks on dev rows."""
        points = {
            f"dev/{name}": value
            for name, value in figures._asdict().items()
            if name != "update" and value is not None
        }
        self._draw(figures.update, points)

    def close(self) -> None:
        """Flush and close the files, and send what was not sent."""
        self._writer.close()
        self._send()
