"""Train one phase, once for each seed.

In:  models/<from>, <rows> and <targets> of the phase in params.yaml; where it has `dev`,
     data/dev_checks/train/<phase>.json
Out: models/train/<phase>/seed-<n>/             the trained checkpoint
     models/train/<phase>/seed-<n>/history.csv  a line for each update (optimizer step)
     models/train/<phase>/seed-<n>/dev.csv      a line for each check on dev rows, with `dev`
     models/train/<phase>/best/seed-<n>/        the best on dev, with `dev: {keep: both}`
     models/train/<phase>/<name>/seed-<n>/      a peer model, where it is kept
     models/train/<phase>/summary.json

Lines of history.csv, a column for each term of the loss:

    step,loss,forward_kl,hard,gradient_norm,tokens,learning_rate,stage
    1,4.33,3.9,0.43,2.17,96,0.0,0

Methods of training: cohobate/methods/.
"""

from typing import Annotated

from cohobate.data.records import TRAIN
from cohobate.evaluation.dev_scores import DevRows
from cohobate.methods.train import Method, train_seeds
from cohobate.params import EachOf


def run(item: str, phase: Annotated[Method, EachOf("train")], seeds: list[int]) -> None:
    """Train the phase `item` from its start, once for each seed.

    Raises:
        UserError: start, rows and targets do not match, or a loss is not finite.
    """
    dev_rows = DevRows.of_phase("train", item) if phase.dev else None
    train_seeds(TRAIN / item, phase, seeds, dev_rows)
