"""Comparison of two rounds by the figures of their reports/metrics.json."""

import json
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cohobate.errors import UserError
from tasks.evaluate.write_results import METRICS


def compared(root: Path, metrics: Mapping[str, Any], against: str) -> list[dict[str, Any]]:
    """Return a line for each figure that both rounds have and that differs.

    Args:
        root: the project.
        metrics: of this round.
        against: a git revision (`round-0006`), or a folder that holds a metrics.json.

    Raises:
        UserError: there are no metrics.
    """
    then, now = dict(_flat(_earlier(root, against))), dict(_flat(metrics))
    return [
        {"figure": name, "then": then[name], "now": value, "change": value - then[name]}
        for name, value in now.items()
        if name in then and value != then[name]
    ]


def _earlier(root: Path, against: str) -> Any:
    folder = root / against
    if folder.is_dir():
        path = folder / METRICS.name
        if not path.exists():
            raise UserError(
                "no round was evaluated there",
                where=str(path),
                fix="name a folder that holds a metrics.json, or a git revision",
            )
        return json.loads(path.read_text())
    command = ["git", "show", "--end-of-options", f"{against}:./{METRICS.as_posix()}"]
    completed = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    if completed.returncode:
        raise UserError(
            f"no round to compare with: {completed.stderr.strip() or against}",
            where=f"{against}:{METRICS.as_posix()}",
            fix="git tag --list 'round-*', or name a folder that holds a metrics.json",
        )
    return json.loads(completed.stdout)


def _flat(metrics: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{prefix}{name}", float(value)
