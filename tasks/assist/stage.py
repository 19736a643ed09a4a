"""One phase of training whose model teaches later phases, once for each seed.

In:  as `train`
Out: models/assist/<phase>/seed-<n>/, as `train` writes models/train/<phase>/seed-<n>/

Several earlier phases as teachers of one are these: `targets: models/assist` and
`teachers: {first: 1, second: 1}`. The folder above the phases of `train` cannot be the targets of
one of them, as it would wait for itself.
"""

from typing import Annotated

from cohobate.data.records import ASSIST
from cohobate.methods.train import Method, train_seeds
from cohobate.params import EachOf


def run(item: str, phase: Annotated[Method, EachOf("assist")], seeds: list[int]) -> None:
    """Train the phase `item` from its start, once for each seed.

    Raises:
        UserError: start, rows and targets do not fit each other; or a loss that is not finite.
    """
    train_seeds(ASSIST / item, phase, seeds)
