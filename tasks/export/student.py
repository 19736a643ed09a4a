"""Which of the distilled student's checkpoints is exported, and where it comes from."""

import json
from pathlib import Path
from typing import Any, Literal, NamedTuple

from cohobate.data.records import EVALUATE
from cohobate.errors import UserError
from cohobate.models import checkpoints

Choice = Literal["best_on_dev", "first"]
ROLES = ("teacher", "initial", "baseline", "baseline_best", "student")


class Student(NamedTuple):
    """The distilled student, as evaluate found it."""

    phase: str
    by_seed: dict[int, Path]
    """Its checkpoints."""
    row: dict[str, Any]
    """Its row of data/evaluate/arms.json."""
    compared: list[dict[str, Any]]
    """The rows of teacher, student before distillation, baseline, its best checkpoint on dev where
    it keeps one, and student, in this order."""


def evaluated() -> Student:
    """Return the distilled student, as evaluate found it.

    Raises:
        UserError: a checkpoint is not there any more.
    """
    rows = json.loads((EVALUATE / "arms.json").read_bytes())
    by_role = {row["role"]: row for row in rows if row["role"] != "other"}
    row = by_role["student"]
    folders = {
        int(seed): Path(folder)
        for seed, folder in zip(row["by_seed"], row["checkpoints"], strict=True)
    }
    for folder in folders.values():
        if not folder.is_dir():
            raise UserError("a checkpoint is not there", where=str(folder), fix="cohobate run")
    return Student(row["arm"], folders, row, [by_role[role] for role in ROLES if role in by_role])


def lineage(folder: Path) -> dict[str, Any]:
    """Return what a checkpoint is and was made from, as its own files say."""
    provenance = checkpoints.provenance(folder)
    return {"fingerprint": checkpoints.fingerprint(folder), "provenance": provenance}
