"""Ten times the rows through collect, filter and curriculum: time and peak memory.

    python -m benchmarks.growth [--rows 10000 100000] [--conversations] [--check]

With `--conversations` the rows are chats of two exchanges behind a system turn, and the filters are
those for text; else they are prompts with a label.

Each stage is a process of its own (`python -m tasks <stage>`) in a folder of its own; CPU seconds
and peak resident memory are what the system counts of it. Between collect and filter stand answers
made up on the spot.
"""

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.outcome import parser, tell
from cohobate.data.records import GENERATE, UNLABELLED, Response, Row, read_rows, write_rows

ROOT = Path(__file__).parents[1]
LABELS = ("animal", "plant", "person", "act", "feeling")
STAGES = ("collect", "filter", "curriculum")
SPLIT = {"seed": 0, "labelled": 1000, "dev": 500, "test": 2000}


def params(rows: int, conversations: bool) -> dict:
    """Return the sections that the stages read, as the default round has them."""
    filters = ["unfinished", "length", "inadmissible", "boilerplate", "repetition"]
    filters += ["exact_duplicates", "agreement", "near_duplicates"]
    collect = {
        "source": {"type": "files", "path": "rows.jsonl"},
        "split": SPLIT | {"unlabelled": rows},
    }
    if not conversations:
        collect["template"] = {"prompt": "Definition: {text}\nCategory:"}
    return {
        "task": {"verifier": {"type": "exact" if conversations else "label"}},
        "collect": collect,
        "filter": {"filters": [{"type": name} for name in filters]},
        "curriculum": {
            "difficulty": {"type": "teacher_loss"},
            "schedule": {"type": "easy_to_hard", "mode": "disjoint"},
        },
    }


def write_source(path: Path, rows: int, conversations: bool) -> None:
    """Write glosses of 8 to 25 words, one in twenty nearly an earlier one; or chats about them."""
    rng = random.Random(0)
    words = [f"{chr(97 + n % 26)}{n:x}" for n in range(20_000)]
    recent: list[list[str]] = []
    with path.open("w") as out:
        for _ in range(rows + sum(SPLIT.values())):
            if recent and rng.random() < 0.05:
                gloss = [*rng.choice(recent), rng.choice(words)]
            else:
                gloss = rng.choices(words, k=rng.randint(8, 25))
            recent = [*recent[-99:], gloss]
            text, answer = " ".join(gloss), rng.choice(LABELS)
            record = chat(text, answer) if conversations else {"text": text, "answer": answer}
            out.write(json.dumps(record) + "\n")


def chat(text: str, answer: str) -> dict:
    """Return a conversation of two exchanges behind a system turn."""
    turns = [
        ("system", "You sort definitions into categories."),
        ("user", f"What is this about? {text}"),
        ("assistant", f"It is about {text.split(maxsplit=1)[0]}."),
        ("user", "And its category?"),
        ("assistant", answer),
    ]
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def responses() -> Iterator[Response]:
    """Answer each prompt by chance."""
    rng = random.Random(1)
    for row in read_rows(UNLABELLED, Row):
        answer = {"answer": f" {rng.choice(LABELS)}", "origin": "teacher"}
        details = {"teacher": "main", "finish": "stop", "logprob": -round(rng.random(), 4)}
        yield Response(**(row.model_dump() | answer | details))


def measured(stage: str) -> tuple[float, float]:
    """Run a stage; return its CPU seconds and its peak memory in MB."""
    quiet = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "tasks", stage], env=os.environ | quiet, stderr=subprocess.DEVNULL
    )
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{stage} failed: run it by hand")
    return used.ru_utime + used.ru_stime, used.ru_maxrss / 1024


def run(rows: int, conversations: bool) -> dict[str, tuple[float, float]]:
    """Run the stages on so many rows, in a folder that is then removed."""
    from ruamel.yaml import YAML

    here = Path.cwd()
    with TemporaryDirectory() as place:
        os.chdir(place)
        try:
            YAML().dump(params(rows, conversations), Path("params.yaml"))
            write_source(Path("rows.jsonl"), rows, conversations)
            figures = {}
            for stage in STAGES:
                figures[stage] = measured(stage)
                if stage == "collect":
                    write_rows(GENERATE / "main/responses.jsonl", responses())
            return figures
        finally:
            os.chdir(here)


def main() -> int:
    options = parser(__doc__, "growth")
    options.add_argument("--rows", type=int, nargs=2, default=[10_000, 100_000])
    options.add_argument("--conversations", action="store_true", help="chats, not single prompts")
    chosen = options.parse_args()
    few, many = (run(rows, chosen.conversations) for rows in chosen.rows)
    lines, targets = [], {}
    for stage in STAGES:
        (few_s, few_mb), (many_s, many_mb) = few[stage], many[stage]
        lines.append(
            {
                "stage": stage,
                f"s, {chosen.rows[0]} rows": few_s,
                f"s, {chosen.rows[1]} rows": many_s,
                f"MB, {chosen.rows[0]} rows": few_mb,
                f"MB, {chosen.rows[1]} rows": many_mb,
            }
        )
        targets[f"{stage}: times the seconds"] = (many_s / few_s, "<=", 10.5)
        targets[f"{stage}: times the memory"] = (many_mb / few_mb, "<=", 1.1)
    return tell(chosen, lines, targets)


if __name__ == "__main__":
    sys.exit(main())
