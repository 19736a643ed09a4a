"""Training by 1, 2 and 4 workers: parity, memory of a worker, tokens a second.

    python -m benchmarks.scale [--method kd ...] [--workers 1 2 4] [--updates 6] [--check] [--idle]

Every method trains the same rows in float32 in one process, in two and in four, joined by gloo on
this machine, one thread each; weights, gradients and optimiser of the student are sharded, and so
are the weights of live teachers. Compared with one process:

loss, weights      largest relative difference of an update's loss, and of all published weights
                   together (the norm of what differs, of the norm of the weights): at most 1e-5.
largest            largest difference of one published weight. Printed alone: of millions, one whose
                   gradient is nearly 0 differs most, as Adam makes its rounding as large as a step.
rounding           the same between one process and itself, with the batch cut into as many parts as
                   there are workers: what another order of the same sums in float32 changes.
state              bytes of weights, gradients and moments in a worker at the optimiser's step, live
                   teachers included: at most .6 of one process at 2 workers, .35 at 4. They are
                   counted tensor by tensor, and are what shards.
load               highest memory of a worker's own (no pages of files, which all have in common)
                   from before models are loaded to the first update, as a share of one process:
                   its share of the weights, one block whole, and what importing the libraries of
                   sharding takes, which with models of this size is most of it. Printed alone.
peak               resident memory of the process at its highest, above what it is before models
                   are loaded: with the pages of files, gathered blocks and activations. Printed
                   alone.
speed              tokens a second of all workers together, in wall time: two of them need two idle
                   cores. At least 1.6 times one process with `--check --idle`, whose rows are
                   longer: gathering weights takes the same time for few tokens as for many.

The models are Llamas with random weights and a vocabulary of bytes, made on the spot.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.measuring import at_rest, status, table
from tests.tiny_models import make_model, make_tokenizer

SIZE = {"hidden_size": 256, "intermediate_size": 1024, "num_attention_heads": 8}
PAIRS, KEPT = "data/preferences/pairs.jsonl", "data/filter/kept.jsonl"


class Rows(NamedTuple):
    """What is trained on: so many rows, in batches, their prompts longer by so many characters."""

    number: int
    batch: int
    padding: int


SHORT, LONG = Rows(48, 16, 0), Rows(64, 32, 400)
SHARED = {
    "from": "init_student",
    "rows": KEPT,
    "learning_rate": 0.0003,
    "threads": 1,
    "precision": "float32",
    "save_precision": "float32",
    "sharding": "on",
    "freeze": {"embeddings": False},
}
TERMS = [{"type": "forward_kl", "weight": 0.7}, {"type": "hard", "weight": 0.3}]
METHODS: dict[str, dict[str, Any]] = {
    "sft": {"method": "sft", "targets": KEPT},
    "kd": {"method": "kd", "targets": "data/capture/main", "terms": TERMS},
    "kd, live teacher": {
        "method": "kd", "targets": "models/adapt/main", "terms": TERMS,
        "teacher_precision": "float32",
    },
    "features": {
        "method": "kd", "targets": "models/adapt/main", "teacher_precision": "float32",
        "terms": [*TERMS, {"type": "hidden_mse", "layers": "last"}],
    },
    "on_policy": {
        "method": "on_policy", "targets": "models/adapt/main",
        "sampling": {"decoding": {"max_tokens": 16, "temperature": 1.0}},
    },
    "dpo": {"method": "dpo", "rows": PAIRS, "targets": PAIRS},
    "mutual": {"method": "mutual", "targets": KEPT, "peers": [{}, {"keep_layers": [0, 1, 2]}]},
}  # fmt: skip
PARITY = 1e-5
STATE = {2: 0.6, 4: 0.35}
SPEED = 1.6


def prepare(size: Rows) -> None:
    """Write rows, pairs, models and signals into the current folder."""
    from cohobate.data.records import Pair, Response, Row, row_id, write_rows
    from cohobate.models import checkpoints
    from cohobate.teachers.signal_store.settings import CaptureParams
    from cohobate.teachers.teacher import Teacher
    from tasks.capture.stage import run as capture

    tokenizer = make_tokenizer()
    things = [f"thing of number {n}" + chr(97 + n % 26) * size.padding for n in range(size.number)]
    prompts = [f"Definition: a small {thing}\nCategory:" for thing in things]
    rows = [Row(id=row_id(p), prompt=p, answer=f" animal {n % 7}") for n, p in enumerate(prompts)]
    kept = [Response(**row.model_dump(), teacher="main", finish="stop") for row in rows]
    write_rows(Path(KEPT), kept)
    sides = {"rejected": " plant of a name", "chosen_origin": "teacher"}
    sides |= {"rejected_origin": "student"}
    pairs = [
        Pair(id=row.id, prompt=row.prompt, chosen=row.answer, margin=1.0, **sides) for row in rows
    ]
    write_rows(Path(PAIRS), pairs)
    for folder, layers in (("adapt/main", 12), ("init_student", 6)):
        # small weights: random teachers of large ones are nearly deterministic
        model = make_model(tokenizer, seed=layers, layers=layers, **SIZE, initializer_range=0.05)
        checkpoints.save(model, tokenizer, Path("models", folder), {}, precision="bfloat16")
    signals = {"type": "top_k", "k": 64}
    capture(
        "main", Teacher(model="tiny"),
        CaptureParams.model_validate({"signals": signals, "precision": "float32", "threads": 1}),
    )  # fmt: skip


def work(fields: dict[str, Any], rank: int, count: int) -> None:
    """Be one worker: train, and write what was measured to `worker-<rank>.json`."""
    import torch.distributed as dist
    from pydantic import TypeAdapter

    from cohobate.methods.train import Method, _train
    from cohobate.training.fused_trainer import FusedTrainer

    if count > 1:
        place = f"file://{Path('join').absolute()}"
        dist.init_process_group("gloo", init_method=place, rank=rank, world_size=count)
    figures: dict[str, float] = {"state_mb": 0.0}
    close, train = FusedTrainer.close_update, FusedTrainer.train
    loaded = threading.Event()

    def closing(self: Any, learning_rate: float) -> Any:
        figures["state_mb"] = max(figures["state_mb"], _state_bytes(self) / 2**20)
        return close(self, learning_rate)

    def training(self: Any, **options: Any) -> Any:
        loaded.set()
        began = time.perf_counter()
        done = train(self, **options)
        figures["tokens_per_second"] = self._tokens_read * count / (time.perf_counter() - began)
        return done

    FusedTrainer.close_update, FusedTrainer.train = closing, training  # type: ignore[method-assign]
    phase = TypeAdapter(Method).validate_python(fields | {"workers": count})
    rest = at_rest()
    watch = threading.Thread(target=_watch_load, args=(figures, loaded), daemon=True)
    watch.start()
    trained = _train(Path("models/train/it"), phase, seed=1)  # type: ignore[arg-type]
    watch.join()
    figures["peak_mb"] = status("VmHWM") - rest
    losses = [update.loss for update in trained.history]
    Path(f"worker-{rank}.json").write_text(json.dumps({"losses": losses, **figures}))


def _watch_load(figures: dict[str, float], loaded: threading.Event) -> None:
    """Note the highest memory of this process's own until models are loaded."""
    rest = highest = status("RssAnon")
    while not loaded.wait(0.002):
        highest = max(highest, status("RssAnon"))
    figures["load_mb"] = highest - rest


