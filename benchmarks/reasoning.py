"""Problems of reasoning-gym for a round on reasoning: with worked steps, or with answers alone.

    python -m benchmarks.reasoning steps steps.jsonl --rows 1500
    python -m benchmarks.reasoning problems problems.jsonl --rows 6000 --without steps.jsonl

A teacher is tuned on the steps (`benchmarks/reasoning-teacher.yaml`). Its own reasoning on the
problems, accepted where its answer is the known one, teaches the student
(`benchmarks/reasoning.yaml`), as DeepSeek-AI 2025, "DeepSeek-R1", section 2.4, distils.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

from tasks.collect.reasoning import worked_steps


def main() -> None:
    """Write the problems."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=["steps", "problems"])
    parser.add_argument("out", type=Path)
    parser.add_argument("--rows", type=int, default=1500)
    parser.add_argument("--without", type=Path, help="a file whose questions are left out")
    arguments = parser.parse_args()
    used = _questions(arguments.without) if arguments.without else set()
    with arguments.out.open("w") as out:
        for row in problems(arguments.rows, used, with_steps=arguments.kind == "steps"):
            out.write(json.dumps(row) + "\n")


def problems(rows: int, used: set[str], *, with_steps: bool) -> Iterator[dict[str, object]]:
    """Yield conversations: a sum of three or four terms, and its answer, each sum once."""
    from reasoning_gym import create_dataset

    sizes = {"min_terms": 3, "max_terms": 4, "min_digits": 1, "max_digits": 2}
    entries = create_dataset("chain_sum", size=8 * rows, seed=1 + len(used), **sizes)
    seen = set(used)
    for entry in entries:
        question = entry["question"].partition(":")[2].strip()
        if question in seen:
            continue
        seen.add(question)
        steps = {"reasoning_content": worked_steps(question)} if with_steps else {}
        yield {
            "messages": [
                {"role": "user", "content": question},
                {"role": "assistant", "content": entry["answer"]} | steps,
            ],
            "answer": entry["answer"],
        }
        if len(seen) == rows + len(used):
            return
    raise SystemExit(f"reasoning-gym has no {rows} different problems of this kind")


def _questions(path: Path) -> set[str]:
    with path.open() as lines:
        return {json.loads(line)["messages"][0]["content"] for line in lines}


if __name__ == "__main__":
    main()
