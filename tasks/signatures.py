"""Signatures of stages: what each stage's function reads of params.yaml.

A stage is a function `run` in `tasks/<stage>/stage.py`, and its signature says what it reads of
params.yaml: `def run(filter: FilterParams, seeds: list[int])` reads the sections `filter` and
`seeds`. Where dvc.yaml makes one stage an item (`foreach: ${train}`), the parameter that takes the
item is marked: `def run(item: str, phase: Annotated[Phase, EachOf("train")])`. A single value of
another section is marked too: `student: Annotated[str, ValueOf("evaluate.student")]`.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, get_args, get_type_hints

from cohobate.errors import UserError
from cohobate.params import EachOf, ValueOf, nearest, validated, value_at

TASKS = Path(__file__).parent


@dataclass(frozen=True)
class Reads:
    """What one parameter of a stage's function reads of params.yaml."""

    section: str
    """The section, or the dotted key of one value in it."""
    each: bool
    annotation: Any


def stage_names() -> list[str]:
    """Return the names of all stages: the folders of tasks/ with a stage.py."""
    return sorted(path.parent.name for path in TASKS.glob("*/stage.py"))


@cache
def stage_function(stage: str) -> Callable[..., None]:
    """Return the function of a stage: `run` in `tasks/<stage>/stage.py`."""
    if not (TASKS / stage / "stage.py").exists():
        near = nearest(stage, stage_names())
        raise UserError(f"no stage is called {stage!r}{near}", where="tasks/")
    function: Callable[..., None] = import_module(f"tasks.{stage}.stage").run
    return function


def reads_of(function: Callable[..., None]) -> dict[str, Reads]:
    """Return, for each parameter of a stage's function but `item`, the section that it reads."""
    hints = get_type_hints(function, include_extras=True)
    reads = {}
    for name in inspect.signature(function).parameters:
        if name == "item":
            continue
        marks = get_args(hints[name])
        each = next((mark for mark in marks if isinstance(mark, EachOf)), None)
        value = next((mark for mark in marks if isinstance(mark, ValueOf)), None)
        section = each.section if each else value.key if value else name
        reads[name] = Reads(section, each is not None, hints[name])
    return reads


def arguments(address: str, document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the typed arguments of a stage (`filter`, `train@kd`), taken from params.yaml.

    Raises:
        ParamsError: a section is missing, or says something its type does not allow.
    """
    stage, _, item = address.partition("@")
    function = stage_function(stage)
    taken: dict[str, Any] = {}
    for name, reads in reads_of(function).items():
        keys = [*reads.section.split("."), *([item] if reads.each else [])]
        taken[name] = validated(reads.annotation, value_at(document, keys), ".".join(keys))
    if "item" in inspect.signature(function).parameters:
        taken["item"] = item
    return taken
