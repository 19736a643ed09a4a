"""Batched decoding against `generate` of transformers on padded batches, greedy.

    python -m benchmarks.generate [--answers mixed] [--check]

The packaged teacher in float32. Both sides get the same prompts in the same order and two threads;
ours is batched as the stage does it by default, transformers gets the better of the batch sizes
that are tried. `mixed` answers are a word, a sentence or a page, as those to real prompts are:
there a finished row's slot is worth something, and the target is held to them. `short` ones are all
of one kind: a figure to look at. CPU seconds of this process count, of rounds that alternate
between the two the middle ratio; the clock's ratio stands beside it (idle cores only: what else
runs takes of it). All tokens must agree.
"""

import random
import sys
import time

import torch

from benchmarks.outcome import parser, tell
from cohobate.data.messages import Message
from cohobate.data.tokenized import prompt_ids
from cohobate.fast.frozen import load_frozen
from cohobate.generation.decoding import decode_batch, plan_batches, stop_ids
from cohobate.generation.requests import Batching, Decoding, Request
from cohobate.models import checkpoints, hub
from cohobate.thread_map import thread_map
from tasks.collect.source_records import SourceRecord
from tasks.collect.wordnet import WordNet

THREADS = 2
TARGET = 2.0
ASKED = {  # prompts, so many that each thread has some; most tokens of an answer; how it is asked
    "short": (512, 48, ["Answer in a few words."]),
    "mixed": (216, 256, ["Answer in one word.", "Answer in a sentence.", "Explain it at length."]),
}


def transformers_generate(model, tokenizer, ids, tokens, size):
    """Return the new ids of each prompt, decoded in padded batches in the order given."""
    torch.set_num_threads(THREADS)
    stop, answers = stop_ids(model, tokenizer), []
    for start in range(0, len(ids), size):
        batch = ids[start : start + size]
        padded = tokenizer.pad({"input_ids": batch}, padding_side="left", return_tensors="pt")
        with torch.inference_mode():
            out = model.generate(**padded, max_new_tokens=tokens, do_sample=False)
        for row in out[:, padded["input_ids"].shape[1] :].tolist():
            end = next((n + 1 for n, token in enumerate(row) if token in stop), len(row))
            answers.append(row[:end])
    return answers


def ours(model, tokenizer, ids, tokens):
    """Return the new ids of each prompt, decoded as `generate` does it."""
    how, stop = Decoding(max_tokens=tokens), stop_ids(model, tokenizer)
    batching = Batching()
    requests = [Request(row) for row in ids]
    answers: dict[int, list[int]] = {}
    for batch, written in thread_map(
        lambda batch: decode_batch(model, [requests[n] for n in batch], how, stop, batching),
        plan_batches(requests, how, batching),
        THREADS,
    ):
        answers |= dict(zip(batch, (w.ids for w in written), strict=True))
    return [answers[n] for n in range(len(ids))]


def seconds_of(work, *arguments):
    """Return CPU seconds, seconds by the clock, and what came out."""
    start = time.process_time(), time.perf_counter()
    result = work(*arguments)
    return time.process_time() - start[0], time.perf_counter() - start[1], result


def compare(kind, chosen):
    packaged = hub.resolve(hub.PACKAGED)
    model, tokenizer = checkpoints.load(packaged)
    frozen = load_frozen(packaged)[0]  # as the stage loads it
    prompts, tokens, styles = ASKED[kind]
    tokens = chosen.tokens or tokens
    ids = prompt_ids(tokenizer, questions(chosen.prompts or prompts, styles))
    whole = (tokenizer, ids, tokens)
    ours(frozen, tokenizer, ids[:8], 4)
    peers = {size: seconds_of(transformers_generate, model, *whole, size) for size in chosen.sizes}
    size = min(peers, key=lambda size: peers[size][0])
    rounds = [(peers[size], seconds_of(ours, frozen, *whole))]
    for _ in range(chosen.rounds - 1):
        peer = seconds_of(transformers_generate, model, *whole, size)
        rounds.append((peer, seconds_of(ours, frozen, *whole)))
    rounds.sort(key=lambda pair: pair[0][0] / pair[1][0])
    (peer_cpu, peer_wall, theirs), (own_cpu, own_wall, mine) = rounds[len(rounds) // 2]
    return {
        "answers": kind,
        "prompts": len(ids),
        "tokens": sum(map(len, mine)),
        "shortest": min(map(len, mine)),
        "longest": max(map(len, mine)),
        "identical": sum(a == b for a, b in zip(mine, theirs, strict=True)),
        "peer batch": size,
        "peer cpu s of batches": ", ".join(f"{n}: {peer[0]:.0f}" for n, peer in peers.items()),
        "peer cpu s": peer_cpu,
        "ours cpu s": own_cpu,
        "cpu ratio": peer_cpu / own_cpu,
        "clock ratio": peer_wall / own_wall,
    }


def questions(count, styles):
    """Return questions about glosses of WordNet, in an order of their own."""
    records = WordNet(type="wordnet").source_records()
    texts = [example.columns["text"] for example in records if isinstance(example, SourceRecord)]
    drawn = random.Random(0).sample(texts, count)
    contents = [f"What is this? {text}. {styles[n % len(styles)]}" for n, text in enumerate(drawn)]
    return [(Message(role="user", content=content),) for content in contents]


def main() -> int:
    options = parser(__doc__, "generate")
    options.add_argument("--prompts", type=int, help="another number of prompts")
    options.add_argument("--answers", choices=list(ASKED), nargs="+", default=list(ASKED))
    options.add_argument("--tokens", type=int, help="another limit of an answer's length")
    options.add_argument("--rounds", type=int, default=1)
    options.add_argument("--sizes", type=int, nargs="+", default=[16, 48, 96])
    chosen = options.parse_args()
    lines, targets = [], {}
    for kind in chosen.answers:
        line = compare(kind, chosen)
        lines.append(line)
        targets[f"{kind}: same tokens"] = (line["identical"] / line["prompts"], ">=", 1.0)
        if kind == "mixed":
            targets["times as fast"] = (line["cpu ratio"], ">=", TARGET)
    return tell(chosen, lines, targets)


if __name__ == "__main__":
    sys.exit(main())
