"""Export the student in the configured forms, each checked against the original, with cards.

In:  data/evaluate (which checkpoints, and how they scored), models/train/<student>/seed-<n>,
     data/collect/dev.jsonl; models/adapt where the student's vocabulary was cut from a teacher's;
     for the cards data/preflight, data/collect, data/generate, data/filter
Out: models/export/<form>/     the model in one form, its card README.md, provenance.json, manifest
     models/export/summary.json
     data/export/              the training data of the round, its card README.md and NOTICE.txt

provenance.json of a form holds what it came to beside the checkpoint that it was made from:

    {"rescored": {"agreement": 1.0, "bytes": 95563413, "dev_rows": 500, "log_prob_drift": 0.0,
                  "original_perplexity": 2.41, "original_score": 0.772, "perplexity": 2.41,
                  "score": 0.772}, "source": {"fingerprint": "31e0…", "provenance": {…}}, …}
"""

import shutil
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from cohobate.data.records import EXPORT, EXPORTED_DATA, Row, write_json
from cohobate.data.tokenized import encode_all
from cohobate.errors import UserError
from cohobate.evaluation.deciding_metric import DecidingMetric
from cohobate.evaluation.model_under_test import CausalModel, kind_of
from cohobate.evaluation.score_text import ScoreText
from cohobate.models import checkpoints
from cohobate.models.number_formats import Precision, resolve
from cohobate.models.seeing import is_seeing
from cohobate.params import Section, ValueOf
from cohobate.progress import say
from cohobate.scoring.verifiers import Task
from cohobate.students.initialization import StudentInit
from tasks.export.adapter import Adapter, adapter_of, write_repository
from tasks.export.cards import CardFiles, Exported, write_dataset, write_model_card
from tasks.export.form import Questions
from tasks.export.gguf import Gguf
from tasks.export.onnx import Onnx
from tasks.export.push import Push
from tasks.export.quantised import Int4, Int8
from tasks.export.rescoring import Check, Original, dev_sample
from tasks.export.safetensors import Safetensors, greedy_answers, read_losses
from tasks.export.sentence_transformers import SentenceTransformers
from tasks.export.student import Choice, Student, evaluated, lineage
from tasks.export.vocabulary import whole

AnyForm = Annotated[
    Safetensors | SentenceTransformers | Gguf | Onnx | Int8 | Int4, Field(discriminator="type")
]

SHOWN = ("score", "agreement", "log_prob_drift", "bytes")
"""Figures of each form in the summary."""


class ExportParams(Section):
    """The section `export` of params.yaml."""

    forms: tuple[AnyForm, ...] = Field((Safetensors(type="safetensors"),), min_length=1)
    """The forms to write; each is loaded again and must agree with the original."""
    seed: Choice | int = "best_on_dev"
    """Which checkpoint. The best is chosen on dev rows, so that test rows stay unseen."""
    dev_rows: int = Field(500, ge=1)
    """So many dev rows are answered for the choice of the seed and to check each form: greedily,
    with at most as many tokens as in `evaluate`."""
    vocabulary: Literal["whole", "used"] = "whole"
    """Of a student whose vocabulary was trimmed: all that it was cut from, so that the teacher's
    tokenizer serves it; or what it has, which is smaller."""
    precision: Precision = "auto"
    """Number format of the original in the check."""
    threads: int = Field(2, ge=1)
    """CPU threads. Another number can change the last digits."""
    push: Push | None = None
    """Where the forms are published; nowhere by default."""

    @model_validator(mode="after")
    def _names_differ(self) -> "ExportParams":
        names = [form.name for form in self.forms]
        if len(set(names)) < len(names):
            raise ValueError(f"the same form twice: {', '.join(names)}")
        return self


