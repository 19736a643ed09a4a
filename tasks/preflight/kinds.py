"""The kind of the model that a phase starts from, and of the one that it trains."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cohobate.methods.phase import Phase

CAUSAL, CLASSIFIER, MASKED, EMBEDDER = "causal", "classifier", "masked", "embedder"
_STUDENTS = {
    "classifier": CLASSIFIER,
    "masked": MASKED,
    "embedder": EMBEDDER,
    "static_embedder": EMBEDDER,
}
"""By `init_student.type`; all others generate."""
_TRAINED = {"classify": CLASSIFIER, "mlm": MASKED, "embed": EMBEDDER}
"""By method; all others train a model that generates."""


def kind_at(
    path: str, phases: Mapping[str, "Phase"], student: str, document: Mapping[str, Any]
) -> str:
    """Return the kind of the model at a path below models/.

    Args:
        path: such as `init_student`, `adapt/main` or `train/general`.
        phases: by their keys in params.yaml.
        student: `init_student.type`.
        document: params.yaml.
    """
    stage, _, name = path.partition("/")
    name = name.split("/", maxsplit=1)[0]
    if phase := phases.get(f"{stage}.{name}"):
        return trained_kind(phase)
    if stage == "adapt":
        teacher = (document.get("teachers") or {}).get(name) or {}
        return str(teacher.get("kind", CAUSAL))
    return _STUDENTS.get(student, CAUSAL)


def trained_kind(phase: "Phase") -> str:
    """Return the kind of the model that a phase trains."""
    return _TRAINED.get(phase.method, CAUSAL)  # type: ignore[attr-defined]


def student_kind(phases: Mapping[str, "Phase"], student: str, document: Mapping[str, Any]) -> str:
    """Return the kind of the round's student: of the phase `evaluate.student` where it is named."""
    name = (document.get("evaluate") or {}).get("student")
    phase = phases.get(f"train.{name}")
    return trained_kind(phase) if phase else _STUDENTS.get(student, CAUSAL)
