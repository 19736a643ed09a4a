"""Estimates of training memory, held to measured peaks: trainings of random models.

    python -m benchmarks.memory [--only NAME ...] [--check]

Each training runs in a process of its own, or in several that are joined by gloo, on one thread
each, for a few updates. What is measured is the peak of a process's resident memory, above what it
had before the model was made (Python, torch and transformers, after a training of one row); of
several processes the highest counts. It is compared with the estimate of `cohobate.training.memory`
that `cohobate run` and `cohobate fits` print, without its part for the program. That of the program
is printed too.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.measuring import (
    at_rest,
    in_own_processes,
    join_workers,
    machine,
    status,
    table,
)

BOUND = 0.15
"""Largest difference of estimate and measurement, as a share of the measurement."""
VOCABULARY = 16_000
SMALL = {"width": 512, "neurons": 1408, "layers": 6, "heads": 8, "keys": 4}
DEEP = {"width": 384, "neurons": 1024, "layers": 12, "heads": 6, "keys": 6}
SHAPES = {"small": SMALL, "deep": DEEP}


class Configuration(NamedTuple):
    """One training: shapes, hyperparameters, and where its targets come from."""

    tokens: int
    hyperparameters: dict[str, Any]
    shapes: str = "small"
    """A key of `SHAPES`."""
    teacher: str | None = None
    """Shapes of a live teacher."""
    workers: int = 1
    """Processes that train together."""


FULL, HALF = {"precision": "float32"}, {"precision": "bfloat16"}
SHARDED = FULL | {"sharding": "on"}
CONFIGURATIONS = {
    "sft, short rows": Configuration(128, FULL | {"batch_size": 16}),
    "sft, long rows": Configuration(512, FULL | {"batch_size": 4}),
    "sft, bfloat16": Configuration(128, HALF | {"batch_size": 16}),
    "sft, bfloat16, long rows": Configuration(512, HALF | {"batch_size": 8}),
    "sft, micro-batches": Configuration(128, FULL | {"batch_size": 16, "micro_batch_size": 4}),
    "sft, embeddings trained": Configuration(
        128, FULL | {"batch_size": 4, "freeze": {"embeddings": False}}
    ),
    "sft, two layers frozen": Configuration(256, FULL | {"batch_size": 8, "freeze": {"layers": 2}}),
    "sft, adafactor": Configuration(256, FULL | {"batch_size": 4, "optimiser": "adafactor"}),
    "lora": Configuration(256, FULL | {"batch_size": 8, "adapter": {"type": "lora"}}),
    "activation checkpointing": Configuration(
        256, FULL | {"batch_size": 8, "activation_checkpointing": True}, "deep"
    ),
    "kd, live teacher": Configuration(256, FULL | {"batch_size": 8}, "small", "deep"),
    "kd, live teacher, bfloat16": Configuration(128, HALF | {"batch_size": 16}, "small", "deep"),
    "sft, 2 workers, whole": Configuration(128, FULL | {"batch_size": 16}, workers=2),
    "sft, 2 workers, sharded": Configuration(128, SHARDED | {"batch_size": 16}, workers=2),
    "sft, 4 workers, sharded": Configuration(128, SHARDED | {"batch_size": 16}, workers=4),
    "kd, 2 workers, sharded": Configuration(
        128, SHARDED | {"batch_size": 16}, "small", "deep", workers=2
    ),
    "kd, 4 workers, sharded": Configuration(
        128, SHARDED | {"batch_size": 16}, "small", "deep", workers=4
    ),
}


def llama(shapes: dict[str, int]) -> Any:
    """Return a Llama of random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=shapes["width"],
        intermediate_size=shapes["neurons"],
        num_hidden_layers=shapes["layers"],
        num_attention_heads=shapes["heads"],
        num_key_value_heads=shapes["keys"],
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config)


def make_models(folder: Path) -> None:
    """Write the checkpoints that the trainings start from."""
    from cohobate.models import checkpoints
    from tests.tiny_models import make_tokenizer

    for name, shapes in SHAPES.items():
        checkpoints.save(llama(shapes), make_tokenizer(), folder / name, {}, precision="float32")


