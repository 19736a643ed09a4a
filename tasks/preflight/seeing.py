"""Checks of a round whose rows have pictures: what only a student that sees can read.

The sections of other stages are read here and not recorded: the stages refuse the same themselves,
but after hours of work.
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from cohobate.errors import UserError
from cohobate.models import hub
from cohobate.models.seeing import is_seeing
from cohobate.students.initialization import Pretrained, Seeing, StudentInit
from tasks.preflight.classifiers import is_of_student
from tasks.preflight.embedders import Misfit

if TYPE_CHECKING:
    from cohobate.methods.phase import Phase

_METHODS = ("sft", "kd")
FORMS = frozenset({"safetensors"})
"""The export forms of a student that sees."""
_SCORERS = ("filter.scorer", "curriculum.scorer", "preferences.student", "preferences.judge")
_READING_FILTERS = ("judge", "reward", "ifd", "semantic_duplicates", "diversity")
"""Filters that read the text of a prompt, which says little without its picture."""
_JUDGED = ("win_rate", "rubric")
_DIFFICULTIES = ("length", "teacher_loss", "given", "given_label", "random", "rationale_length")
"""Difficulties for which no model reads a prompt."""


def check_seeing(
    init_student: StudentInit, phases: Mapping[str, "Phase"], document: Mapping[str, Any]
) -> None:
    """Refuse pictures for a student that does not see, and what does not fit one that does.

    Args:
        init_student: its section.
        phases: by their keys in params.yaml: `train.kd`, `assist.first`.
        document: params.yaml.

    Raises:
        UserError: naming the setting, why it does not fit, and its fix.
    """
    sees, forms = _sees(init_student), [*_row_forms(document)]
    columns = [form.get("images") for form in forms if form.get("images")]
    if not sees and not columns:
        return
    misfits = [*_kind(init_student.type, sees, columns)]
    if not misfits:
        misfits = [*_phases(phases), *_teacher(forms, document), *_stages(document)]
    for what, key, fix in misfits:
        raise UserError(what, where=f"params.yaml, {key}", fix=fix)


def _sees(init_student: StudentInit) -> bool:
    if isinstance(init_student, Pretrained):
        return is_seeing(hub.resolve(init_student.model, init_student.revision))
    return isinstance(init_student, Seeing)


def _row_forms(document: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the settings by which rows are made: of the one source, or of each."""
    collect = document.get("collect") or {}
    sources = collect.get("sources") or {}
    yield from sources.values() if sources else [collect]


def _kind(kind: str, sees: bool, columns: list[Any]) -> Iterator[Misfit]:
    if not sees:
        yield (
            f"rows have pictures ({columns[0]}), and a student of type {kind} does not see",
            "collect.images",
            "cohobate run --set 'init_student={type: seeing, teacher: main, layers: {uniform: 5}}'",
        )
    elif not columns:
        yield (
            "the student sees, and no row has pictures",
            "collect.images",
            "cohobate run --set collect.images=image, or another column with pictures",
        )


def _phases(phases: Mapping[str, "Phase"]) -> Iterator[Misfit]:
    for key, phase in phases.items():
        method: str = phase.method  # type: ignore[attr-defined]
        if not is_of_student(phase, phases):
            yield (
                "rows have pictures, which a model of text does not see",
                f"{key}.from",
                "from: init_student, or a phase that starts from it",
            )
        elif method not in _METHODS:
            yield (
                f"{method} does not train a student that sees",
                f"{key}.method",
                "method: sft, or kd with targets: data/capture/<teacher>",
            )
        elif getattr(phase, "live_terms", ()) or phase.crosses_tokenizers:
            yield (
                "a student that sees learns distributions of its teacher's vocabulary: neither "
                "features nor uld",
                f"{key}.terms",
                f"cohobate run --set '{key}.terms=[{{type: forward_kl}}]'",
            )
        else:
            yield from _training(key, phase)


