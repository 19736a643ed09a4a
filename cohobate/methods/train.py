"""Training of a phase with its method, once for each seed.

To add a method: a file beside this one with its class, and its name in `Method`.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

from pydantic import Field

from cohobate.data.records import TRAIN, read_rows, row_kind, write_json
from cohobate.errors import UserError
from cohobate.methods.classify import Classify
from cohobate.methods.dpo import Dpo
from cohobate.methods.early_exit import EarlyExit
from cohobate.methods.embed import Embed
from cohobate.methods.kd import Kd
from cohobate.methods.mlm import Mlm
from cohobate.methods.mutual import Mutual
from cohobate.methods.on_policy import OnPolicy
from cohobate.methods.phase import BEST, MODELS_DIR, Phase, PhaseResult
from cohobate.methods.sft import Sft
from cohobate.training import checkpointing
from cohobate.training.adapters import publish_adapter
from cohobate.training.dev_checks import DevScorer, DevTracker, ModelInTraining, checked
from cohobate.training.history import write_dev, write_history

Method = Annotated[
    Sft | Kd | OnPolicy | Dpo | Mutual | EarlyExit | Classify | Embed | Mlm,
    Field(discriminator="method"),
]


def train_seeds(
    folder: Path, phase: Method, seeds: list[int], scorer: DevScorer | None = None
) -> None:
    """Train a phase once for each seed, and write its checkpoints and summary.

    Args:
        folder: of the phase's outputs, such as models/train/kd; its name is the phase's.
        phase: its params.
        seeds: of the order of rows, dropout and sampling.
        scorer: scores the model on dev rows as it trains, where the phase has `dev`.

    Raises:
        UserError: no seed; the rows, targets or initial model do not fit; or a loss that is not
            finite.
    """
    from cohobate.progress import say

    item = folder.name
    if not seeds:
        raise UserError("no seed to train with", where="params.yaml", fix="--set seeds=[1]")
    summary: dict[str, Any] = {"method": phase.method, "from": phase.start}
    losses = []
    for seed in seeds:
        trained = _train_seed(folder, phase, seed, scorer)
        losses.append(final_loss(trained))
        summary |= {"rows": trained.rows, "updates": len(trained.history)}
        summary |= {f"{name}, seed {seed}": note for name, note in trained.notes.items()}
        summary[f"final_loss of seed {seed}"] = round(losses[-1], 4)
        say(f"{item}, seed {seed}: loss {losses[-1]:.4f} over the last updates")
    summary["final_loss"] = round(fmean(losses), 4)
    write_json(folder / "summary.json", summary)
    # only now: after a kill the seeds that were finished resume too, at their last checkpoint
    checkpointing.delete_checkpoints(_run_name(folder))


def _train_seed(folder: Path, phase: Phase, seed: int, scorer: DevScorer | None) -> PhaseResult:
    """Train one seed, in this process or in the workers that the phase asks for."""
    if phase.workers == 1:
        return _train(folder, phase, seed, scorer)
    from cohobate.training import distributed

    work = partial(_train, folder, phase, seed, scorer)
    return distributed.run(work, phase.workers, phase.replacements)


def _run_name(folder: Path) -> str:
    """Return the name under which the training checkpoints of a phase are kept."""
    return folder.name if folder.parent == TRAIN else folder.relative_to(MODELS_DIR).as_posix()


def _train(folder: Path, phase: Phase, seed: int, scorer: DevScorer | None = None) -> PhaseResult:
    label = f"train {folder.name}, seed {seed}"
    dev = DevTracker(phase.dev, scorer, label) if phase.dev and scorer else None
    trained = _fit_and_publish(folder, phase, seed, label, dev)
    if dev and dev.checks.keep == "both":
        dev.is_over = True
        _fit_and_publish(folder, phase, seed, label, dev)
    notes = {**trained.notes, **(dev.notes() if dev else {})}
    # they are on disk: a worker sends its result to the process that waits for it
    return trained._replace(notes=notes, extra_models={})


def _fit_and_publish(
    folder: Path, phase: Phase, seed: int, label: str, dev: DevTracker | None
) -> PhaseResult:
    """Train one seed and publish it; one that is over is published again, with its best weights."""
    from cohobate import processes
    from cohobate.models import checkpoints

    model, tokenizer = phase.load_initial_model(seed)
    rows = rows_of(Path(phase.rows))[: phase.limit]
    decided_by, prefix = phase.decided_by(seed), prefix_of(rows)
    if dev:
        autocast = phase.number_format == "bfloat16"
        start, threads = phase.start_folder(seed), phase.threads
        dev.trained = ModelInTraining(model, tokenizer, start, prefix, autocast, threads)
        decided_by.append(dev.scorer.content())
    with checkpointing.resumable(f"{_run_name(folder)}/seed-{seed}", *decided_by), checked(dev):
        trained = phase.train(model, tokenizer, rows, seed=seed, label=label)
    # after training the weights are the same in all workers
    if processes.rank() == 0:
        provenance = _provenance(folder.name, phase, seed, len(trained.history), dev)
        if prefix:
            provenance["prompt_prefix"] = prefix
        save = partial(checkpoints.save, precision=phase.save_precision)
        if dev and dev.is_over:
            save(model, tokenizer, folder / BEST / f"seed-{seed}", provenance)
            return trained
        checkpoint = folder / f"seed-{seed}"
        save(model, tokenizer, checkpoint, provenance)
        write_history(checkpoint / "history.csv", trained.history)
        if dev:
            write_dev(checkpoint / "dev.csv", dev.history)
        publish_adapter(model, phase.start_folder(seed), folder / "adapter" / f"seed-{seed}")
        for name, other in trained.extra_models.items():
            save(other, tokenizer, folder / name / f"seed-{seed}", provenance)
    return trained


def _provenance(
    item: str, phase: Phase, seed: int, updates: int, dev: DevTracker | None
) -> dict[str, Any]:
    from cohobate.models import checkpoints

    start = phase.start_folder(seed)
    if dev and (dev.is_over or dev.checks.keep == "best"):
        updates = dev.best.update
    return {
        "phase": item,
        "seed": seed,
        "from": checkpoints.fingerprint(start),
        "updates": checkpoints.updates(start) + updates,
        "params": phase.params(),
        "number_formats": phase.number_formats(),
    }


def rows_of(path: Path) -> list[Any]:
    """Return the rows of a file, of whichever kind it holds: training rows, responses or pairs.

    Raises:
        UserError: there is no such file, or no row in it.
    """
    if not path.is_file():
        raise UserError("these rows do not exist", where=str(path), fix="see train.<phase>.rows")
    if not path.stat().st_size:
        raise UserError("there are no rows to learn from", where=str(path))
    return list(read_rows(path, row_kind(path)))


def prefix_of(rows: Sequence[Any]) -> str | None:
    """Return the prompt prefix of the rows' answers, with which the student is to be prompted."""
    answers = (row for row in rows if getattr(row, "target", None) is None)
    return next((row.prefix for row in answers), None)


def final_loss(trained: PhaseResult) -> float:
    """Return the mean loss of the last tenth of the updates."""
    tail = trained.history[-max(1, len(trained.history) // 10) :]
    return fmean(update.loss for update in tail)
