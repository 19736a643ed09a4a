"""Rows that a signal store lacks, and why: a teacher's service had no signals of them.

{"key": "9f8a3c…/main/0", "reason": "a token has no log-probabilities"}
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from cohobate.data.examples import Example
from cohobate.progress import say

MISSING = "missing.jsonl"
"""In the folder of a store, beside its summary; a store that has every row has none."""


class MissingRow(BaseModel):
    """A row without signals."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    key: str
    """`row_key` of the row; of a store of label distributions its id."""
    reason: str


def missing_keys(folder: Path) -> set[str]:
    """Return the keys of the rows that a store is known to lack."""
    if not (folder / MISSING).exists():
        return set()
    lines = (folder / MISSING).read_text(encoding="utf-8").splitlines()
    return {json.loads(line)["key"] for line in lines}


def without_missing(folders: Iterable[Path], examples: Sequence[Example]) -> list[Example]:
    """Return the examples that every store has; those that one is known to lack are left out."""
    keys = {key for folder in folders for key in missing_keys(folder)}
    kept = [example for example in examples if example.key not in keys]
    if len(kept) < len(examples):
        say(f"{len(examples) - len(kept)} of {len(examples)} rows left out: they have no signals")
    return kept
