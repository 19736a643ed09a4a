"""Checks of the training phases by params.yaml alone: starts, targets, cycles."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from cohobate.errors import UserError
from cohobate.losses.base_divergence import Divergence
from cohobate.params import Section, nearest
from cohobate.progress import say
from cohobate.teachers.signal_store.label_form import StoredLabels
from cohobate.teachers.signal_store.settings import AnySignals
from cohobate.teachers.teacher import Teachers

if TYPE_CHECKING:
    from cohobate.methods.phase import Phase

PHASES = ("train", "assist")
"""The sections with phases; also the folders of their models."""


def check_phases(
    phases: Mapping[str, "Phase"],
    teachers: Teachers,
    form: AnySignals,
    *,
    keep_tokenizer: bool = False,
) -> None:
    """Refuse phases with an unknown start or in a cycle, and targets that no stage writes.

    Args:
        phases: by their keys in params.yaml: `train.kd`, `assist.first`.
        teachers: the section `teachers`.
        form: of the stored signals.
        keep_tokenizer: whether stores have their teacher's tokenizer.

    Raises:
        UserError: naming the phase and its fix.
    """
    for key, phase in phases.items():
        _check_start(key, phase, phases, teachers)
        _check_targets(key, phase, teachers, form)
        stored = any(folder == "data/capture" for folder, _ in _teachers_of(phase))
        tokens = not isinstance(form, StoredLabels)
        if stored and phase.crosses_tokenizers and tokens and not keep_tokenizer:
            raise UserError(
                "uld from stored signals needs the teacher's tokenizer in the store",
                where=f"params.yaml, {key}.terms",
                fix="cohobate run --set capture.keep_tokenizer=true",
            )
    for key in phases:
        _check_cycle([key], phases)


def _check_start(
    key: str, phase: "Phase", phases: Mapping[str, "Phase"], teachers: Teachers
) -> None:
    stage, _, name = phase.start.partition("/")
    where = f"params.yaml, {key}.from"
    name = name.split("/")[0]  # the rest names a peer model
    if stage in PHASES and f"{stage}.{name}" not in phases:
        names = [other.partition(".")[2] for other in phases if other.startswith(f"{stage}.")]
        fix = "from: init_student, or the name of a phase"
        problem = f"no phase is called {name!r}{nearest(name, names)}"
        raise UserError(problem, where=where, fix=fix)
    if stage == "adapt" and name not in teachers:
        raise UserError(f"no teacher is called {name!r}{nearest(name, teachers)}", where=where)
    if stage not in ("init_student", "adapt", "champion", *PHASES):
        raise UserError(
            f"a phase cannot start from {phase.start!r}",
            where=where,
            fix="from: init_student, adapt/<teacher>, train/<phase>, or assist/<phase>",
        )


def _check_cycle(chain: list[str], phases: Mapping[str, "Phase"]) -> None:
    """Refuse phases that depend on each other in a cycle, by start or by targets."""
    for dependency in _dependencies(phases[chain[-1]], phases):
        if dependency in chain:
            cycle = [*chain[chain.index(dependency) :], dependency]
            names = [name.partition(".")[2] for name in cycle]
            raise UserError(
                f"phases depend on each other in a cycle: {' from '.join(names)}",
                where=f"params.yaml, {chain[-1]}",
                fix="start the first of them from: init_student; phases that are teachers of "
                "another one belong into section assist, with targets: models/assist",
            )
        _check_cycle([*chain, dependency], phases)


def _dependencies(phase: "Phase", phases: Mapping[str, "Phase"]) -> list[str]:
    """Return the phases whose outputs a phase reads."""
    dependencies = []
    for path in (f"models/{phase.start}", phase.targets):
        above, _, rest = path.removeprefix("models/").partition("/")
        if path.startswith("models/") and above in PHASES:
            prefix = f"{above}.{rest.split('/')[0]}"
            dependencies += [
                key for key in phases if key == prefix or (not rest and key.startswith(prefix))
            ]
    return dependencies


def shares_vocabulary(teacher: str, phases: Mapping[str, "Phase"]) -> bool:
    """Return whether the student needs the teacher's vocabulary: not where only `uld` is used."""
    crossing = [
        phase.crosses_tokenizers
        for phase in phases.values()
        if teacher in (name for _, name in _teachers_of(phase))
    ]
    return not (crossing and all(crossing))


def _teachers_of(phase: "Phase") -> Iterator[tuple[str, str]]:
    """Yield the folder and name of each teacher whose distributions are a phase's targets."""
    several = getattr(phase, "teachers", None) or ()
    folders = [f"{phase.targets}/{name}" for name in several] or [phase.targets]
    for folder, _, name in (path.rpartition("/") for path in folders):
        if folder in ("data/capture", "models/adapt"):
            yield folder, name


