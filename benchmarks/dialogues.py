"""Dialogues made with a tuned teacher, for `collect.learn`: all turns against the last one.

    python -m benchmarks.dialogues models/adapt/main dialogues.jsonl --rows 3000
    cohobate run --recipe benchmarks/dialogues.yaml --set collect.learn=last
    cohobate run --recipe benchmarks/dialogues.yaml --set collect.learn=all

Each dialogue is some definitions of WordNet, one a turn. The assistant's earlier turns are the
teacher's answers; the last is the right answer. `--help` has more.
"""

import argparse
import json
import random
from pathlib import Path

from cohobate.fast.frozen import load_frozen
from cohobate.generation.decoding import generate_answers
from cohobate.generation.requests import Decoding
from cohobate.models.number_formats import resolve
from tasks.collect.source_records import SourceRecord
from tasks.collect.wordnet import WordNet


def main() -> None:
    """Write the dialogues."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("teacher", type=Path, help="a checkpoint, such as models/adapt/main")
    parser.add_argument("out", type=Path)
    parser.add_argument("--rows", type=int, default=3000)
    parser.add_argument("--turns", type=int, default=4)
    arguments = parser.parse_args()
    source = WordNet(type="wordnet")
    records = [one for one in source.source_records() if isinstance(one, SourceRecord)]
    random.Random(0).shuffle(records)  # neighbours of the file are of one category
    chosen = records[: arguments.rows * arguments.turns]
    prompts = [f"Definition: {one.columns['text']}\nCategory:" for one in chosen]
    model, tokenizer = load_frozen(arguments.teacher, precision=resolve("auto", "cpu"))
    answers = [""] * len(prompts)
    decoding = Decoding(max_tokens=3)
    for n, answer in generate_answers(model, tokenizer, prompts, decoding, threads=2):
        answers[n] = answer.text.strip()
    with arguments.out.open("w") as out:
        for start in range(0, len(prompts), arguments.turns):
            group = range(start, start + arguments.turns)
            # the last turn has the right answer: it is what a verifier scores
            texts = [*(answers[n] for n in group[:-1]), str(chosen[group[-1]].columns["answer"])]
            messages = []
            for n, text in zip(group, texts, strict=True):
                messages.append({"role": "user", "content": prompts[n]})
                messages.append({"role": "assistant", "content": text})
            out.write(json.dumps({"messages": messages, "answer": texts[-1]}) + "\n")


if __name__ == "__main__":
    main()
