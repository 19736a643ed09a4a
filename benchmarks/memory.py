"""Estimates of training memory, held to measured peaks: twelve trainings of random models.

    python -m benchmarks.memory [--only NAME ...] [--check]

Each training runs in a process of its own, on one thread, for a few updates. What is measured is
the peak of the process's resident memory, above what it had before the model was made (Python,
torch and transformers, after a training of one row). It is compared with the estimate of
`cohobate.training.memory` that `cohobate run` and `cohobate fits` print, without its part for the
program.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.measuring import at_rest, in_own_process, machine, status, table

BOUND = 0.15
"""Largest difference of estimate and measurement, as a share of the measurement."""
VOCABULARY = 16_000
SMALL = {"width": 512, "neurons": 1408, "layers": 6, "heads": 8, "keys": 4}
DEEP = {"width": 384, "neurons": 1024, "layers": 12, "heads": 6, "keys": 6}


class Configuration(NamedTuple):
    """One training: shapes, hyperparameters, and where its targets come from."""

    tokens: int
    hyperparameters: dict[str, Any]
    shapes: dict[str, int] = SMALL
    teacher: dict[str, int] | None = None
    """Shapes of a live teacher."""


FULL, HALF = {"precision": "float32"}, {"precision": "bfloat16"}
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
        256, FULL | {"batch_size": 8, "activation_checkpointing": True}, DEEP
    ),
    "kd, live teacher": Configuration(256, FULL | {"batch_size": 8}, SMALL, DEEP),
    "kd, live teacher, bfloat16": Configuration(128, HALF | {"batch_size": 16}, SMALL, DEEP),
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


def measure(name: str) -> dict[str, Any]:
    """Train one configuration in this process; return estimated parts and the measured peak."""
    import torch

    from cohobate.data.examples import Example
    from cohobate.fast.packed_linear import pack
    from cohobate.losses.divergences import ForwardKL, Hard
    from cohobate.models.model_size import size_of_model
    from cohobate.teachers.target_sources import LiveSource
    from cohobate.training import Hyperparameters, fit
    from cohobate.training.memory import TeacherSize, peak_memory

    case = CONFIGURATIONS[name]
    how = Hyperparameters.model_validate({"updates": 2, "threads": 1} | case.hyperparameters)
    torch.manual_seed(0)
    ids_RS = torch.randint(1, VOCABULARY, (4 * how.batch_size, case.tokens)).int().numpy()
    start = case.tokens // 2
    examples = [Example.with_answer(str(n), ids, start) for n, ids in enumerate(ids_RS)]
    # libraries that are imported with the first training belong to the program
    tiny = llama({"width": 32, "neurons": 64, "layers": 1, "heads": 2, "keys": 2})
    fit(tiny, examples[:1], [Hard()], how.model_copy(update={"batch_size": 1}))
    del tiny
    before = at_rest()
    student = llama(case.shapes)
    sizes, source = [], None
    if case.teacher:
        number = torch.bfloat16 if how.number_format == "bfloat16" else torch.float32
        teacher = llama(case.teacher).to(number).eval()
        pack(teacher, 2**31)
        sizes.append(TeacherSize(size_of_model(teacher), number.itemsize))
        source = LiveSource({"main": teacher}, VOCABULARY)
    parts = peak_memory(size_of_model(student), how, case.tokens, sizes)
    at_rest()  # the peak of what made the models is not that of the training
    fit(student, examples, [ForwardKL() if source else Hard()], how, target_source=source)
    peak = (status("VmHWM") - before) * 2**20
    return {"parts": parts, "measured": peak, "program": before * 2**20}


def main() -> int:
    """Print the table and write the JSON; with --check fail where an estimate is off."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=CONFIGURATIONS, default=[*CONFIGURATIONS])
    parser.add_argument("--one", choices=CONFIGURATIONS, help=argparse.SUPPRESS)
    parser.add_argument("--check", action="store_true", help="fail where one is off by over 15 %%")
    parser.add_argument("--out", type=Path, default=Path("reports/benchmarks/memory.json"))
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one)))
        return 0
    native = machine()["number_format"]
    results, rows = {}, []
    head = ["MiB", "weights", "gradients", "optimiser", "activations", "logits", "live teachers"]
    for name in options.only:
        if CONFIGURATIONS[name].hyperparameters["precision"] not in {"float32", native}:
            continue
        figures = in_own_process(__file__, ["--one", name])
        parts = {part: size / 2**20 for part, size in figures["parts"].items()}
        estimate = sum(parts.values()) - parts["the program"]
        measured = figures["measured"] / 2**20
        results[name] = figures
        shown = [f"{size:.0f}" for part, size in parts.items() if part in head]
        rows.append([name, *shown, f"{estimate:.0f}", f"{measured:.0f}", estimate / measured])
        print(f"  {name}: {estimate:.0f} estimated, {measured:.0f} measured", file=sys.stderr)
    print(table([*head, "estimate", "measured", "ratio"], rows))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"machine": machine(), "figures": results}, indent=2) + "\n")
    off = [row for row in rows if abs(row[-1] - 1) > BOUND]
    return 1 if off and options.check else 0


if __name__ == "__main__":
    sys.exit(main())
