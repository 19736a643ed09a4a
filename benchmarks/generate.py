"""P6: batched decoding here against `generate` of transformers on padded batches (greedy, float32).

    python benchmarks/generate.py                    the packaged teacher and a model of 4 layers
    python benchmarks/generate.py --check            exit code 1 unless all tokens agree, and 2x

Both get the same prompts in the same order and two threads; transformers gets the better of the
batch sizes that are tried. Rounds alternate between the two, and the middle ratio counts.
"""

import argparse
import json
import random
import statistics
import sys
import time
from pathlib import Path

import torch

from tasks.collect.examples import Example
from tasks.collect.wordnet import WordNet
from tasks.models import checkpoints, sources
from tasks.models.decoding import Batching, Decoding, Request, decode, plan, stop_ids
from tasks.models.side_by_side import side_by_side
from tasks.rows.records import Message
from tasks.rows.text import prompt_ids
from tasks.shape.layers import keep_layers

THREADS = 2
ROWS = 16  # at once: 64 prompts are few, and each thread should have some
TARGET = 2.0


def transformers_generate(model, tokenizer, ids, tokens, size):
    """Return the new ids of each prompt, decoded in padded batches in the order given."""
    torch.set_num_threads(THREADS)
    stop, found = stop_ids(model, tokenizer), []
    for start in range(0, len(ids), size):
        batch = ids[start : start + size]
        padded = tokenizer.pad({"input_ids": batch}, padding_side="left", return_tensors="pt")
        with torch.inference_mode():
            out = model.generate(**padded, max_new_tokens=tokens, do_sample=False)
        for row in out[:, padded["input_ids"].shape[1] :].tolist():
            end = next((n + 1 for n, token in enumerate(row) if token in stop), len(row))
            found.append(row[:end])
    return found


def ours(model, tokenizer, ids, tokens):
    """Return the new ids of each prompt, decoded as `generate` does it."""
    how, stop = Decoding(max_tokens=tokens), stop_ids(model, tokenizer)
    batching = Batching(rows=ROWS)
    requests = [Request(row) for row in ids]
    found = {}
    for batch, written in side_by_side(
        lambda batch: decode(model, [requests[n] for n in batch], how, stop, batching),
        plan(requests, how, batching),
        THREADS,
    ):
        found |= dict(zip(batch, (w.ids for w in written), strict=True))
    return [found[n] for n in range(len(ids))]


def seconds_of(work, *arguments):
    start = time.perf_counter()
    result = work(*arguments)
    return time.perf_counter() - start, result


def compare(name, model, tokenizer, prompts, given):
    ids = prompt_ids(tokenizer, prompts)
    whole = (model, tokenizer, ids, given.tokens)
    warm = (model, tokenizer, ids[:8], 4)
    tried = {size: seconds_of(transformers_generate, *whole, size)[0] for size in given.sizes}
    size = min(tried, key=tried.get)
    ours(*warm)
    pairs, agree = [], 0
    for _ in range(given.rounds):
        ours_seconds, ours_ids = seconds_of(ours, *whole)
        peer_seconds, peer_ids = seconds_of(transformers_generate, *whole, size)
        pairs.append((peer_seconds, ours_seconds))
        agree = sum(a == b for a, b in zip(ours_ids, peer_ids, strict=True))
    ratios = sorted(peer / own for peer, own in pairs)
    written = sum(map(len, ours_ids))
    return {
        "model": name, "prompts": len(ids), "tokens": written, "identical": agree,
        "peer batch": size, "peer s": round(statistics.median(p for p, _ in pairs), 2),
        "ours s": round(statistics.median(o for _, o in pairs), 2),
        "ratio": round(ratios[len(ratios) // 2], 2),
    }  # fmt: skip


def questions(count):
    """Return questions about glosses of WordNet, in an order of their own."""
    found = WordNet(type="wordnet", path="tasks/collect/wordnet.py").examples()
    texts = [example.columns["text"] for example in found if isinstance(example, Example)]
    drawn = random.Random(0).sample(texts, count)
    asked = (f"What is this? {text}. Answer in a few words." for text in drawn)
    return [(Message(role="user", content=content),) for content in asked]


def small(model):
    keep_layers(model, [0, 1, 2, 29])
    return model


def main():
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--prompts", type=int, default=64)
    options.add_argument("--tokens", type=int, default=48)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--sizes", type=int, nargs="+", default=[16, 64])
    options.add_argument("--only", choices=["teacher", "small"])
    options.add_argument("--out", type=Path, default=Path("benchmarks/generate.json"))
    options.add_argument("--check", action="store_true")
    given = options.parse_args()
    prompts = questions(given.prompts)
    rows = []
    for name in ("teacher", "small"):
        if given.only in (None, name):
            model, tokenizer = checkpoints.load(sources.resolve(sources.PACKAGED))
            model = small(model) if name == "small" else model
            rows.append(compare(name, model, tokenizer, prompts, given))
            print("  ".join(f"{k}: {v}" for k, v in rows[-1].items()), flush=True)
    given.out.write_text(json.dumps({"target": TARGET, "rows": rows}, indent=2) + "\n")
    met = all(row["ratio"] >= TARGET and row["identical"] == row["prompts"] for row in rows)
    sys.exit(0 if met or not given.check else 1)


if __name__ == "__main__":
    main()
