"""Raw text: packed and learnt at every token, beside TRL's packed SFTTrainer; capture's memory.

    python -m benchmarks.raw_text [--megabytes 5] [--updates 20] [--repeat 3] [--check]

The text is what packages ship: the glosses of WordNet, a document for every thousand of them, and
the modules, documentation and licences of site-packages, a document a file. Both trainers learn the
same rows of at most 3,000 characters, 8 rows an update, with the packaged model cut to five layers,
every weight trained, one thread, each in a process of its own, in turns; the median counts. TRL
packs the rows into sequences of as many tokens as an update of ours has. Capture runs over 1 MB and
over all of the text, with a random teacher of the packaged model's vocabulary and a width of 64:
its peak memory must not grow with the text.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.measuring import at_rest, in_own_process, machine, status
from benchmarks.outcome import parser, tell
from tasks.__main__ import KEPT_SHAPES

CHARACTERS, BATCH, LAYERS = 3000, 8, [0, 1, 2, 3, 29]
SUFFIXES = (".py", ".md", ".rst", ".txt")


def documents(size: int) -> Iterator[str]:
    """Yield documents of together about so many bytes, half glosses, half files of packages."""
    from tasks.collect.source_records import SourceRecord
    from tasks.collect.wordnet import WordNet

    left = size // 2
    records = WordNet(type="wordnet").source_records()
    glosses = (str(r.columns["text"]) for r in records if isinstance(r, SourceRecord))
    while some := list(islice(glosses, 1000)):
        text = "\n".join(some)
        yield text
        left -= len(text.encode())
        if left <= 0:
            break
    left += size // 2
    import numpy

    # a folder whose files are the same on every machine with the same lock file
    folder = Path(numpy.__file__).parent.parent
    for path in sorted(folder.rglob("*")):
        if path.suffix not in SUFFIXES or not path.is_file():
            continue
        text = path.read_text(encoding="utf-8", errors="ignore")
        if not 1000 < len(text) < 200_000:
            continue
        yield text
        left -= len(text.encode())
        if left <= 0:
            return


def rows_of(size: int) -> list[Any]:
    """Return the rows of so many bytes of text, as `collect.text` makes them."""
    from tasks.collect.raw_text import RawText
    from tasks.collect.source_records import SourceRecord

    cut = RawText(characters=CHARACTERS)
    return [
        row
        for number, text in enumerate(documents(size), start=1)
        for _, row in cut.rows(SourceRecord(number, {"text": text}))
    ]


def student(attention: str = "sdpa") -> tuple[Any, Any]:
    """Return some layers of the packaged model, and its tokenizer."""
    from cohobate.models import checkpoints, hub
    from cohobate.students.layer_cutting import keep_layers

    model, tokenizer = checkpoints.load(hub.resolve(hub.PACKAGED), attention=attention)  # type: ignore[arg-type]
    keep_layers(model, LAYERS)
    return model, tokenizer


def learn_ours(rows: Sequence[Any], updates: int) -> tuple[float, float]:
    """Return the seconds and tokens of our trainer."""
    from cohobate.data.examples import examples_of
    from cohobate.data.tokenized import encode_all
    from cohobate.losses.divergences import Hard
    from cohobate.training.hyperparameters import Freeze, Hyperparameters
    from cohobate.training.trainer import fit

    model, tokenizer = student()
    examples = examples_of(rows, encode_all(tokenizer, rows))
    chosen = Hyperparameters(
        updates=updates, batch_size=BATCH, threads=1, freeze=Freeze(embeddings=False),
        max_tokens=4096,
    )  # fmt: skip
    start = time.process_time()
    fit(model, examples, [Hard()], chosen, seed=1, label="ours", vocabulary=len(tokenizer))
    return time.process_time() - start, float(sum(len(row.ids) for row in examples))


def learn_trls(rows: Sequence[Any], updates: int) -> tuple[float, float]:
    """Return the seconds and tokens of TRL's SFTTrainer over packed text."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    from cohobate.data.tokenized import encode_all

    model, tokenizer = student("eager")
    tokens = sum(len(row.ids) for row in encode_all(tokenizer, rows))
    with tempfile.TemporaryDirectory() as scratch:
        options = SFTConfig(
            output_dir=scratch, per_device_train_batch_size=BATCH, max_steps=updates,
            use_cpu=True, bf16=machine()["number_format"] == "bfloat16",
            gradient_checkpointing=False, report_to="none", save_strategy="no",
            logging_strategy="no", disable_tqdm=True, packing=True,
            max_length=tokens // (updates * BATCH),
        )  # fmt: skip
        data = Dataset.from_list([{"text": row.answer} for row in rows])
        trainer = SFTTrainer(model, args=options, train_dataset=data, processing_class=tokenizer)
        lengths = [len(ids) for ids in trainer.train_dataset["input_ids"]]
        start = time.process_time()
        trainer.train()
        return time.process_time() - start, updates * BATCH * sum(lengths) / len(lengths)


