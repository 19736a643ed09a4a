"""Checks between the models of a round: licences, vocabularies, chat templates."""

from collections.abc import Mapping
from typing import Any

from cohobate.errors import UserError
from cohobate.models.model_info import ModelInfo, difference
from cohobate.teachers.teacher import Teacher

_PROBE = "A probe: naïve 2+2=4,  tabs\tand\nlines, 漢字, don't — «ok»?"


def check_terms(key: str, teacher: Teacher) -> None:
    """Refuse a teacher whose licence is unknown or forbids training, unless acknowledged."""
    if teacher.acknowledge.strip():
        return
    where, known = f"params.yaml, section teachers.{key}", teacher.licence.strip().lower()
    fix = f'set it, or acknowledge in words: cohobate run --set teachers.{key}.acknowledge="..."'
    if known in ("", "unknown"):
        raise UserError(f"the licence of the teacher {key} is not known", where=where, fix=fix)
    if not teacher.outputs_may_train:
        raise UserError(
            f"{teacher.licence}: its terms do not say that outputs of the teacher {key} may train "
            "another model (outputs_may_train)",
            where=where,
            fix=fix,
        )


def check_width(name: str, model: ModelInfo) -> None:
    """Refuse a tokenizer with ids beyond the model's embedding; unused rows are fine."""
    if model.highest_id >= model.rows:
        raise UserError(
            f"{name}: the tokenizer has the id {model.highest_id}, the embedding has only "
            f"{model.rows} rows",
            where=str(model.folder),
            fix="model.resize_token_embeddings(len(tokenizer)) of transformers, saved as another "
            "folder; or the tokenizer that the model was published with",
        )


def check_signals(key: str, teacher: ModelInfo, student: ModelInfo) -> None:
    """Refuse a student whose vocabulary, end token or chat template differs from the teacher's."""
    between = f"teacher {key} and student"
    fix = "choose a student of the same family, or `signals: false` to use the teacher's text only"
    if odd := difference(teacher.vocabulary, student.vocabulary):
        raise UserError(
            f"{between} have different vocabularies: {odd}",
            where="params.yaml, section init_student",
            fix=fix,
        )
    if teacher.encode(_PROBE) != student.encode(_PROBE):
        raise UserError(
            f"{between} tokenize the same text differently",
            where="params.yaml, section init_student",
            fix=fix,
        )
    fix = "init_student.tokenizer: teacher   (for a pretrained student)"
    if teacher.eos != student.eos:
        raise UserError(
            f"{between} end an answer differently: {teacher.eos!r} and {student.eos!r}; "
            "the student would never stop",
            where="params.yaml, section init_student",
            fix=fix,
        )
    if teacher.template != student.template:
        raise UserError(
            f"{between} have different chat templates",
            where="params.yaml, section init_student",
            fix=fix,
        )


def check_experts(
    student: Any, tunings: Mapping[str, Any], teachers: Mapping[str, ModelInfo]
) -> None:
    """Refuse a student of merged experts whose teacher has none."""
    if not getattr(student, "experts", None):
        return
    teacher = teachers.get(student.teacher)
    sparse = teacher is not None and teacher.config.get("model_type") == "mixtral"
    tuning = tunings.get(student.teacher)
    upcycled = getattr(tuning, "upcycle", None) and student.of.startswith("models/adapt/")
    if not sparse and not upcycled:
        raise UserError(
            f"the teacher {student.teacher} has no experts that could become one MLP",
            where="params.yaml, init_student.experts",
            fix="cohobate run --set 'adapt.upcycle={experts: 4}' "
            f"--set init_student.of=models/adapt/{student.teacher}",
        )