def measure(name: str, models: Path) -> dict[str, Any]:
    """Train one configuration in this process; return estimated parts and the measured peak."""
    import torch

    from cohobate.data.examples import Example
    from cohobate.fast.frozen import load_frozen
    from cohobate.losses.divergences import ForwardKL, Hard
    from cohobate.models import checkpoints
    from cohobate.models.model_size import size_of_model
    from cohobate.teachers.target_sources import LiveSource
    from cohobate.training import Hyperparameters, fit
    from cohobate.training.memory import Placement, TeacherSize, peak_memory

    case = CONFIGURATIONS[name]
    join_workers()
    how = Hyperparameters.model_validate({"updates": 2, "threads": 1} | case.hyperparameters)
    torch.manual_seed(0)
    ids_RS = torch.randint(1, VOCABULARY, (4 * how.batch_size, case.tokens)).int().numpy()
    start = case.tokens // 2
    examples = [Example.with_answer(str(n), ids, start) for n, ids in enumerate(ids_RS)]
    # libraries that are imported with the first training belong to the program
    tiny = llama({"width": 32, "neurons": 64, "layers": 3, "heads": 2, "keys": 2})
    few = case.workers
    few_rows = how.model_copy(update={"batch_size": few, "micro_batch_size": None})
    fit(tiny, examples[:few], [Hard()], few_rows)
    del tiny
    before = at_rest()
    sharded = how.sharding == "on"
    student, _ = checkpoints.load(models / case.shapes, mapped=sharded)
    sizes, source = [], None
    if case.teacher:
        folder, number = models / case.teacher, how.number_format
        teacher, _ = load_frozen(folder, precision=number, sharded=sharded)
        sizes.append(TeacherSize(size_of_model(teacher), getattr(torch, number).itemsize))
        source = LiveSource({"main": teacher}, VOCABULARY)
    place = Placement(workers=case.workers)
    parts = peak_memory(size_of_model(student), how, case.tokens, sizes, placement=place)
    at_rest()  # the peak of what made the models is not that of the training
    fit(student, examples, [ForwardKL() if source else Hard()], how, target_source=source)
    peak = (status("VmHWM") - before) * 2**20
    return {"parts": parts, "measured": peak, "program": before * 2**20}


def compare(names: list[str], models: Path, out: Path) -> list[list[Any]]:
    """Train each configuration, print the table and write the JSON; return the table's rows."""
    native = machine()["number_format"]
    results, rows = dict[str, Any](), list[list[Any]]()
    head = ["MiB", "weights", "gathered", "gradients", "optimiser", "activations", "logits",
            "live teachers"]  # fmt: skip
    for name in names:
        if CONFIGURATIONS[name].hyperparameters["precision"] not in {"float32", native}:
            continue
        workers = CONFIGURATIONS[name].workers
        every = in_own_processes(__file__, ["--one", name, "--models", str(models)], workers)
        figures = max(every, key=lambda worker: worker["measured"])
        parts = {part: size / 2**20 for part, size in figures["parts"].items()}
        estimate = sum(parts.values()) - parts["the program"]
        measured = figures["measured"] / 2**20
        results[name] = figures
        shown = [f"{size:.0f}" for part, size in parts.items() if part in head]
        rows.append([name, *shown, f"{estimate:.0f}", f"{measured:.0f}", estimate / measured])
        program = f"the program {figures['program'] / 2**20:.0f} beside"
        print(
            f"  {name}: {estimate:.0f} estimated, {measured:.0f} measured, {program}",
            file=sys.stderr, flush=True,
        )  # fmt: skip
    print(table([*head, "estimate", "measured", "ratio"], rows))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"machine": machine(), "figures": results}, indent=2) + "\n")
    return rows


def main() -> int:
    """Print the table and write the JSON; with --check fail where an estimate is off."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=CONFIGURATIONS, default=[*CONFIGURATIONS])
    parser.add_argument("--one", choices=CONFIGURATIONS, help=argparse.SUPPRESS)
    parser.add_argument("--models", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--check", action="store_true", help="fail where one is off by over 15 %%")
    parser.add_argument("--out", type=Path, default=Path("reports/benchmarks/memory.json"))
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one, options.models)))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        make_models(Path(folder))
        rows = compare(options.only, Path(folder), options.out)
    off = [row for row in rows if abs(row[-1] - 1) > BOUND]
    return 1 if off and options.check else 0


if __name__ == "__main__":
    sys.exit(main())