def learnt(side: str, updates: int) -> dict[str, float]:
    """Run one trainer in this process."""
    import torch

    torch.set_num_threads(1)
    rows = rows_of(4 * CHARACTERS * BATCH * updates)
    # long rows alone, from all over the text: an update of each side has as many tokens
    long = [row for row in rows if len(row.answer) > CHARACTERS // 2]
    chosen = long[:: max(1, len(long) // (BATCH * updates))][: BATCH * updates]
    at_rest()
    seconds, tokens = (learn_ours if side == "ours" else learn_trls)(chosen, updates)
    return {"tokens_per_second": tokens / seconds, "peak_mb": status("VmHWM")}


def narrow_teacher() -> tuple[Any, Any]:
    """Return a random model that reads the packaged model's tokens, and its tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from cohobate.models import checkpoints, hub

    tokenizer = checkpoints.load_tokenizer(hub.resolve(hub.PACKAGED))
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=1,
        num_attention_heads=4, tie_word_embeddings=True, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval(), tokenizer


def captured(size: int) -> dict[str, float]:
    """Capture so many bytes of text in this process."""
    from cohobate.data.records import Response, write_rows
    from cohobate.models import checkpoints
    from cohobate.teachers.signal_store.capture import capture_signals
    from cohobate.teachers.signal_store.settings import CaptureParams

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        checkpoints.save(*narrow_teacher(), folder / "teacher", {})
        rows = (Response(**r.model_dump(), teacher="main", finish="stop") for r in rows_of(size))
        path = folder / "rows.jsonl"
        unique = {row.id: row for row in rows}
        write_rows(path, unique.values())
        del unique
        settings = CaptureParams(threads=1, shard_rows=128)
        at_rest()
        start = time.process_time()
        figures = capture_signals(
            folder / "teacher", path, folder / "store", settings, label="capture"
        )
        seconds = time.process_time() - start
        return {
            "tokens_per_second": figures["tokens"] / seconds,
            "tokens": figures["tokens"],
            "peak_mb": status("VmHWM"),
        }


def main() -> int:
    """Print speed and memory, and write the JSON."""
    options = parser(__doc__, "raw_text")
    options.add_argument("--megabytes", type=float, default=5.0)
    options.add_argument("--updates", type=int, default=20)
    options.add_argument("--repeat", type=int, default=3)
    options.add_argument("--learn", choices=["ours", "trl"], help=argparse.SUPPRESS)
    options.add_argument("--capture", type=float, help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if chosen.learn:
        print(json.dumps(learnt(chosen.learn, chosen.updates)))
        return 0
    if chosen.capture:
        # as tasks/__main__.py sets it for a stage
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(KEPT_SHAPES))
        print(json.dumps(captured(int(chosen.capture * 1e6))))
        return 0
    runs: dict[str, list[dict[str, float]]] = {"ours": [], "trl": []}
    for side in [*runs] * chosen.repeat:
        arguments = ["--learn", side, "--updates", str(chosen.updates)]
        runs[side].append(in_own_process(__file__, arguments))
        print(f"  {side}: {runs[side][-1]}", file=sys.stderr, flush=True)
    speeds = {side: median(run["tokens_per_second"] for run in some) for side, some in runs.items()}
    lines = [
        {"what": side, "tokens/s": speeds[side], "peak MB": max(r["peak_mb"] for r in some)}
        for side, some in runs.items()
    ]
    stores = {
        size: in_own_process(__file__, ["--capture", str(size)]) for size in (1.0, chosen.megabytes)
    }
    lines += [
        {
            "what": f"capture, {size:g} MB",
            "tokens/s": store["tokens_per_second"],
            "peak MB": store["peak_mb"],
        }
        for size, store in stores.items()
    ]
    growth = stores[chosen.megabytes]["peak_mb"] / stores[1.0]["peak_mb"]
    targets = {
        "learning, against TRL packed": (speeds["ours"] / speeds["trl"], ">=", 1.0),
        "capture: times the memory": (growth, "<=", 1.1),
    }
    return tell(chosen, lines, targets)


if __name__ == "__main__":
    sys.exit(main())
