"""The filter `near_duplicates` against datasketch from text to verdict.

    python -m benchmarks.duplicates [--rows 100000] [--check]

Both get the same prompts, cut them into the same word pairs, and compare the candidates exactly;
datasketch sketches in bulk and asks its LSH index row by row, as its documentation shows. Planted:
a tenth of the prompts are earlier ones with a word or two changed. CPU seconds of this process;
tokenizing into words costs both the same and is reported separately.
"""

import random
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy  # noqa: F401  both stand on it: neither pays for its import

from benchmarks.outcome import parser, tell
from cohobate.data.contamination import Contamination, bigrams_of
from cohobate.data.records import Response, row_id
from cohobate.data.text_comparison import words_of
from cohobate.scoring.verifiers import Task
from tasks.filter.base_filter import Context, Drop
from tasks.filter.duplicates import NearDuplicateFilter
from tasks.filter.minhash import bands

SIMILARITY, PERMUTATIONS = 0.8, 128


def documents(rows: int, seed: int = 0) -> list[str]:
    """Draw prompts of 30 to 60 words; one in ten is an earlier one, a word or two changed."""
    rng = random.Random(seed)
    words = [f"{chr(97 + n % 26)}{n:x}" for n in range(30_000)]
    texts: list[str] = []
    for _ in range(rows):
        if texts and rng.random() < 0.1:
            text_words = texts[rng.randrange(len(texts))].split()
            for _ in range(rng.randint(1, 2)):
                text_words[rng.randrange(len(text_words))] = rng.choice(words)
        else:
            text_words = rng.choices(words, k=rng.randint(30, 60))
        texts.append(" ".join(text_words))
    return texts


def exact(texts: list[str]) -> set[int]:
    """Return the rows that are near-duplicates of one before that is none, by an inverted index."""
    by_pair: dict[str, list[int]] = {}
    sizes: dict[int, int] = {}
    twins = set()
    for place, text in enumerate(texts):
        pairs = bigrams_of(words_of(text))
        shared: dict[int, int] = {}
        for pair in pairs:
            for other in by_pair.get(pair, ()):
                shared[other] = shared.get(other, 0) + 1
        if any(n >= SIMILARITY * (len(pairs) + sizes[o] - n) for o, n in shared.items()):
            twins.add(place)
            continue
        sizes[place] = len(pairs)
        for pair in pairs:
            by_pair.setdefault(pair, []).append(place)
    return twins


def ours(texts: list[str]) -> set[int]:
    """Run the filter as the stage does."""
    context = Context(Task(verifier={"type": "exact"}), {}, Contamination([]))
    options = {"id": "", "teacher": "main", "finish": "stop", "answer": "a"}
    rows = [Response(**(options | {"id": row_id(text), "prompt": text})) for text in texts]
    spelt = {"similarity": SIMILARITY, "permutations": PERMUTATIONS}
    start = time.process_time()
    verdicts = NearDuplicateFilter(type="near_duplicates", **spelt).verdicts(rows, context)
    dropped = {n for n, verdict in enumerate(verdicts) if isinstance(verdict, Drop)}
    SECONDS["ours"] = time.process_time() - start
    return dropped


def datasketch(texts: list[str], tuned: bool) -> set[int]:
    """Do the same with datasketch; tuned, sketch and bands are ours, so that it finds as much."""
    number, width = bands(SIMILARITY, PERMUTATIONS)
    length = number * width if tuned else PERMUTATIONS
    from datasketch import MinHash, MinHashLSH

    start = time.process_time()
    pairs = [bigrams_of(words_of(text)) for text in texts]
    encoded = ([pair.encode() for pair in own] for own in pairs)
    sketches = MinHash.generator(encoded, num_perm=length)
    cut = {"params": (number, width)} if tuned else {}
    index = MinHashLSH(threshold=SIMILARITY, num_perm=length, **cut)
    duplicates = set()
    for place, sketch in enumerate(sketches):
        own = pairs[place]
        near = (pairs[other] for other in index.query(sketch))
        if any(len(own & other) >= SIMILARITY * len(own | other) for other in near):
            duplicates.add(place)
        else:
            index.insert(place, sketch, check_duplication=False)
    SECONDS["datasketch, our recall" if tuned else "datasketch"] = time.process_time() - start
    return duplicates


SECONDS: dict[str, float] = {}


def main() -> int:
    options = parser(__doc__, "duplicates")
    options.add_argument("--rows", type=int, default=100_000)
    chosen = options.parse_args()
    texts = documents(chosen.rows)
    truth = exact(texts)
    start = time.process_time()
    for text in texts:
        bigrams_of(words_of(text))
    cutting = time.process_time() - start
    lines: list[dict[str, Any]] = []
    runs: dict[str, Callable[..., Any]] = {
        "ours": ours,
        "datasketch": partial(datasketch, tuned=False),
        "datasketch, our recall": partial(datasketch, tuned=True),
    }
    for name, run in runs.items():
        duplicates = run(texts)
        lines.append(
            {
                "filter": name,
                "rows": len(texts),
                "cpu seconds": SECONDS[name],
                "without cutting": SECONDS[name] - cutting,
                "dropped": len(duplicates),
                "recall": len(duplicates & truth) / len(truth),
                "precision": len(duplicates & truth) / max(len(duplicates), 1),
            }
        )
    mine, peer = SECONDS["ours"], SECONDS["datasketch, our recall"]
    targets = {
        "times as fast, words cut": ((peer - cutting) / (mine - cutting), ">=", 5.0),
        "times as fast, from text": (peer / mine, ">=", 5.0),
        "recall above datasketch's": (lines[0]["recall"] - lines[2]["recall"], ">=", -0.005),
    }
    return tell(chosen, lines, targets)


if __name__ == "__main__":
    sys.exit(main())
