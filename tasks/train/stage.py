"""Train one phase, once for each seed.

In:  models/<from>, <rows> and <targets> of the phase in params.yaml
Out: models/train/<phase>/seed-<n>/             the trained checkpoint
     models/train/<phase>/seed-<n>/history.csv  a line for each update (optimizer step)
     models/train/<phase>/<name>/seed-<n>/      a peer model, where it is kept
     models/train/<phase>/summary.json

Lines of history.csv, a column for each term of the loss:

    step,loss,forward_kl,hard,gradient_norm,tokens,learning_rate,stage
    1,4.33,3.9,0.43,2.17,96,0.0,0

Methods of training: cohobate/methods/.
"""

from typing import Annotated

from cohobate.data.records import TRAIN
from cohobate.methods.train import Method, train_seeds
from cohobate.params import EachOf


def run(item: str, phase: Annotated[Method, EachOf("train")], seeds: list[int]) -> None:
    """Train the phase `item` from its start, once for each seed.

    Raises:
        UserError: start, rows and targets do not match, or a loss is not finite.
    """
    train_seeds(TRAIN / item, phase, seeds)
