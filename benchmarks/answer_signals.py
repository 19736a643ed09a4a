"""Signals that come with the answers against a pass of the teacher over the same rows.

    python -m benchmarks.answer_signals [--round FOLDER] [--rows N] [--check]

Runs the stages `generate` and `capture` as a round does, in a scratch folder, once with
`generate.signals: off` and once with `auto`. Teacher, prompts and kept rows are those of a round's
folder (models/adapt/main, data/collect, data/filter/kept.jsonl); without one the packaged teacher
answers questions in a few words, and all finished answers are kept. CPU seconds count: other work
on the machine takes of the clock. The numbers of both are compared, in nats a token, beside those
of two ordinary captures with another batch size.
"""

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.generate import questions
from benchmarks.outcome import parser, tell
from cohobate.backends.settings import GenerateParams
from cohobate.data.records import (
    ADAPT,
    ANSWER_SIGNALS,
    CAPTURE,
    FILTER,
    GENERATE,
    LABELLED,
    UNLABELLED,
    Response,
    Row,
    read_rows,
    row_id,
    write_rows,
)
from cohobate.generation.requests import Decoding
from cohobate.models import checkpoints, hub
from cohobate.params import PARAMS, load, validated
from cohobate.teachers.signal_store.settings import CaptureParams
from cohobate.teachers.signal_store.store import SignalStore
from cohobate.teachers.teacher import Teacher
from tasks.capture.stage import run as run_capture
from tasks.generate.stage import run as run_generate

TARGET = 0.05
_TEACHER = Teacher(model="main")
_KEPT = FILTER / "kept.jsonl"
_OTHER_BATCH = 512
_PART = 2048  # tokens whose ids are compared at once


def timed(work: Callable[[], Any]) -> dict[str, float]:
    """Return CPU seconds and seconds by the clock."""
    cpu, clock = time.process_time(), time.perf_counter()
    work()
    return {"cpu s": time.process_time() - cpu, "clock s": time.perf_counter() - clock}


def bytes_below(*folders: Path) -> int:
    """Return the bytes of all files below some folders."""
    return sum(f.stat().st_size for folder in folders for f in folder.rglob("*") if f.is_file())


def lay_out(root: Path | None, rows: int | None) -> tuple[GenerateParams, CaptureParams]:
    """Put teacher and prompts into the current folder; return the settings of both stages."""
    if root:
        document = load(root / PARAMS)
        for path in (ADAPT / "main", LABELLED.parent):
            shutil.copytree(root / path, path)
        prompts = list(read_rows(UNLABELLED, Row))[:rows]
        write_rows(UNLABELLED, prompts)
        generate = validated(GenerateParams, document["generate"], "generate")
        return generate, validated(CaptureParams, document["capture"], "capture")
    checkpoints.copy(hub.resolve(hub.PACKAGED), ADAPT / "main", {"from": "a benchmark"})
    LABELLED.parent.mkdir(parents=True)
    LABELLED.write_text("")
    prompts = [
        Row(id=row_id(prompt), prompt=prompt)
        for prompt in questions(rows or 512, ["Answer in a few words."])
    ]
    write_rows(UNLABELLED, prompts)
    return GenerateParams(decoding=Decoding(max_tokens=48)), CaptureParams()


def keep(root: Path | None) -> None:
    """Write the kept rows: the round's, or the finished answers."""
    kept = {row.id for row in read_rows(root / _KEPT, Response)} if root else None
    rows = read_rows(GENERATE / "main" / "responses.jsonl", Response)
    write_rows(_KEPT, [r for r in rows if r.finish == "stop" and (kept is None or r.id in kept)])


