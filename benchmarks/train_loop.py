"""Whole training loops, side by side with TRL's trainers: target P4.

    python benchmarks/train_loop.py --round FOLDER [--updates 50] [--check]

FOLDER holds a finished round: its shaped student and adapted teacher are the models, its rows the
text, as conversations. Rows are taken two ways: short answers (a definition asks for its category)
and long ones (a category asks for a definition). Both sides see the same rows, batch sizes, number
of updates and precision (bfloat16), train every weight, and run in a process of their own with one
thread. Tokens are those of prompt and answer, without padding; time is that of `train()` and
`fit()`.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.measuring import at_rest, in_own_process, status, table

LOOPS = ["trl sft padded", "trl sft packed", "ours sft", "trl gkd", "ours kd live"]
TARGETS = [
    ("SFT, long answers, against TRL packed", "long", "ours sft", "trl sft packed", 2.0),
    ("KD, long answers, against GKDTrainer", "long", "ours kd live", "trl gkd", 3.0),
    ("KD, short answers, against GKDTrainer", "short", "ours kd live", "trl gkd", 8.0),
]
BATCH = 8


def rows_of(folder: Path, answers: str, count: int) -> list[Any]:
    """Return rows of the round as conversations."""
    from tasks.rows.records import Message, Row, read_rows, row_id

    found = []
    for row in read_rows(folder / "data/collect/labelled.jsonl", Row):
        text = str(row.prompt).removeprefix("Definition: ").removesuffix("\nCategory:")
        label = str(row.answer).strip()
        if answers == "short":
            ask, answer = f"What category is this? {text}", label
        else:
            ask, answer = f"Define something of the category {label}.", text
        prompt = (Message(role="user", content=ask),)
        found.append(Row(id=row_id(prompt), prompt=prompt, answer=answer, origin="ground_truth"))
        if len(found) == count:
            break
    return found


def tokens_of(tokenizer: Any, rows: Sequence[Any]) -> int:
    """Return how many tokens the rows have."""
    from tasks.rows.text import encode_all

    return sum(len(row.ids) for row in encode_all(tokenizer, rows))


def stock(loop: str, folder: Path, rows: Sequence[Any], updates: int) -> tuple[float, int]:
    """Run TRL's trainer; return its seconds and the tokens that it saw."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    from tasks.models import checkpoints

    model, tokenizer = checkpoints.load(folder / "models/shape", attention="eager")
    tokens = tokens_of(tokenizer, rows)
    turns = [
        [
            {"role": "user", "content": row.prompt[0].content},
            {"role": "assistant", "content": row.answer},
        ]
        for row in rows
    ]
    with tempfile.TemporaryDirectory() as scratch:
        shared = {
            "output_dir": scratch,
            "per_device_train_batch_size": BATCH,
            "max_steps": updates,
            "use_cpu": True,
            "bf16": True,
            "gradient_checkpointing": False,
            "report_to": "none",
            "save_strategy": "no",
            "logging_strategy": "no",
            "disable_tqdm": True,
            "max_length": 256,
        }
        data = Dataset.from_dict({"messages": turns})
        if loop == "trl gkd":
            teacher, _ = checkpoints.load(folder / "models/adapt/main", precision="bfloat16")
            options = GKDConfig(**shared, lmbda=0.0, beta=0.0)
            trainer = GKDTrainer(
                model, teacher, args=options, train_dataset=data, processing_class=tokenizer
            )
        else:
            packed = loop == "trl sft packed"
            options = SFTConfig(**shared, packing=packed)
            if packed:  # as many tokens an update as the padded loop has
                options.per_device_train_batch_size = 1
            trainer = SFTTrainer(
                model, args=options, train_dataset=data, processing_class=tokenizer
            )
            if packed:
                tokens = sum(len(ids) for ids in trainer.train_dataset["input_ids"][:updates])
        start = time.perf_counter()
        trainer.train()
        return time.perf_counter() - start, tokens


