"""Checks of masked models and of encoders as teachers: what neither generates nor reads answers.

The sections of other stages are read here and not recorded: the stages refuse the same themselves,
but after hours of work.
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from cohobate.errors import UserError
from cohobate.teachers.teacher import Teachers
from tasks.preflight.kinds import CLASSIFIER, EMBEDDER, MASKED, kind_at, student_kind

if TYPE_CHECKING:
    from cohobate.methods.phase import Phase

FORMS = frozenset({"safetensors"})
"""The export forms of a masked model."""
_TEACHERS = (CLASSIFIER, MASKED)
_LIKELIHOODS = ("perplexity", "bits_per_byte")
_SCORERS = ("filter.scorer", "curriculum.scorer", "preferences.student", "preferences.judge")
"""Settings that name a model which reads or generates text."""
Unfit = tuple[str, str, str]
"""What does not fit, its key in params.yaml, and the setting that does."""


def check_masked(
    student: str, teachers: Teachers, phases: Mapping[str, "Phase"], document: Mapping[str, Any]
) -> None:
    """Refuse phases and settings that do not fit masked models, or encoders as teachers.

    Args:
        student: `init_student.type`.
        teachers: the section `teachers`.
        phases: by their keys in params.yaml: `train.kd`, `assist.first`.
        document: params.yaml.

    Raises:
        UserError: naming the setting, why it does not fit, and its fix.
    """
    problems = [*_phases(student, phases, document)]
    encoders = {key for key, teacher in teachers.items() if teacher.kind in _TEACHERS}
    if encoders:
        problems += _teachers(encoders, teachers, document)
    if student_kind(phases, student, document) == MASKED:
        problems += _figures(document)
    if student == "masked":
        problems += _models(document)
    for what, key, fix in problems:
        raise UserError(what, where=f"params.yaml, {key}", fix=fix)


def _phases(
    student: str, phases: Mapping[str, "Phase"], document: Mapping[str, Any]
) -> Iterator[Unfit]:
    for key, phase in phases.items():
        method: str = phase.method  # type: ignore[attr-defined]
        kind = kind_at(phase.start, phases, student, document)
        if kind == MASKED and method not in ("mlm", "classify"):
            yield (
                f"the phase starts from a masked model, which predicts single tokens: {method} "
                "trains others",
                f"{key}.method",
                "method: mlm, for raw text, or classify, for the labels of init_student.rows",
            )
        if method != "mlm":
            continue
        if kind not in (MASKED, CLASSIFIER):
            yield (
                "mlm trains a masked model, and this phase starts from "
                + ("an embedder" if kind == EMBEDDER else "a model that generates"),
                f"{key}.from",
                "init_student: {type: masked} and from: init_student; or from: adapt/<a teacher of "
                "kind: masked>",
            )
        yield from _targets(key, phase, kind_at(_below(phase), phases, student, document))


def _targets(key: str, phase: "Phase", teacher: str) -> Iterator[Unfit]:
    if phase.targets == phase.rows or teacher == MASKED:
        return
    compares = bool(getattr(phase, "compares", False))
    if teacher != CLASSIFIER or compares:
        yield (
            "the teacher predicts no masked tokens",
            f"{key}.targets",
            "targets: models/adapt/<a teacher of kind: masked>, or models/assist/<a phase of "
            "method: mlm>" + ("; or terms without divergences" if teacher == CLASSIFIER else ""),
        )


def _below(phase: "Phase") -> str:
    return phase.targets.removeprefix("models/")


def _teachers(
    encoders: set[str], teachers: Teachers, document: Mapping[str, Any]
) -> Iterator[Unfit]:
    """Yield what encoders cannot do as teachers."""
    generate, capture = (document.get(name) or {} for name in ("generate", "capture"))
    key = min(encoders)
    kind = teachers[key].kind
    if all(teachers[name].kind == MASKED for name in teachers):
        yield (
            "every teacher is a masked model, which gives no answers: there would be no rows",
            "teachers",
            "a teacher beside it: {model: all-minilm-l6-v2, kind: classifier}",
        )
    own = (generate.get("prompts"), generate.get("reference_answers"))
    if own != ("labelled", "keep"):
        yield (
            f"the teacher {key} is a {kind}, which generates no answers: the rows are the labelled "
            "ones; phases can read data/collect/unlabelled.jsonl itself",
            "generate",
            "cohobate run --set generate.prompts=labelled --set generate.reference_answers=keep",
        )
    if generate.get("template", "answer") != "answer":
        yield (
            f"the teacher {key} is a {kind}, which generates no answers: it has no template of "
            "steps",
            "generate.template",
            "cohobate run --set generate.template=answer",
        )
    if (capture.get("signals") or {}).get("type") == "labels":
        yield (
            f"the teacher {key} is a {kind}, which phases have in memory: nothing of it is stored",
            "capture.signals",
            "targets: models/adapt/<teacher> in the phase, and "
            "cohobate run --set 'capture.signals={type: top_k, k: 32}'",
        )
    difficulty = ((document.get("curriculum") or {}).get("difficulty") or {}).get("type")
    if difficulty == "teacher_loss":
        yield (
            f"the teacher {key} is a {kind}, whose answers come without a log-probability here",
            "curriculum.difficulty",
            "cohobate run --set 'curriculum.difficulty={type: length}'",
        )
    for setting in _SCORERS:
        section, _, name = setting.partition(".")
        path = str((document.get(section) or {}).get(name) or "")
        named = path.removeprefix("models/adapt/")
        if path != named and named in encoders:
            yield (
                f"the teacher {named} neither generates nor reads answers",
                setting,
                f"cohobate run --set {setting}=cohobate/packaged/smollm2-135m-instruct.yaml",
            )


def _figures(document: Mapping[str, Any]) -> Iterator[Unfit]:
    """Yield what cannot be measured of a masked model as the student, or written of it."""
    evaluate = document.get("evaluate") or {}
    first = (evaluate.get("metrics") or [{}])[0].get("type")
    if first in _LIKELIHOODS:
        yield (
            f"the student is a masked model: it gives no {first} of a text; its loss at masked "
            "tokens is in models/train/<phase>/summary.json",
            "evaluate.metrics",
            "cohobate run --set 'evaluate.metrics=[{type: verifier}]'",
        )
    if (evaluate.get("harness") or {}).get("tasks"):
        yield (
            "the student is a masked model: lm-evaluation-harness evaluates models of text",
            "evaluate.harness.tasks",
            "cohobate run --set 'evaluate.harness={}'",
        )
    for form in (document.get("export") or {}).get("forms") or ():
        if form.get("type") not in FORMS:
            yield (
                f"the student is a masked model, which cannot be exported as {form.get('type')}",
                "export.forms",
                "cohobate run --set 'export.forms=[{type: safetensors}]'",
            )


def _models(document: Mapping[str, Any]) -> Iterator[Unfit]:
    """Yield the settings in which a masked student would stand for a model of text."""
    for key in _SCORERS:
        section, _, name = key.partition(".")
        path = str((document.get(section) or {}).get(name) or "")
        if path.startswith(("models/init_student", "models/train")):
            yield (
                "the student is an encoder: it neither generates nor reads answers",
                key,
                f"cohobate run --set {key}=cohobate/packaged/smollm2-135m-instruct.yaml",
            )
    if (document.get("preferences") or {}).get("type", "none") != "none":
        yield (
            "an encoder prefers no answer to another",
            "preferences.type",
            "cohobate run --set 'preferences={type: none}'",
        )
