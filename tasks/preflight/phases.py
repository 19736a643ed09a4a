"""Whether the phases of training can work together, by params.yaml alone."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from tasks.errors import UserError
from tasks.losses.divergences import Divergence
from tasks.params import Section, nearest
from tasks.progress import say
from tasks.signals.forms import Form
from tasks.teachers import Teachers

if TYPE_CHECKING:
    from tasks.train.phase import Phase


def check_phases(phases: Mapping[str, "Phase"], teachers: Teachers, form: Form) -> None:
    """Refuse phases that start nowhere or in a circle, and targets that no stage will write.

    Raises:
        UserError: naming the phase and its mend.
    """
    for key, phase in phases.items():
        _check_start(key, phases, teachers)
        _check_targets(key, phase, teachers, form)


def _check_start(key: str, phases: Mapping[str, "Phase"], teachers: Teachers) -> None:
    chain = [key]
    while (start := phases[chain[-1]].start).startswith("train/"):
        name = start.split("/")[1]  # what follows is a model trained beside
        where = f"params.yaml, train.{chain[-1]}.from"
        if name not in phases:
            mend = "from: shape, or the name of a phase"
            raise UserError(
                f"no phase is called {name!r}{nearest(name, phases)}", where=where, mend=mend
            )
        if name in chain:
            circle = " from ".join([*chain[chain.index(name) :], name])
            mend = "let the first of them start from: shape"
            raise UserError(f"phases start in a circle: {circle}", where=where, mend=mend)
        chain.append(name)
    where = f"params.yaml, train.{chain[-1]}.from"
    stage, _, teacher = start.partition("/")
    if stage == "adapt" and teacher not in teachers:
        raise UserError(
            f"no teacher is called {teacher!r}{nearest(teacher, teachers)}", where=where
        )
    if stage not in ("shape", "adapt", "champion"):
        raise UserError(
            f"a phase cannot start from {start!r}",
            where=where,
            mend="from: shape, adapt/<teacher>, or train/<phase>",
        )


def shares_vocabulary(teacher: str, phases: Mapping[str, "Phase"]) -> bool:
    """Say whether the student needs a teacher's vocabulary: not where `uld` alone compares them."""
    crossing = [
        phase.crosses_tokenizers
        for phase in phases.values()
        if teacher in (name for _, name in _teachers_of(phase))
    ]
    return not (crossing and all(crossing))


def _teachers_of(phase: "Phase") -> Iterator[tuple[str, str]]:
    """Yield the teachers whose distributions are a phase's targets, each after its folder."""
    several = getattr(phase, "teachers", None) or ()
    folders = [f"{phase.targets}/{name}" for name in several] or [phase.targets]
    for folder, _, name in (path.rpartition("/") for path in folders):
        if folder in ("data/capture", "models/adapt"):
            yield folder, name


def _check_targets(key: str, phase: "Phase", teachers: Teachers, form: Form) -> None:
    for folder, name in _teachers_of(phase):
        where = f"params.yaml, train.{key}.targets"
        if name not in teachers:
            raise UserError(f"no teacher is called {name!r}{nearest(name, teachers)}", where=where)
        crossed = phase.crosses_tokenizers and not teachers[name].endpoint
        if not teachers[name].signals and not crossed:
            raise UserError(
                f"the teacher {name} gives its text only",
                where=where,
                mend=f"teachers.{name}.signals: true, or train on its answers: method: sft",
            )
        if folder == "data/capture":
            for term in getattr(phase, "live_terms", ()):
                raise phase.needs_live(term)  # type: ignore[attr-defined]
            _check_form(key, phase, form)


def _check_form(key: str, phase: "Phase", form: Form) -> None:
    try:
        form.check(getattr(phase, "responses", ()))
    except UserError as error:
        where = f"params.yaml, train.{key}.terms"
        raise UserError(error.what, where=where, mend=error.mend) from None


def check_lengths(phases: Mapping[str, "Phase"], context: int | None) -> None:
    """Say which phases let rows through that are longer than the student's context."""
    for key, phase in phases.items():
        if context is not None and phase.max_tokens > context:
            say(
                f"train.{key}.max_tokens is {phase.max_tokens}: the student was made for rows of "
                f"{context} tokens"
            )


def check_beginnings(phases: Mapping[str, "Phase"], student: str) -> None:
    """Say which phases ask of an untrained student what moves only one that can speak already.

    Args:
        phases: by name.
        student: how the student is made, `shape.type`.
    """
    if student == "pretrained":
        return
    for key, phase in phases.items():
        terms = getattr(phase, "terms", ())
        if phase.start == "shape" and terms and not any(map(_teaches_from_nothing, terms)):
            told = " and ".join(term.type for term in terms)
            say(
                f"train.{key} starts from an untrained student, and {told} moves hardly anything "
                "where the student gives the teacher's tokens no probability: from: train/<a phase "
                "of sft>, or add {type: forward_kl} to its terms"
            )


def _teaches_from_nothing(term: Section) -> bool:
    return not isinstance(term, Divergence) or term.teaches_from_nothing