def ours(loop: str, folder: Path, rows: Sequence[Any], updates: int) -> tuple[float, int]:
    """Run our trainer; return its seconds and the tokens that it saw."""
    from tasks.learning.batches import examples_of
    from tasks.learning.hyperparameters import Freeze, Hyperparameters
    from tasks.learning.trainer import fit
    from tasks.losses.divergences import ForwardKL, Hard
    from tasks.models import checkpoints
    from tasks.rows.text import encode_all
    from tasks.teaching.origins import Live

    model, tokenizer = checkpoints.load(folder / "models/shape")
    examples = examples_of(rows, encode_all(tokenizer, rows))
    chosen = Hyperparameters(
        updates=updates, batch_size=BATCH, threads=1, freeze=Freeze(embeddings=False)
    )
    size, options, terms = len(tokenizer), {}, [Hard()]
    if loop == "ours kd live":
        teacher, _ = checkpoints.load(folder / "models/adapt/main", precision="bfloat16")
        options, terms = {"teaching": Live({"main": teacher}, size)}, [ForwardKL()]
    start = time.perf_counter()
    fit(model, examples, terms, chosen, seed=1, what=loop, vocabulary=size, **options)  # type: ignore[arg-type]
    return time.perf_counter() - start, tokens_of(tokenizer, rows)


def measured(loop: str, folder: Path, answers: str, updates: int) -> dict[str, float]:
    """Run one loop in this process."""
    import torch

    torch.set_num_threads(1)
    # one pass over the rows; packed, several short ones make a row
    share = 16 if loop == "trl sft packed" else BATCH
    rows = rows_of(folder, answers, share * updates)
    at_rest()
    seconds, tokens = (ours if loop.startswith("ours") else stock)(loop, folder, rows, updates)
    return {
        "seconds": seconds,
        "tokens": tokens,
        "tokens_per_second": tokens / seconds,
        "peak_mb": status("VmHWM"),
    }


def main() -> int:
    """Print the table and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--round", type=Path, default=Path(), help="folder of a finished round")
    parser.add_argument("--updates", type=int, default=50)
    parser.add_argument("--loop", choices=LOOPS)
    parser.add_argument(
        "--answers", choices=["short", "long"], nargs="+", default=["short", "long"]
    )
    parser.add_argument("--check", action="store_true", help="fail where a target does not hold")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    chosen = parser.parse_args()
    if chosen.loop:
        figures = measured(chosen.loop, chosen.round, chosen.answers[0], chosen.updates)
        print(json.dumps(figures))
        return 0
    found: dict[str, dict[str, dict[str, float]]] = {}
    for answers in chosen.answers:
        for loop in LOOPS:
            arguments = ["--loop", loop, "--answers", answers, "--updates", str(chosen.updates)]
            figures = in_own_process(__file__, [*arguments, "--round", str(chosen.round)])
            found.setdefault(answers, {})[loop] = figures
            print(f"  {answers} {loop}: {figures['seconds']:.1f} s", file=sys.stderr)
    keys = ["seconds", "tokens", "tokens_per_second", "peak_mb"]
    rows = [[a, loop, *(f[k] for k in keys)] for a, x in found.items() for loop, f in x.items()]
    print(table(["answers", "loop", "s", "tokens", "tokens/s", "peak MB"], rows))
    judged = [
        (name, ratio := speed(found[a][mine]) / speed(found[a][peer]), wanted, ratio >= wanted)
        for name, a, mine, peer, wanted in TARGETS
        if a in found
    ]
    print(table(["target", "ratio", "wanted", "holds"], judged))
    chosen.out.write_text(json.dumps({"loops": found, "targets": judged}, indent=2) + "\n")
    return 0 if all(row[-1] for row in judged) or not chosen.check else 1


def speed(figures: dict[str, float]) -> float:
    """Return tokens a second."""
    return figures["tokens_per_second"]


if __name__ == "__main__":
    sys.exit(main())
