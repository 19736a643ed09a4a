"""References between sections of params.yaml: named phases and teachers must exist.

An output of an earlier round can still be in the folder although no stage writes it any more. DVC
would use it, and a student that this round did not train would be evaluated.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from cohobate.errors import UserError
from cohobate.params import nearest
from tasks.signatures import stage_names

_OUTPUTS = re.compile(
    r"^(models/train|models/assist|models/adapt|data/capture|data/generate)/([^/]+)"
)
_PHASES = ("evaluate.student", "evaluate.baseline")
_TEACHERS = ("evaluate.teacher", "init_student.teacher")
_OF_TEACHERS = ("adapt", "generate", "capture")
_NOT_OUTPUTS = ("teachers", "resources", "recipe")


def check_references(document: Mapping[str, Any]) -> None:
    """Refuse a params.yaml that names a phase or a teacher that does not exist.

    Raises:
        UserError: with the key, the name, and the nearest existing name.
    """
    phases, teachers = document.get("train", {}), document.get("teachers", {})
    for key in (*_PHASES, *_TEACHERS):
        section, _, name = key.partition(".")
        value = (document.get(section) or {}).get(name)
        if value is not None and key in _PHASES:
            check_phase(key, value, phases)
        elif value is not None:
            check_teacher(key, value, teachers)
    for section, content in document.items():
        for key, path in _strings(content, section) if section not in _NOT_OUTPUTS else ():
            if not (match := _OUTPUTS.match(path)):
                continue
            if match[1] in ("models/train", "models/assist"):
                owner = match[1].removeprefix("models/")
                check_phase(key, match[2], document.get(owner, {}), owner)
            else:
                check_teacher(key, match[2], teachers)
    _check_tasks(document)
    _check_adapter(document, phases)
    generate = document.get("generate") or {}
    for teacher in generate.get("backends") or ():
        check_teacher("generate.backends", teacher, teachers)
    for task, teacher in (generate.get("routes") or {}).items():
        _check_name("generate.routes", task, _sources(document), "task", "collect.sources")
        check_teacher(f"generate.routes.{task}", teacher, teachers)
    for address in document.get("resources") or ():
        _check_address(address, phases, teachers, _sources(document))


def _check_adapter(document: Mapping[str, Any], phases: Mapping[str, Any]) -> None:
    """Refuse an adapter that is to be published and that the student's phase does not keep."""
    push = (document.get("export") or {}).get("push") or {}
    student = (document.get("evaluate") or {}).get("student")
    adapter = (phases.get(str(student)) or {}).get("adapter") or {}
    if push.get("adapter") and not adapter.get("save_adapter"):
        raise UserError(
            f"the phase {student!r} keeps no adapter, and export.push.adapter would publish it",
            where="params.yaml, export.push.adapter",
            fix=f"cohobate run --set 'train.{student}.adapter={{type: lora, save_adapter: true}}'",
        )


def _sources(document: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the section `collect.sources`: the tasks of the round."""
    sources: Mapping[str, Any] = (document.get("collect") or {}).get("sources") or {}
    return sources


def _check_tasks(document: Mapping[str, Any]) -> None:
    """Refuse the name of a task that is no source of `collect.sources`."""
    sources = _sources(document)
    for key, name in _task_names(document):
        _check_name(key, name, sources, "task", "collect.sources")
    evaluate = document.get("evaluate") or {}
    if (evaluate.get("gate") or {}).get("each_task") and not sources:
        raise UserError(
            "evaluate.gate.each_task asks something of each task, and the round has one source",
            where="params.yaml, evaluate.gate.each_task",
            fix="give several sources in collect.sources, or remove each_task",
        )


def _task_names(document: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield each key of params.yaml that names a task, and the name."""
    lists = {"filter.filters": (document.get("filter") or {}).get("filters")}
    lists["evaluate.metrics"] = (document.get("evaluate") or {}).get("metrics")
    for name in (document.get("task") or {}).get("tasks") or ():
        yield "task.tasks", name
    for key, items in lists.items():
        for number, item in enumerate(items or ()):
            for name in item.get("tasks") or ():
                yield f"{key}.{number}.tasks", name
    phases = {"adapt": document.get("adapt") or {}}
    for name, teacher in (document.get("teachers") or {}).items():
        phases[f"teachers.{name}.adapt"] = teacher.get("adapt") or {}
    for section in ("assist", "train"):
        named = (document.get(section) or {}).items()
        phases |= {f"{section}.{name}": phase or {} for name, phase in named}
    for key, phase in phases.items():
        mixing = phase.get("mixing")
        weights = mixing.get("weights") if isinstance(mixing, Mapping) else None
        for name in weights or ():
            yield f"{key}.mixing.weights", name
        for name in phase.get("task_weights") or ():
            yield f"{key}.task_weights", name


def _check_address(
    address: str, phases: Collection[str], teachers: Collection[str], sources: Collection[str]
) -> None:
    """Refuse resources of a stage that does not exist."""
    stage = address.partition("@")[0]
    known = {name: [name] for name in stage_names()}
    known |= {name: [name, *(f"{name}@{one}" for one in teachers)] for name in _OF_TEACHERS}
    known["sources"] = ["sources", *(f"sources@{name}" for name in sources)]
    known["train"] = ["train", *(f"train@{phase}" for phase in phases)]
    if address not in known.get(stage, ()):
        names = [one for some in known.values() for one in some]
        raise UserError(
            f"resources names the stage {address!r}, which does not exist{nearest(address, names)}",
            where=f"params.yaml, resources.{address}",
            fix=f"name one of {', '.join(known.get(stage) or known)}",
        )


def check_phase(key: str, name: str, phases: Collection[str], section: str = "train") -> None:
    """Refuse the name of a phase at `key` if it does not exist."""
    _check_name(key, name, phases, "phase", section)


def check_teacher(key: str, name: str, teachers: Collection[str]) -> None:
    """Refuse the name of a teacher at `key` if it does not exist."""
    _check_name(key, name, teachers, "teacher", "teachers")


def _check_name(key: str, name: str, names: Collection[str], kind: str, section: str) -> None:
    if name not in names:
        raise UserError(
            f"{key} names the {kind} {name!r}, and section {section} has no such {kind}"
            f"{nearest(name, names)}",
            where=f"params.yaml, {key}",
            fix=f"name one of {', '.join(names)}" if names else f"give some in {section}",
        )


def _strings(value: Any, key: str) -> Iterator[tuple[str, str]]:
    """Yield each string below a value, with its dotted key."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, Mapping):
        for name, item in value.items():
            yield from _strings(item, f"{key}.{name}")
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _strings(item, f"{key}.{number}")