def _check_targets(key: str, phase: "Phase", teachers: Teachers, form: AnySignals) -> None:
    for folder, name in _teachers_of(phase):
        where = f"params.yaml, {key}.targets"
        if name not in teachers:
            raise UserError(f"no teacher is called {name!r}{nearest(name, teachers)}", where=where)
        crossed = phase.crosses_tokenizers and not teachers[name].endpoint
        voted = isinstance(form, StoredLabels) and form.by == "votes" and folder == "data/capture"
        # a classifier or a masked model is in memory: its phases check what it gives
        encoder = folder == "models/adapt" and phase.method in ("classify", "mlm")  # type: ignore[attr-defined]
        if not teachers[name].signals and not crossed and not voted and not encoder:
            raise UserError(
                f"the teacher {name} provides text only",
                where=where,
                fix=f"teachers.{name}.signals: true, or train on its answers: method: sft",
            )
        chosen = getattr(getattr(phase, "sampling", None), "candidates", 0)
        if chosen and teachers[name].scoring != "vllm":
            raise UserError(
                "sampling.candidates are for a teacher behind vLLM: others send the likeliest ids, "
                "and one whose weights are here has its whole distribution",
                where=f"params.yaml, {key}.sampling",
                fix=f"cohobate run --set {key}.sampling.candidates=0",
            )
        scores = teachers[name].scoring != "none" and phase.method == "on_policy"  # type: ignore[attr-defined]
        if folder == "models/adapt" and teachers[name].endpoint and not scores:
            raise UserError(
                f"the teacher {name} is behind an endpoint: its model is not here",
                where=where,
                fix=f"targets: data/capture/{name}, which stores its signals; on_policy needs "
                f"teachers.{name}.scoring: vllm or sglang",
            )
        tuned = teachers[name].kind == "classifier"
        if folder == "models/adapt" and phase.method == "classify" and not tuned:  # type: ignore[attr-defined]
            raise UserError(
                f"the teacher {name} generates: classify learns its distribution over the labels "
                "from data/capture",
                where=where,
                fix=f"cohobate run --set {key}.targets=data/capture/{name} "
                "--set 'capture.signals={type: labels}'",
            )
        if folder == "data/capture":
            for term in getattr(phase, "live_terms", ()):
                raise phase.needs_live(term)  # type: ignore[attr-defined]
            _check_form(key, phase, form)


def _check_form(key: str, phase: "Phase", form: AnySignals) -> None:
    method: str = phase.method  # type: ignore[attr-defined]
    labels, learns_labels = isinstance(form, StoredLabels), method == "classify"
    if labels != learns_labels and not (labels and method == "kd"):
        learnt = "labels" if learns_labels else "tokens"
        form_of = "{type: labels}" if learns_labels else "{type: top_k, k: 32}"
        raise UserError(
            f"{method} learns distributions over {learnt}, and capture stores {form.type}",
            where=f"params.yaml, {key}.targets, and capture.signals",
            fix=f"cohobate run --set 'capture.signals={form_of}'",
        )
    if isinstance(form, StoredLabels):
        if phase.crosses_tokenizers or not getattr(phase, "averages_labels", True):
            raise UserError(
                "signals of labels are averaged over teachers, and of any tokenizer without uld",
                where=f"params.yaml, {key}",
                fix=f"cohobate run --set '{key}.terms=[{{type: forward_kl}}]' "
                f"--set {key}.combine.type=mixture",
            )
        return
    try:
        form.check(getattr(phase, "responses", ()))
    except UserError as error:
        where = f"params.yaml, {key}.terms"
        raise UserError(error.what, where=where, fix=error.fix) from None


def check_lengths(phases: Mapping[str, "Phase"], context: int | None) -> None:
    """Warn of phases with rows longer than the student's context."""
    for key, phase in phases.items():
        if context is not None and phase.max_tokens > context:
            say(
                f"{key}.max_tokens is {phase.max_tokens}, the student's context is {context} tokens"
            )


def check_beginnings(phases: Mapping[str, "Phase"], student: str) -> None:
    """Warn of losses that train a random student poorly.

    Args:
        phases: by name.
        student: `init_student.type`.
    """
    if student == "pretrained":
        return
    for key, phase in phases.items():
        terms = getattr(phase, "terms", ())
        if phase.start == "init_student" and terms and not any(map(_trains_from_scratch, terms)):
            names = " and ".join(term.type for term in terms)
            say(
                f"{key} starts from an untrained student, and {names} has almost no gradient where "
                "the student gives the teacher's tokens no probability; fix: from: train/<a phase "
                "of sft>, or add {type: forward_kl} to its terms"
            )


def _trains_from_scratch(term: Section) -> bool:
    return not isinstance(term, Divergence) or term.trains_from_scratch
