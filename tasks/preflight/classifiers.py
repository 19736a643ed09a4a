"""Checks of a round whose student is a classifier: what only a model that generates can do.

The sections of other stages are read here and not recorded: the stages refuse the same themselves,
but after hours of work.
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from cohobate.errors import UserError
from tasks.preflight.kinds import CLASSIFIER, MASKED, kind_at, student_kind

if TYPE_CHECKING:
    from cohobate.methods.phase import Phase

FORMS = frozenset({"safetensors", "onnx"})
"""The export forms of a classifier."""
_CLASSIFY = "method: classify, with targets: the same file as rows"
_REASONS = {
    "sft": "sft learns the tokens of answers",
    "kd": "kd compares distributions of tokens, and hidden states of decoders",
    "on_policy": "on_policy learns from answers that the student generates",
    "dpo": "dpo compares the likelihoods of two texts",
    "mutual": "mutual compares distributions of tokens",
    "early_exit": "early_exit compares distributions of tokens",
}
_SCORERS = ("filter.scorer", "curriculum.scorer", "preferences.student", "preferences.judge")
"""Settings that name a model which reads or generates text."""
_LIKELIHOODS = ("perplexity", "bits_per_byte")


def check_student_kind(
    kind: str, phases: Mapping[str, "Phase"], document: Mapping[str, Any]
) -> None:
    """Refuse phases and settings that do not fit the kind of the student.

    Args:
        kind: `init_student.type`.
        phases: by their keys in params.yaml: `train.kd`, `assist.first`.
        document: params.yaml.

    Raises:
        UserError: naming the setting, why it does not fit, and its fix.
    """
    for key, phase in phases.items():
        _check_method(key, phase, kind_at(phase.start, phases, kind, document))
    named = student_kind(phases, kind, document) == CLASSIFIER
    problems = [*_misfits(document)] if named or kind == "classifier" else []
    for what, where, fix in [*problems, *_misfits_of_labels(document)]:
        raise UserError(what, where=f"params.yaml, {where}", fix=fix)


def is_of_student(phase: "Phase", phases: Mapping[str, "Phase"]) -> bool:
    """Say whether a phase goes on with the initial student, not with a teacher."""
    stage, _, name = phase.start.partition("/")
    # preflight has refused cycles
    above = phases.get(f"{stage}.{name.split('/', maxsplit=1)[0]}")
    return is_of_student(above, phases) if above else stage != "adapt"


def _check_method(key: str, phase: "Phase", start: str) -> None:
    method: str = phase.method  # type: ignore[attr-defined]
    if start == CLASSIFIER and method not in ("classify", "mlm"):
        raise UserError(
            f"the student is a classifier, which gives labels: {_REASONS[method]}",
            where=f"params.yaml, {key}.method",
            fix=_CLASSIFY,
        )
    if method == "classify" and start not in (CLASSIFIER, MASKED):
        raise UserError(
            "classify trains a classifier, and this phase starts from a model that generates",
            where=f"params.yaml, {key}.method",
            fix="init_student: {type: classifier, rows: data/collect/labelled.jsonl} and "
            "from: init_student; or method: sft",
        )


def _misfits_of_labels(document: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield what does not fit stored signals of the form labels."""
    signals = (document.get("capture") or {}).get("signals") or {}
    if signals.get("type") != "labels":
        return
    fidelity = (document.get("evaluate") or {}).get("fidelity") or {}
    if fidelity.get("type") == "stored":
        yield (
            "stored signals of labels have no distributions of tokens to compare with",
            "evaluate.fidelity",
            "cohobate run --set 'evaluate.fidelity={type: live}'",
        )
    if (document.get("collect") or {}).get("sources"):
        yield (
            "signals of labels are over the labels of one task: the round has several",
            "capture.signals",
            "cohobate run --set 'capture.signals={type: top_k, k: 32}'",
        )


def _misfits(document: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield what does not fit a classifier, where it stands, and its fix."""
    evaluate = document.get("evaluate") or {}
    first = (evaluate.get("metrics") or [{}])[0].get("type")
    if first in _LIKELIHOODS:
        yield (
            f"the student is a classifier: it gives no {first} of a text",
            "evaluate.metrics",
            "cohobate run --set 'evaluate.metrics=[{type: verifier}]'",
        )
    if (evaluate.get("harness") or {}).get("tasks"):
        yield (
            "the student is a classifier: lm-evaluation-harness evaluates models of text",
            "evaluate.harness.tasks",
            "cohobate run --set 'evaluate.harness={}'",
        )
    for form in (document.get("export") or {}).get("forms") or ():
        if form.get("type") not in FORMS:
            yield (
                f"the student is a classifier, which cannot be exported as {form.get('type')}",
                "export.forms",
                "cohobate run --set 'export.forms=[{type: safetensors}]'",
            )
    for key in _SCORERS:
        section, _, name = key.partition(".")
        path = str((document.get(section) or {}).get(name) or "")
        if path.startswith(("models/init_student", "models/train")):
            yield (
                "the student is a classifier: it neither generates nor reads answers",
                key,
                f"cohobate run --set {key}=cohobate/packaged/smollm2-135m-instruct.yaml",
            )
    if (document.get("collect") or {}).get("sources"):
        yield (
            "the student is a classifier, which has the labels of one task: the round has several",
            "collect.sources",
            "a round for each task, or a student that generates",
        )
