"""Generate the teacher's answers to the unlabelled prompts, or those of `generate.prompts`.

In:  data/collect/unlabelled.jsonl or labelled.jsonl, and models/adapt/<teacher>: its checkpoint,
     or its address
Out: data/generate/<teacher>/responses.jsonl, in the order of the prompts:

    {"answer": " animal", "finish": "stop", "group": "", "id": "9f8a3c…", "logprob": -0.0213,
     "origin": "teacher", "prompt": "Definition: a small rodent\\nCategory:", "sample": 0,
     "teacher": "main"}

     data/generate/<teacher>/failed.jsonl, the prompts without an answer, and why:

    {"id": "0b7c51…", "reason": "the reply does not match the pattern of the step", "reply": …,
     "sample": 0, "step": "answer"}

     data/signals/<teacher>: a signal store (cohobate/teachers/signal_store/store.py) of the answers
     whose distributions were kept while the teacher generated them, or came from its service with
     them; its summary.json; and of a service without_signals.jsonl: the answers that have none, and
     why. `capture` reads the store

Answers are taken from the ledger where it has them (cohobate/backends/ledger.py): a rerun, a crash
or a longer list of prompts computes only what is missing.

Guarantee: a run that is killed and resumed, however often, writes the same bytes as one that is
not. In float32 answers do not depend on the batch at all; in bfloat16 a batch of another size
rounds differently (measured: one answer in 600 differs, at a near tie). Batches are made within
windows of the list: whole windows keep their answers when the list grows, and prompts that are
added to an answered window form batches of their own.
"""

import shutil
from contextlib import ExitStack
from typing import Annotated

from cohobate.backends.cost_log import log_cost
from cohobate.backends.endpoint import identity
from cohobate.backends.ledger import Ledger
from cohobate.backends.ledger_storage import signal_storage_for, storage_for
from cohobate.backends.prompts import prompt_files
from cohobate.backends.run_teacher import TeacherRun
from cohobate.backends.settings import GenerateParams
from cohobate.backends.signal_log import SignalLog
from cohobate.backends.templates import template_of
from cohobate.backends.transformers import Transformers
from cohobate.backends.vllm import Vllm
from cohobate.data.records import (
    ADAPT,
    ANSWER_SIGNALS,
    GENERATE,
    LABELLED,
    write_json,
    write_rows,
)
from cohobate.errors import UserError
from cohobate.generation.requests import Decoding
from cohobate.params import EachOf, ValueOf
from cohobate.teachers.signal_store.settings import CaptureParams
from cohobate.teachers.signal_store.top_k_form import StoredTopK
from cohobate.teachers.teacher import Teacher
from tasks.generate.reasoning_length import ReasoningLengths, warn_of_labelled


def run(
    item: str,
    generate: GenerateParams,
    evaluated: Annotated[Decoding | None, ValueOf("evaluate.decoding")] = None,
    teacher: Annotated[Teacher | None, EachOf("teachers")] = None,
    capture: CaptureParams | None = None,
) -> None:
    """Generate the answers of the teacher `item`.

    Raises:
        UserError: there is no prompt, several samples of greedy decoding, the teacher's
            checkpoint is damaged, its service does not answer, or the evaluation allows the
            student less than the reasoning that it would learn.
    """
    from cohobate.backends.served_store import ServiceSignals

    if teacher and (teacher.kind == "masked" or teacher.client):
        _write_nothing(item)
        return
    if generate.samples > 1 and generate.decoding.temperature == 0:
        raise UserError(
            "several samples of greedy decoding are identical",
            where="params.yaml, section generate",
            fix="cohobate run --set generate.decoding.temperature=0.7",
        )
    folder, lengths = GENERATE / item, ReasoningLengths()
    storage = storage_for(identity(item), generate.ledger)
    signals, template = ServiceSignals.of(item, generate), template_of(generate.template)
    with ExitStack() as stack:
        ledger = stack.enter_context(Ledger(storage))
        stack.enter_context(log_cost(item, ledger))
        signal_log = _signal_log(item, generate, teacher, capture)
        if signal_log:
            stack.enter_context(signal_log)
        teacher_run = TeacherRun(item, generate, template, ledger, signal_log)
        responses = teacher_run.responses()
        if signals:
            responses = signals.collect(responses, teacher_run)
        write_rows(folder / "responses.jsonl", lengths.counted(responses))
        figures = _write_signals(item, signal_log, capture)
    write_rows(folder / "failed.jsonl", teacher_run.failed)
    teacher_run.check()
    backend, summary = generate.backend_of(item), teacher_run.summary()
    if isinstance(backend, Transformers | Vllm):
        summary["number_format"] = backend.number_format
    figures = signals.publish() if signals else figures
    write_json(ANSWER_SIGNALS / item / "summary.json", figures)
    write_json(folder / "summary.json", summary | lengths.summary())
    if not teacher_run.prompts and not generate.routes:
        files = ", ".join(map(str, prompt_files(generate.prompts)))
        fix = "cohobate run --set generate.prompts=labelled   (or both)"
        raise UserError("there is no prompt to answer", where=files, fix=fix)
    if evaluated:
        warn_of_labelled(LABELLED, evaluated.max_tokens)
        lengths.check(item, evaluated.max_tokens)


def _write_nothing(item: str) -> None:
    """Write the outputs of a masked model or a client's teacher, which answer nothing."""
    for name in ("responses", "failed"):
        write_rows(GENERATE / item / f"{name}.jsonl", [])
    shutil.rmtree(ANSWER_SIGNALS / item, ignore_errors=True)
    write_json(ANSWER_SIGNALS / item / "summary.json", {"rows": 0, "tokens": 0})
    write_json(GENERATE / item / "summary.json", {"responses": 0})


def _signal_log(
    item: str, generate: GenerateParams, teacher: Teacher | None, capture: CaptureParams | None
) -> SignalLog | None:
    """Return where the signals of the answers are kept; None where nothing gives or needs them."""
    backend = generate.backend_of(item)
    if generate.signals == "off" or not (teacher and teacher.signals and capture):
        return None
    if not isinstance(backend, Transformers | Vllm) or not isinstance(capture.signals, StoredTopK):
        return None
    storage = signal_storage_for(identity(item), generate.ledger)
    return SignalLog(storage, capture.signals, backend.number_format)


def _write_signals(
    item: str, signal_log: SignalLog | None, capture: CaptureParams | None
) -> dict[str, float]:
    """Write the store of the answers' signals in the log; return its rows and tokens."""
    folder = ANSWER_SIGNALS / item
    shutil.rmtree(folder, ignore_errors=True)
    if not (signal_log and capture and signal_log.origin is not None):
        return {"rows": 0, "tokens": 0}
    from cohobate.backends.answer_signals import write_answer_store

    responses = GENERATE / item / "responses.jsonl"
    return write_answer_store(signal_log, responses, folder, ADAPT / item, capture.shard_rows)
