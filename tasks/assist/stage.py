"""Train one phase whose model is a teacher of later phases, once for each seed.

In:  as `train`
Out: models/assist/<phase>/seed-<n>/, as `train` writes models/train/<phase>/seed-<n>/

A later phase uses several of them with `targets: models/assist` and `teachers: {first: 1,
second: 1}`. A phase of `train` cannot have `models/train` as its targets: that would be a cycle.
"""

from typing import Annotated

from cohobate.data.records import ASSIST
from cohobate.evaluation.dev_scores import DevRows
from cohobate.methods.train import Method, train_seeds
from cohobate.params import EachOf


def run(item: str, phase: Annotated[Method, EachOf("assist")], seeds: list[int]) -> None:
    """Train the phase `item` from its start, once for each seed.

    Raises:
        UserError: start, rows and targets do not match, or a loss is not finite.
    """
    dev_rows = DevRows.of_phase("assist", item) if phase.dev else None
    train_seeds(ASSIST / item, phase, seeds, dev_rows)
