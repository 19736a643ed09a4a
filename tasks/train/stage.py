"""One phase of training, once for each seed.

In:  models/<from>, <rows> and <targets> of the phase in params.yaml
Out: models/train/<phase>/seed-<n>/             the trained checkpoint
     models/train/<phase>/seed-<n>/history.csv  a line for each update
     models/train/<phase>/<name>/seed-<n>/      a model that was trained beside it, where kept
     models/train/<phase>/summary.json

Lines of history.csv:

    step,loss,learning_rate,stage
    1,4.33,0.0,0
    2,3.9871,0.0001,0

To add a method: one file beside this one with its class, and its name in `Method`.
"""

import csv
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

from pydantic import Field

from tasks.errors import UserError
from tasks.params import EachOf
from tasks.records import TRAIN, Lesson, Pair, Response, Row, read_rows, write_json
from tasks.train.dpo import Dpo
from tasks.train.kd import Kd
from tasks.train.mutual import Mutual
from tasks.train.on_policy import OnPolicy
from tasks.train.phase import Phase, Trained
from tasks.train.sft import Sft

Method = Annotated[Sft | Kd | OnPolicy | Dpo | Mutual, Field(discriminator="method")]


def run(item: str, phase: Annotated[Method, EachOf("train")], seeds: list[int]) -> None:
    """Train the phase `item` from its start, once for each seed.

    Raises:
        UserError: start, rows and targets do not fit each other; or a loss that is not finite.
    """
    from tasks.progress import say

    if not seeds:
        raise UserError("no seed to train with", where="params.yaml", mend="--set seeds=[1]")
    rows = rows_of(Path(phase.rows))
    summary: dict[str, Any] = {"method": phase.method, "from": phase.start}
    losses = []
    for seed in seeds:
        trained = _train(item, phase, rows, seed)
        losses.append(final_loss(trained))
        summary |= {"rows": trained.rows, "updates": len(trained.history)}
        summary[f"final_loss of seed {seed}"] = round(losses[-1], 4)
        summary |= {f"{name} of seed {seed}": n for name, n in trained.figures.items()}
        say(f"{item}, seed {seed}: loss {losses[-1]:.4f} over the last updates")
    summary["final_loss"] = round(fmean(losses), 4)
    write_json(TRAIN / item / "summary.json", summary)


def _train(item: str, phase: Phase, rows: Sequence[Row], seed: int) -> Trained:
    from tasks import checkpoints

    start = phase.start_folder(seed)
    model, tokenizer = phase.load_start(seed)
    trained = phase.train(model, tokenizer, rows, seed=seed, what=f"train {item}, seed {seed}")
    folder = TRAIN / item / f"seed-{seed}"
    provenance = {
        "phase": item,
        "seed": seed,
        "from": checkpoints.fingerprint(start),
        "params": phase.model_dump(mode="json", by_alias=True),
    }
    checkpoints.save(model, tokenizer, folder, provenance, precision=phase.save_precision)
    _write_history(folder / "history.csv", trained)
    for name, other in trained.others.items():
        beside = TRAIN / item / name / f"seed-{seed}"
        checkpoints.save(other, tokenizer, beside, provenance, precision=phase.save_precision)
    return trained


def rows_of(path: Path) -> list[Any]:
    """Read rows of whichever kind the file holds: lessons, responses, plain rows or pairs.

    Raises:
        UserError: there is no such file, or no row in it.
    """
    if not path.is_file():
        raise UserError("these rows do not exist", where=str(path), mend="see train.<phase>.rows")
    first = path.open("rb").readline()
    if not first:
        raise UserError("there are no rows to learn from", where=str(path))
    kinds: dict[bytes, Any] = {b'"chosen":': Pair, b'"stage":': Lesson, b'"teacher":': Response}
    kind = next((kind for mark, kind in kinds.items() if mark in first), Row)
    return list(read_rows(path, kind))


def final_loss(trained: Trained) -> float:
    """Return the mean loss of the last tenth of the updates."""
    tail = trained.history[-max(1, len(trained.history) // 10) :]
    return fmean(update.loss for update in tail)


def _write_history(path: Path, trained: Trained) -> None:
    with path.open("w", newline="") as out:
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["step", "loss", "learning_rate", "stage"])
        for step, loss, rate, stage in trained.history:
            writer.writerow([step, f"{loss:.6g}", f"{rate:.6g}", stage])