def _training(key: str, phase: "Phase") -> Iterator[Misfit]:
    for name, fits, value in (
        ("workers", phase.workers == 1, "1"),
        ("sharding", not phase.shards, "off"),
        ("adapter", phase.adapter.type == "full", "{type: full}"),
        ("quantisation", phase.quantisation.type == "none", "{type: none}"),
        ("keep_layers", phase.keep_layers is None, "null"),
    ):
        if not fits:
            yield (
                f"{name} of a student that sees is not supported: it is trained whole, in one "
                "process",
                f"{key}.{name}",
                f"cohobate run --set '{key}.{name}={value}'",
            )


def _teacher(forms: list[Mapping[str, Any]], document: Mapping[str, Any]) -> Iterator[Misfit]:
    """Yield what would let a teacher of text read a prompt without its picture."""
    for form in forms:
        named = (form.get("source") or {}).get("type") == "emoji"
        if form.get("images") and named and not form.get("teacher_prompt"):
            yield (
                "the teacher reads text, and there is no caption in place of the pictures",
                "collect.teacher_prompt",
                'collect.teacher_prompt: {text: "Emoji: {name}\\nCategory:"}',
            )
    if (document.get("evaluate") or {}).get("teacher_reads") != "teacher_prompt":
        yield (
            "the teacher reads text: of rows with pictures it is evaluated on their captions",
            "evaluate.teacher_reads",
            "cohobate run --set evaluate.teacher_reads=teacher_prompt",
        )
    template = (document.get("generate") or {}).get("template", "answer")
    if template != "answer":
        yield (
            f"the template {template} makes prompts of its own, which have no pictures",
            "generate.template",
            "cohobate run --set generate.template=answer",
        )


def _stages(document: Mapping[str, Any]) -> Iterator[Misfit]:
    """Yield what other stages cannot do with pictures."""
    evaluate = document.get("evaluate") or {}
    if (evaluate.get("robustness") or {}).get("perturbations"):
        yield (
            "prompts with pictures are not perturbed: their captions would not change with them",
            "evaluate.robustness.perturbations",
            "cohobate run --set evaluate.robustness.perturbations=[]",
        )
    if any(one.get("type") in _JUDGED for one in evaluate.get("metrics") or ()):
        yield (
            "a judge reads the text of prompts alone, and rows have pictures",
            "evaluate.metrics",
            "cohobate run --set 'evaluate.metrics=[{type: verifier}]'",
        )
    if (evaluate.get("harness") or {}).get("tasks"):
        yield (
            "the student sees: lm-evaluation-harness evaluates models of text",
            "evaluate.harness.tasks",
            "cohobate run --set 'evaluate.harness={}'",
        )
    for form in (document.get("export") or {}).get("forms") or ():
        if form.get("type") not in FORMS:
            yield (
                f"a student that sees cannot be exported as {form.get('type')}",
                "export.forms",
                "cohobate run --set 'export.forms=[{type: safetensors}]'",
            )
    if (document.get("preferences") or {}).get("type", "none") != "none":
        yield (
            "preferences are not made of rows with pictures",
            "preferences.type",
            "cohobate run --set 'preferences={type: none}'",
        )
    yield from _readers(document)


def _readers(document: Mapping[str, Any]) -> Iterator[Misfit]:
    """Yield the models that would read a prompt without its picture."""
    for key in _SCORERS:
        section, _, name = key.partition(".")
        if str((document.get(section) or {}).get(name) or "").startswith("models/"):
            yield (
                "a scorer reads text alone, and rows have pictures",
                key,
                f"cohobate run --set {key}=cohobate/packaged/smollm2-135m-instruct.yaml",
            )
    for one in (document.get("filter") or {}).get("filters") or ():
        if one.get("type") in _READING_FILTERS:
            yield (
                f"the filter {one['type']} reads the text of prompts alone, and rows have pictures",
                "filter.filters",
                "leave it out",
            )
    kind = ((document.get("curriculum") or {}).get("difficulty") or {}).get("type", "length")
    if kind not in _DIFFICULTIES:
        yield (
            f"the difficulty {kind} is of a model that reads text alone, and rows have pictures",
            "curriculum.difficulty",
            "cohobate run --set 'curriculum.difficulty={type: teacher_loss}'",
        )