def _state_bytes(trainer: Any) -> int:
    """Return the bytes that this worker holds of weights, gradients and moments."""
    models = [trainer.loss_fn, *trainer.loss_fn.live_models]
    held = [weight for model in models for weight in model.parameters()]
    held += [weight.grad for weight in held if weight.grad is not None]
    for state in trainer.optimizer.state.values():
        held += [value for value in state.values() if hasattr(value, "nbytes")]
    # of a share of a tensor: what lies in this process
    return sum(getattr(tensor, "_local_tensor", tensor).nbytes for tensor in held)


def measure(
    folder: Path, method: str, count: int, *, updates: int, batch: int, parts: int = 1
) -> dict[str, Any]:
    """Train by `count` workers; return the first one's figures, and its weights.

    Each worker cuts its share of a batch into `parts`.
    """
    from safetensors.torch import load_file

    (folder / "join").unlink(missing_ok=True)
    cut = {"updates": updates, "batch_size": batch, "micro_batch_size": batch // count // parts}
    fields = json.dumps(SHARED | METHODS[method] | cut)
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    threads |= {"PYTHONPATH": str(Path(__file__).parents[1]), "HF_HUB_OFFLINE": "1"}
    workers = []
    for rank in range(count):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
        places = {name: str(n) for name, n in place.items()} if count > 1 else {}
        command = [sys.executable, __file__, "--worker", str(rank), str(count), fields]
        environment = os.environ | threads | places
        quiet: dict[str, Any] = (
            {"stderr": subprocess.DEVNULL, "stdout": subprocess.DEVNULL} if rank else {}
        )
        workers.append(subprocess.Popen(command, cwd=folder, env=environment, **quiet))
    codes = [worker.wait() for worker in workers]
    if any(codes):
        raise SystemExit(f"{method} with {count} workers failed")
    every = [json.loads((folder / f"worker-{n}.json").read_bytes()) for n in range(count)]
    names = ("state_mb", "load_mb", "peak_mb")
    highest = {name: max(one[name] for one in every) for name in names}
    weights = load_file(folder / "models/train/it/seed-1/model.safetensors")
    return every[0] | highest | {"weights": weights}


def compare(one: dict[str, Any], many: dict[str, Any]) -> dict[str, float]:
    """Return how far several workers are from one process."""
    losses = zip(one["losses"], many["losses"], strict=True)
    weights = [(one["weights"][name], many["weights"][name]) for name in one["weights"]]
    return {
        "loss": max(abs(a - b) / abs(a) for a, b in losses),
        "weights": _norm(a - b for a, b in weights) / _norm(a for a, _ in weights),
        "largest": max(float((a - b).abs().max()) for a, b in weights),
        "state": many["state_mb"] / one["state_mb"],
        "load": many["load_mb"] / one["load_mb"],
        "peak": many["peak_mb"] / one["peak_mb"],
        "speed": many["tokens_per_second"] / one["tokens_per_second"],
    }


def _norm(tensors: Iterable[Any]) -> float:
    return math.hypot(*(float(tensor.norm()) for tensor in tensors))


def main() -> int:
    """Print the table and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--method", choices=METHODS, nargs="+", default=list(METHODS))
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--updates", type=int, default=6)
    parser.add_argument("--check", action="store_true", help="fail where a target does not hold")
    parser.add_argument(
        "--idle", action="store_true", help="two cores are idle: longer rows, and check the speed"
    )
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=Path("reports/benchmarks/scale.json"))
    chosen = parser.parse_args()
    if chosen.worker:
        rank, count, fields = chosen.worker
        work(json.loads(fields), int(rank), int(count))
        return 0
    out, lines = chosen.out.absolute(), []
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)
        size = LONG if chosen.idle else SHORT
        prepare(size)
        trained = partial(measure, Path(scratch), updates=chosen.updates, batch=size.batch)
        for method in chosen.method:
            one = trained(method, 1)
            for count in chosen.workers:
                if count == 1:
                    continue
                many = trained(method, count)
                figures = compare(one, many)
                cut = trained(method, 1, parts=count)
                figures["rounding"] = compare(one, cut)["largest"]
                good = max(figures["loss"], figures["weights"]) <= PARITY
                good &= figures["state"] <= STATE.get(count, 1)
                good &= not (chosen.idle and count == 2 and figures["speed"] < SPEED)
                lines.append({"method": method, "workers": count} | figures | {"holds": good})
                print(f"  {lines[-1]}", file=sys.stderr, flush=True)
        os.chdir(out.root)
    differences = ["loss", "weights", "largest", "rounding"]
    head = ["method", "workers", *differences, "state", "load", "peak", "speed", "holds"]
    exact = [f"{line[name]:.1e}" if name in differences else line[name]
             for line in lines for name in head]  # fmt: skip
    print(table(head, [exact[n : n + len(head)] for n in range(0, len(exact), len(head))]))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(lines, indent=2) + "\n")
    return int(chosen.check and not all(line["holds"] for line in lines))


if __name__ == "__main__":
    sys.exit(main())
