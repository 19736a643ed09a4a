"""The student of a finished round as the draft of its teacher, in speculative decoding.

    python -m benchmarks.draft [PROJECT] [--rows 16] [--new-tokens 128] [--tokens 3 5 8 12]

PROJECT is the folder of a round (default: here) whose teacher and student are causal models of one
vocabulary. Prompts of its test rows are answered by the teacher alone and by the pair, in turns, in
this machine's number format and in float32. Answers of a few tokens leave nothing to gain: the
default task is no subject for this.
"""

import argparse
import sys
from pathlib import Path

from benchmarks.measuring import machine
from benchmarks.outcome import parser, tell
from cohobate.data.records import Row, read_rows
from cohobate.evaluation.drafting import Drafting
from cohobate.evaluation.model_under_test import open_model
from cohobate.models.number_formats import Precision
from flows.serve_cli import folder_of

TARGET = 1.5


def line(project: Path, chosen: argparse.Namespace, precision: Precision, tokens: int):
    rows = list(read_rows(project / "data/collect/test.jsonl", Row))[: chosen.rows]
    teacher, student = (
        open_model(folder_of(name, project), precision) for name in ("teacher", "student")
    )
    if teacher.tokenizer.get_vocab() != student.tokenizer.get_vocab():
        raise SystemExit("teacher and student have not one vocabulary")
    prompts = teacher.prompt_ids([row.full_prompt for row in rows])
    draft = Drafting(tokens=tokens, new_tokens=chosen.new_tokens, rows=chosen.rows)
    figures = draft.measure(teacher.model, student.model, teacher.tokenizer, prompts)
    speed = figures.pop("tokens_per_second")
    return {
        "precision": str(teacher.model.dtype).removeprefix("torch."),
        "drafted at once": tokens,
        "teacher tok/s": speed["teacher"],
        "pair tok/s": speed["pair"],
        "times": figures["speedup"],
        "accepted": figures["acceptance"],
        "tokens a pass": figures["tokens_a_pass"],
        "same answers": figures["same_answers"],
        "answer tokens": figures["answer_tokens"],
    }


def main() -> int:
    options = parser(__doc__, "draft")
    options.add_argument("project", nargs="?", type=Path, default=Path())
    options.add_argument("--rows", type=int, default=16)
    options.add_argument("--new-tokens", type=int, default=128)
    options.add_argument("--tokens", type=int, nargs="+", default=[3, 5, 8, 12])
    chosen = options.parse_args()
    native: Precision = "auto"
    lines = [line(chosen.project, chosen, native, tokens) for tokens in chosen.tokens]
    if machine()["number_format"] != "float32":
        lines += [line(chosen.project, chosen, "float32", tokens) for tokens in chosen.tokens]
    best = max(one["times"] or 0.0 for one in lines)
    return tell(chosen, lines, {"times as many tokens a second": (best, ">=", TARGET)})


if __name__ == "__main__":
    sys.exit(main())
