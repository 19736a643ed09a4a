"""What is planted in a round to see whether its gate and its report can tell."""

import json
import shutil
from pathlib import Path

import numpy as np

from cohobate import sealed_folder
from cohobate.data.records import GENERATE, TEST, Response, Row, read_rows, write_rows
from cohobate.teachers.signal_store.store import INDEX


def shuffle_signals(store: Path, seed: int = 0) -> float:
    """Give each row the signals of another row of the same length: a teacher that says nothing.

    Returns:
        The share of rows that now have another row's signals.
    """
    index = np.load(store / INDEX)
    place = ["shard", "token", "draw"]  # where a row's signals lie
    before = index[place].copy()
    rng = np.random.default_rng(seed)
    for length in np.unique(index["length"]):
        (same,) = np.nonzero(index["length"] == length)
        from_others = before[rng.permutation(same)]
        for field in place:
            index[field][same] = from_others[field]
    names = [path for path in store.iterdir() if path.name != sealed_folder.MANIFEST]
    with sealed_folder.staged(store) as partial:
        for path in names:
            shutil.copy(path, partial)
        np.save(partial / INDEX, index)
    return float((index[place] != before).mean())


def leak_test_rows(teacher: str, count: int) -> list[str]:
    """Have the teacher answer test prompts too; return their ids."""
    path = GENERATE / teacher / "responses.jsonl"
    leaked = list(read_rows(TEST, Row))[:count]
    answers = [Response(**row.model_dump(), teacher=teacher, finish="stop") for row in leaked]
    write_rows(path, [*read_rows(path, Response), *answers])
    return [row.id for row in leaked]


def verdict() -> dict:
    """Return the round's metrics."""
    return json.loads(Path("reports/metrics.json").read_text())
