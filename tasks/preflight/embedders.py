"""Checks of a round of embedders: what only models that generate can do, and what pairs need.

The sections of other stages are read here and not recorded: the stages refuse the same themselves,
but after hours of work.
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from cohobate.errors import UserError
from cohobate.teachers.teacher import Teachers

if TYPE_CHECKING:
    from cohobate.methods.phase import Phase

KINDS = frozenset({"embedder", "static_embedder"})
"""`init_student.type` of embedders."""
FORMS = frozenset({"safetensors", "sentence_transformers"})
"""Their export forms."""
_METRICS = ("ndcg", "mrr", "verifier")
_SCORERS = ("filter.scorer", "curriculum.scorer", "preferences.student", "preferences.judge")
"""Settings that name a model which reads or generates text."""
Misfit = tuple[str, str, str]
"""What does not fit, its key in params.yaml, and the setting that does."""


def check_embedders(
    kind: str, teachers: Teachers, phases: Mapping[str, "Phase"], document: Mapping[str, Any]
) -> None:
    """Refuse teachers, phases and settings that do not fit a round with or without embedders.

    Args:
        kind: `init_student.type`.
        teachers: the section `teachers`.
        phases: by their keys in params.yaml: `train.kd`, `assist.first`.
        document: params.yaml.

    Raises:
        UserError: naming the setting, why it does not fit, and its fix.
    """
    misfits = [*_teachers(kind, teachers), *_phases(kind, phases)]
    if kind in KINDS and not misfits:
        misfits += [*_data(document), *_figures(document), *_models(document)]
        misfits += _frozen(kind, phases)
    for what, key, fix in misfits:
        raise UserError(what, where=f"params.yaml, {key}", fix=fix)


def _teachers(kind: str, teachers: Teachers) -> Iterator[Misfit]:
    for key, teacher in teachers.items():
        if (teacher.kind == "embedder") == (kind in KINDS):
            continue
        if teacher.kind == "embedder":
            yield (
                f"the teacher {key} is an embedder, which gives vectors of texts: a student of "
                f"type {kind} cannot learn from it",
                "init_student.type",
                "recipes/embedder.yaml: cohobate run --recipe recipes/embedder.yaml",
            )
        else:
            yield (
                f"the student is an embedder, and the teacher {key} gives no vectors of texts",
                f"teachers.{key}.kind",
                f"teachers.{key}: {{model: all-minilm-l6-v2, kind: embedder, ...}}",
            )


def _phases(kind: str, phases: Mapping[str, "Phase"]) -> Iterator[Misfit]:
    for key, phase in phases.items():
        method: str = phase.method  # type: ignore[attr-defined]
        if kind in KINDS and method != "embed":
            yield (
                f"the student is an embedder, which gives vectors of texts: {method} trains others",
                f"{key}.method",
                "method: embed, with terms: [{type: cosine}] and targets: data/capture/<teacher>",
            )
        elif kind in KINDS and phase.start.startswith("adapt/"):
            yield (
                "a phase of embed starts from the student",
                f"{key}.from",
                "from: init_student, or train/<a phase>",
            )
        elif kind not in KINDS and method == "embed":
            yield (
                f"embed trains an embedder, and the student is of type {kind}",
                f"{key}.method",
                "init_student: {type: embedder}, or another method",
            )


def _frozen(kind: str, phases: Mapping[str, "Phase"]) -> Iterator[Misfit]:
    for key, phase in phases.items():
        if kind == "static_embedder" and (phase.freeze.embeddings or phase.keep_layers):
            yield (
                "a static embedder has nothing but its embeddings",
                f"{key}.freeze",
                f"cohobate run --set '{key}.freeze={{embeddings: false}}', and no keep_layers",
            )


def _data(document: Mapping[str, Any]) -> Iterator[Misfit]:
    """Yield what does not give pairs of texts."""
    collect, generate = (document.get(name) or {} for name in ("collect", "generate"))
    if collect.get("sources"):
        yield (
            "embedders are evaluated on the documents of one source: the round has several",
            "collect.sources",
            "one source in collect.source",
        )
    if not (collect.get("template") or {}).get("pairs"):
        yield (
            "an embedder is evaluated on pairs, a query and its document",
            "collect.template.pairs",
            "cohobate run --set collect.template.pairs=true",
        )
    if (document.get("adapt") or {}).get("type") != "none":
        yield (
            "an embedder as the teacher cannot be tuned",
            "adapt.type",
            "cohobate run --set 'adapt={type: none}'",
        )
    own = (generate.get("prompts"), generate.get("reference_answers"))
    if own != ("labelled", "keep"):
        yield (
            "an embedder generates no answers: the rows are the labelled pairs",
            "generate",
            "cohobate run --set generate.prompts=labelled --set generate.reference_answers=keep",
        )
    if (document.get("capture") or {}).get("teacher_workers"):
        yield (
            "an embedder as the teacher is small: it runs in one process",
            "capture.teacher_workers",
            "remove capture.teacher_workers from params.yaml",
        )
    if generate.get("template", "answer") != "answer":
        yield (
            "an embedder generates no answers: it has no template of steps",
            "generate.template",
            "cohobate run --set generate.template=answer",
        )


def _figures(document: Mapping[str, Any]) -> Iterator[Misfit]:
    """Yield what cannot be measured of an embedder, and what would not be a ranking's measure."""
    evaluate = document.get("evaluate") or {}
    first = (evaluate.get("metrics") or [{}])[0].get("type")
    if first not in _METRICS:
        yield (
            f"the student is an embedder, whose answer is a ranking: {first} does not measure it",
            "evaluate.metrics",
            "cohobate run --set 'evaluate.metrics=[{type: ndcg}, {type: mrr}]'",
        )
    verifier = ((document.get("task") or {}).get("verifier") or {}).get("type")
    if verifier != "ranking":
        yield (
            f"the student is an embedder, whose answer is a ranking: the verifier {verifier} does "
            "not read it",
            "task.verifier",
            "cohobate run --set 'task.verifier={type: ranking}'",
        )
    if (evaluate.get("harness") or {}).get("tasks"):
        yield (
            "the student is an embedder: lm-evaluation-harness evaluates models of text",
            "evaluate.harness.tasks",
            "cohobate run --set 'evaluate.harness={}'",
        )


def _models(document: Mapping[str, Any]) -> Iterator[Misfit]:
    """Yield the settings in which an embedder would stand for a model of text."""
    for form in (document.get("export") or {}).get("forms") or ():
        if form.get("type") not in FORMS:
            yield (
                f"the student is an embedder, which cannot be exported as {form.get('type')}",
                "export.forms",
                "cohobate run --set 'export.forms=[{type: safetensors}]'",
            )
    for key in _SCORERS:
        section, _, name = key.partition(".")
        path = str((document.get(section) or {}).get(name) or "")
        if path.startswith("models/"):
            yield (
                "teacher and student are embedders: they neither generate nor read answers",
                key,
                f"cohobate run --set {key}=cohobate/packaged/smollm2-135m-instruct.yaml",
            )
    difficulty = ((document.get("curriculum") or {}).get("difficulty") or {}).get("type")
    if difficulty == "teacher_loss":
        yield (
            "an embedder as the teacher gives no log-probability of an answer",
            "curriculum.difficulty",
            "cohobate run --set 'curriculum.difficulty={type: length}'",
        )
    if (document.get("preferences") or {}).get("type", "none") != "none":
        yield (
            "an embedder prefers no answer to another",
            "preferences.type",
            "cohobate run --set 'preferences={type: none}'",
        )