def nats(one: SignalStore, other: SignalStore) -> dict[str, float]:
    """Return the KL of two stores of the same rows, over the ids that both have and one bucket."""
    import torch

    total, largest, tokens = 0.0, 0.0, 0
    for start in range(0, one.origin.rows, 256):  # both indexes are sorted by key
        rows = range(start, min(start + 256, one.origin.rows))
        a, b = one.read(rows), other.read(rows)
        for part in range(0, len(a["ids_NK"]), _PART):
            cut = slice(part, part + _PART)
            same_NKK = a["ids_NK"][cut, :, None] == b["ids_NK"][cut, None, :]
            p_NK = a["logp_NK"][cut].double().exp() * same_NKK.any(2)
            q_NK = (same_NKK * b["logp_NK"][cut].double().exp()[:, None, :]).sum(2)
            both = p_NK > 0
            ratio = torch.where(both, p_NK / q_NK.where(both, torch.ones_like(q_NK)), 1).log()
            p_N, q_N = (1 - x.sum(1).clamp(max=1 - 1e-9) for x in (p_NK, q_NK))
            kl_N = (p_NK * ratio).sum(1) + p_N * (p_N / q_N).log()
            total, tokens = total + float(kl_N.sum()), tokens + len(kl_N)
            largest = max(largest, float(kl_N.max()))
    return {"mean nats": total / max(tokens, 1), "most nats": largest}


def captured(name: str, capture: CaptureParams) -> dict[str, float]:
    """Run the stage and move its store aside; return what it took."""
    figures = timed(lambda: run_capture("main", _TEACHER, capture))
    shutil.move(CAPTURE / "main", name)
    return figures


def compare(root: Path | None, rows: int | None) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return the lines of the table, and the targets."""
    generate, capture = lay_out(root, rows)
    off = generate.model_copy(update={"signals": "off"})
    run_generate("main", off.model_copy(update={"rows": 4}), None, _TEACHER, capture)  # warm
    shutil.rmtree(".cohobate")
    lines: list[dict[str, Any]] = []

    def add(what: str, took: dict[str, float], size: int, between: dict[str, float]) -> None:
        lines.append({"work": what, **took, "bytes": size, **between})

    none = {"mean nats": 0.0, "most nats": 0.0}
    for what, params in (("generate, no signals", off), ("generate, with signals", generate)):
        shutil.rmtree(".cohobate", ignore_errors=True)

        def run(params: GenerateParams = params) -> None:
            run_generate("main", params, None, _TEACHER, capture)

        add(what, timed(run), bytes_below(Path(".cohobate"), GENERATE, ANSWER_SIGNALS), none)
    keep(root)
    with_answers = captured("with-answers", capture)
    shutil.rmtree(ANSWER_SIGNALS)
    by_pass = captured("by-pass", capture)
    captured("other-batch", capture.model_copy(update={"batch_tokens": _OTHER_BATCH}))
    stores = {name: SignalStore(Path(name)) for name in ("by-pass", "with-answers", "other-batch")}
    size = bytes_below(Path("by-pass"))
    add("capture, a pass", by_pass, size, none)
    apart = nats(stores["by-pass"], stores["with-answers"])
    add("capture, with the answers", with_answers, bytes_below(Path("with-answers")), apart)
    batches = nats(stores["by-pass"], stores["other-batch"])
    add("two batch sizes of a pass", {"cpu s": 0.0, "clock s": 0.0}, size, batches)
    targets = {
        "capture, as a share of a pass": (with_answers["cpu s"] / by_pass["cpu s"], "<=", TARGET),
        "generate and capture, as a share of before": (
            (lines[1]["cpu s"] + with_answers["cpu s"]) / (lines[0]["cpu s"] + by_pass["cpu s"]),
            "<=",
            1.0,
        ),
    }
    return lines, targets


def main() -> int:
    """Print the table and write the JSON."""
    options = parser(__doc__, "answer_signals")
    options.add_argument("--round", type=Path, help="folder of a round that has run")
    options.add_argument("--rows", type=int, help="prompts; all of the round's, or 512")
    chosen = options.parse_args()
    chosen.out = chosen.out.resolve()
    root, here = chosen.round and chosen.round.resolve(), Path.cwd()
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)
        try:
            lines, targets = compare(root, chosen.rows)
        finally:
            os.chdir(here)
    return tell(chosen, lines, targets)


if __name__ == "__main__":
    sys.exit(main())
