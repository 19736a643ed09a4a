"""What a client of a tracker is: what it gets of a round, and how."""

import importlib.util
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from cohobate.errors import UserError

Figures = Mapping[str, float]


@dataclass(frozen=True)
class TrackedRun:
    """One round, as it begins."""

    name: str
    """As in the Prefect UI."""
    params: dict[str, Any]
    """params.yaml, without `track` and `recipe`."""
    tags: dict[str, str] = field(default_factory=dict)
    """Commit, folder, recipe, address of the Prefect run."""


@dataclass(frozen=True)
class RoundOutputs:
    """What a round leaves, as it ends."""

    text: str
    """Markdown: the report's path, and path and DVC hash of every output."""
    report: str = ""
    """The report as HTML, a path; empty where nothing was evaluated."""


class TrackerClient(ABC):
    """A client of one tracker, for one round: a round is a run, a training run some of its curves.

    A method that raises is called again later (`tracker_process.py`).
    """

    package: ClassVar[str]
    """The module that is imported."""
    extra: ClassVar[str] = ""
    """The extra of pyproject.toml that installs it; empty where nothing extra is needed."""

    @classmethod
    def check(cls) -> None:
        """Refuse a tracker that cannot work here, before the round starts.

        Raises:
            UserError: its package is not installed, or the environment says too little.
        """
        if cls.extra and importlib.util.find_spec(cls.package) is None:
            raise UserError(
                f"{cls.package} is not installed",
                where="params.yaml, track",
                fix=f'pip install -e ".[{cls.extra}]"',
            )

    @abstractmethod
    def open(self, run: TrackedRun) -> None:
        """Begin the run."""

    @abstractmethod
    def add_points(self, curve: str, points: Sequence[tuple[int, Figures]]) -> None:
        """Add points to the curves of a training run: an update, and its figures by name."""

    @abstractmethod
    def add_figures(self, figures: Figures) -> None:
        """Set figures that belong to no update: of a stage, or scores."""

    @abstractmethod
    def add_outputs(self, outputs: RoundOutputs) -> None:
        """Add what leads to the report and to every output."""

    @abstractmethod
    def close(self, succeeded: bool) -> None:
        """End the run."""


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return nested settings as text by their dotted keys."""
    result: dict[str, str] = {}
    for name, value in values.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict) and value:
            result |= flat(value, f"{key}.")
        else:
            result[key] = str(value)
    return result


def numbers(values: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Return the finite numbers among nested values, by their dotted keys."""
    result: dict[str, float] = {}
    for name, value in values.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict):
            result |= numbers(value, f"{key}.")
        elif isinstance(value, int | float) and math.isfinite(value):
            result[key] = float(value)
    return result