def run(
    export: ExportParams,
    task: Task,
    init_student: StudentInit,
    metric: DecidingMetric,
    max_tokens: Annotated[int, ValueOf("evaluate.decoding.max_tokens")],
) -> None:
    """Choose the checkpoint, write it in every form, check each, and publish all or nothing.

    Raises:
        UserError: a form drifts beyond its tolerance, a library is not installed, there are no dev
            rows to check on, or what is asked to be pushed must not be.
    """
    import torch

    torch.set_num_threads(export.threads)
    student, files = evaluated(), CardFiles()
    if export.push:
        export.push.refuse(files.teachers, files.gate_passed)
    check = _check(export, student, metric, max_tokens, task)
    number_format = resolve(export.precision, checkpoints.accelerator())
    seed, original = _chosen(export, student, check)
    _refuse_forms(export, student.by_seed[seed])
    sends_adapter = export.push and export.push.adapter
    adapter = adapter_of(student.by_seed[seed], files, init_student) if sends_adapter else None
    shutil.rmtree(EXPORT, ignore_errors=True)
    summary: dict[str, Any] = {"phase": student.phase, "seed": seed, "dev_rows": len(check.rows)}
    summary["original score"] = round(check.score(*original), 6)
    with ExitStack() as published:  # all of them at its end, or none
        source, forms = student.by_seed[seed], export.forms
        if init_student.vocabulary == "used" and export.vocabulary == "whole":
            source = published.enter_context(whole(source, init_student))
            forms = tuple(form.for_restored() for form in forms)
        for form in forms:
            partial = published.enter_context(checkpoints.staged(EXPORT / form.name))
            form.write(source, partial)
            figures = check.rescored(form, partial, original).figures()
            serving = form.serving(source, partial, check.rows[0])
            exported = Exported(form, seed, figures, check.rows[0], ScoreText(metric.type), serving)
            write_model_card(partial, exported, student, files)
            record: dict[str, Any] = {"form": form.model_dump(mode="json"), "rescored": figures}
            record["source"] = lineage(student.by_seed[seed])
            record["number_format"] = number_format
            write_json(partial / checkpoints.PROVENANCE, record)
            shown_figures = {name: figures[name] for name in SHOWN if figures[name] is not None}
            summary |= {f"{form.name} {name}": figure for name, figure in shown_figures.items()}
            agreement = f"{figures['agreement']:.1%} of {len(check.rows)} rows"
            say(f"{form.name}: the same answer on {agreement}")
    write_json(EXPORT / "summary.json", summary)
    write_dataset(EXPORTED_DATA, files)
    if export.push:
        _publish(
            export.push, adapter, exported, files, [EXPORT / form.name for form in export.forms]
        )


def _check(
    export: ExportParams, student: Student, metric: DecidingMetric, max_tokens: int, task: Task
) -> Check:
    """Return the dev rows on which each form is checked, with how they are scored."""
    folder = next(iter(student.by_seed.values()))
    prefix = checkpoints.prompt_prefix(folder)
    rows = [row.prefixed(prefix) for row in dev_sample(export.dev_rows)]
    # raw text has no prompt: its beginning is continued
    prompts = [_beginning(row) if row.is_raw_text else row.full_prompt for row in rows]
    documents = [row.full_answer for row in rows]
    questions = Questions(prompts, max_tokens, export.threads, documents)
    return Check(rows, questions, _token_counts(folder, rows), metric, task)


def _publish(
    push: Push, adapter: Adapter | None, exported: Exported, files: CardFiles, forms: list[Path]
) -> None:
    """Send what was exported to the hub."""
    with tempfile.TemporaryDirectory() as scratch:
        if adapter and push.adapter:
            write_repository(adapter, push.adapter, Path(scratch), exported, files)
        push.upload(forms, EXPORTED_DATA, Path(scratch) if adapter else None)


def _chosen(export: ExportParams, student: Student, check: Check) -> tuple[int, Original]:
    """Return the seed whose checkpoint is exported, with that checkpoint's answers and losses.

    Raises:
        UserError: there is no checkpoint of the seed that params.yaml names.
    """
    seeds = sorted(student.by_seed)
    if isinstance(export.seed, int):
        seeds = [seed for seed in seeds if seed == export.seed]
    elif export.seed == "first":
        seeds = seeds[:1]
    if not seeds:
        raise UserError(
            f"no student was trained with seed {export.seed}",
            where="params.yaml, export.seed",
            fix=f"one of {', '.join(map(str, sorted(student.by_seed)))}",
        )
    originals = {}
    for number in seeds:
        folder = student.by_seed[number]
        answers = greedy_answers(folder, export.precision, check.questions)
        losses = read_losses(folder, export.precision, check.rows, export.threads)
        originals[number] = Original(answers, losses)
    best = max(seeds, key=lambda number: (check.quality(*originals[number]), -number))
    return best, originals[best]


def _refuse_forms(export: ExportParams, folder: Path) -> None:
    """Refuse forms in which the student cannot be written: a model of its kind.

    Raises:
        UserError: names the form.
    """
    for form in export.forms:
        kind, can = "a model that generates", form.writes_generators
        if checkpoints.is_classifier(folder):
            kind, can = "a classifier", form.writes_classifiers
        elif checkpoints.is_embedder(folder):
            kind, can = "an embedder", form.writes_embedders
        elif checkpoints.is_masked(folder):
            kind, can = "a masked model", form.writes_masked
        elif is_seeing(folder):
            kind, can = "a model that sees", form.writes_seeing
        if not can:
            raise UserError(
                f"{kind} cannot be exported as {form.type}",
                where="params.yaml, export.forms",
                fix="cohobate run --set 'export.forms=[{type: safetensors}]'",
            )


def _token_counts(folder: Path, rows: Sequence[Row]) -> list[int]:
    if kind_of(folder) is not CausalModel:
        return [1] * len(rows)  # an answer is one label, one document, or one mask
    tokenizer = checkpoints.load_tokenizer(folder)
    return [len(text.completion_ids) for text in encode_all(tokenizer, rows)]


def _beginning(row: Row) -> str:
    """Return the first quarter of raw text, up to a blank."""
    text = row.source_text
    start = text[: max(1, len(text) // 4)]
    return start.rsplit(" ", 1)[0] or start
