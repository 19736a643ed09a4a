"""Each fast path of cohobate/fast against its plain path, in one process.

    python -m benchmarks.fast_paths [--rounds 5] [--precision float32]
    ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 MKL_ENABLE_INSTRUCTIONS=AVX2 \\
        python -m benchmarks.fast_paths --precision float32

Some layers of the packaged SmolLM2, one thread; rows of a chat template with a short question and a
short answer. Plain and fast alternate, CPU seconds of this process count, and the middle ratio
plain / fast of the rounds stands in the table: above 1 the fast path gains.
"""

import argparse
import random
import statistics
import sys
import time

import torch

from benchmarks.measuring import machine, table
from cohobate.fast import last_block, padding_free
from cohobate.fast.forward_pass import forward, padded
from cohobate.fast.packed_linear import pack, unpacked
from cohobate.fast.prefix_cache import PrefixCache
from cohobate.fast.sparse_embedding_gradient import sparse_gradient
from cohobate.models import checkpoints, hub
from cohobate.students.layer_cutting import keep_layers

ROWS, PREFIX, QUESTION, ANSWER = 16, 30, (6, 40), (2, 6)
"""Rows of a batch, tokens that all begin with, fewest and most of a question and of an answer."""


def batch(vocabulary):
    """Return rows (B, S), and the tokens before each token of their answers."""
    rng, rows, selected = random.Random(0), [], []
    prefix = [rng.randrange(vocabulary) for _ in range(PREFIX)]
    for _ in range(ROWS):
        question, answer = rng.randint(*QUESTION), rng.randint(*ANSWER)
        rows.append(prefix + [rng.randrange(vocabulary) for _ in range(question + answer)])
        selected.append(range(PREFIX + question - 1, len(rows[-1]) - 1))
    width = max(map(len, rows))
    ids_BS = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    places = [n * width + place for n, row in enumerate(selected) for place in row]
    return ids_BS, torch.tensor(places)


def paths(model, student, ids_BS, positions_N):
    """Yield the name of a path, and its plain and its fast way."""
    cache = PrefixCache(model, ids_BS[0, :PREFIX])
    forward(model, ids_BS, positions_N, prefix_cache=cache)  # models are probed once
    forward(student, ids_BS, positions_N)

    @torch.no_grad()
    def plain():
        padded(model, ids_BS, positions_N)

    @torch.no_grad()
    def packed():
        forward(model, ids_BS, positions_N)

    @torch.no_grad()
    def with_cache():
        forward(model, ids_BS, positions_N, prefix_cache=cache)

    @torch.no_grad()
    def under_mask():
        lengths = padding_free.row_lengths(positions_N, ids_BS).tolist()
        rows = padding_free.PackedBatch.of(ids_BS, lengths, padding_free.SEQUENCE["mask"])
        rows.forward(model, "mask", positions_N)

    @torch.no_grad()
    def few_at_last():
        with last_block.mlp_at(student, positions_N, ids_BS.numel()):
            padded(student, ids_BS, positions_N)

    @torch.no_grad()
    def all_at_last():
        padded(student, ids_BS, positions_N)

    def step():
        student.zero_grad()
        hidden_ND = padded(student, ids_BS, positions_N)
        student.get_output_embeddings()(hidden_ND).float().logsumexp(-1).sum().backward()

    def sparse_step():
        with sparse_gradient(student):
            step()

    yield "packed rows, row attention", plain, packed
    yield "packed rows under a mask", plain, under_mask
    yield "prefix cache, beside packed rows", packed, with_cache
    yield "last MLP at selected tokens, 5 blocks", all_at_last, few_at_last
    yield "sparse embedding gradient, a step of 5 blocks", step, sparse_step
    for count in (8, 64):
        ids = ids_BS.flatten()[:count, None]

        @torch.no_grad()
        def decoding_step(ids=ids):
            model(input_ids=ids, use_cache=False)

        def unpacked_step(run=decoding_step):
            with unpacked(model):
                run()

        yield f"packed linear layers, {count} rows of one token", unpacked_step, decoding_step


def ratio(plain, fast, rounds):
    """Return the middle ratio of CPU seconds, and the seconds of each."""
    seconds = []
    for turn in range(rounds + 1):  # the first is warm-up
        pair = []
        for run in (plain, fast):
            start = time.process_time()
            run()
            pair.append(time.process_time() - start)
        seconds += [pair] if turn else []
    plain_s, fast_s = (statistics.median(each) for each in zip(*seconds, strict=True))
    return statistics.median(a / b for a, b in seconds), plain_s, fast_s


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--layers", type=int, default=10)
    options.add_argument("--precision", default="float32", choices=["float32", "bfloat16"])
    chosen = options.parse_args()
    torch.set_num_threads(1)
    folder = hub.resolve(hub.PACKAGED)
    model, _ = checkpoints.load(folder, precision=chosen.precision)
    student, _ = checkpoints.load(folder, precision=chosen.precision)
    keep_layers(model, list(range(chosen.layers)))
    keep_layers(student, [0, 1, 2, 3, 4])
    pack(model, 1 << 40)
    ids_BS, positions_N = batch(model.config.vocab_size)
    lines = []
    for name, plain, fast in paths(model, student.train(), ids_BS, positions_N):
        gain, *seconds = ratio(plain, fast, chosen.rounds)
        lines.append([name, gain, *(1000 * s for s in seconds)])
    print(machine()["processor"], torch.backends.cpu.get_cpu_capability(), chosen.precision)
    print(table(["path", "times as fast", "plain ms", "fast ms"], lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
