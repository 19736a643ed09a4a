"""params.yaml -> frozen typed sections; an unknown key is refused with the nearest name.

A stage is a function `run` in `tasks/<stage>/stage.py`, and its signature says what it reads of
params.yaml: `def run(filter: FilterParams, seeds: list[int])` reads the sections `filter` and
`seeds`. Where dvc.yaml makes one stage an item (`foreach: ${train}`), the parameter that takes the
item is marked: `def run(item: str, phase: Annotated[Phase, EachOf("train")])`. One value of another
section is marked too: `student: Annotated[str, ValueOf("evaluate.student")]`.
"""

import difflib
import inspect
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, get_args, get_type_hints

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from tasks.errors import UserError

PARAMS = Path("params.yaml")
TASKS = Path(__file__).parent


class Section(BaseModel):
    """Base of every thing that params.yaml can spell: frozen, and no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class ParamsError(UserError):
    """params.yaml says something that no stage understands."""


@dataclass(frozen=True)
class EachOf:
    """Marks the parameter of a stage's function that takes one item of a section."""

    section: str


@dataclass(frozen=True)
class ValueOf:
    """Marks the parameter of a stage's function that takes one value of a section."""

    key: str
    """The dotted key, such as `evaluate.student`; in a list the place, as in
    `evaluate.metrics.0`."""


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
    found = {}
    for name in inspect.signature(function).parameters:
        if name == "item":
            continue
        marks = get_args(hints[name])
        each = next((mark for mark in marks if isinstance(mark, EachOf)), None)
        value = next((mark for mark in marks if isinstance(mark, ValueOf)), None)
        section = each.section if each else value.key if value else name
        found[name] = Reads(section, each is not None, hints[name])
    return found


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
        taken[name] = validated(reads.annotation, _dig(document, keys), ".".join(keys))
    if "item" in inspect.signature(function).parameters:
        taken["item"] = item
    return taken


def load(path: Path = PARAMS) -> dict[str, Any]:
    """Read params.yaml as plain values (safe YAML: no object is ever constructed)."""
    try:
        return parse(path.read_text(), str(path))
    except FileNotFoundError:
        raise ParamsError(
            "there is no params.yaml here", where=str(path), mend="run from the project's root"
        ) from None


def parse(text: str, where: str) -> dict[str, Any]:
    """Read the text of a params.yaml, which was found at `where`."""
    try:
        document = YAML(typ="safe", pure=True).load(text)
    except YAMLError as error:
        raise ParamsError(f"not YAML: {error}", where=where) from error
    if not isinstance(document, dict):
        raise ParamsError("expected a mapping of sections", where=where)
    return document


def validated(annotation: Any, value: Any, where: str) -> Any:
    """Give `value` the type `annotation`, or say in one line a mistake what is wrong and where.

    Raises:
        ParamsError: naming the file, the key, and the nearest known key.
    """
    try:
        return TypeAdapter(annotation).validate_python(value)
    except ValidationError as error:
        lines = [_explain(e, annotation, value, where) for e in error.errors()]
        raise ParamsError(
            "\n".join(lines), where=f"params.yaml, section {where}", mend="cohobate params --schema"
        ) from None


def nearest(name: str, known: typing.Iterable[str]) -> str:
    """Return `; did you mean 'x'?`, or nothing when no known name is near."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def _dig(document: Mapping[str, Any], keys: list[str]) -> Any:
    value: Any = document
    for depth, key in enumerate(keys):
        if isinstance(value, list):
            value = {str(place): one for place, one in enumerate(value)}
        if not isinstance(value, Mapping) or key not in value:
            where = ".".join(keys[: depth + 1])
            raise ParamsError(f"{where} is missing", where="params.yaml")
        value = value[key]
    return value


def _explain(error: Any, annotation: Any, value: Any, where: str) -> str:
    path = ".".join([where, *_as_written(error["loc"], value)])
    if error["type"] == "extra_forbidden":
        known = _known_keys(annotation, error["loc"][:-1])
        return f"{path} is not a known key{nearest(str(error['loc'][-1]), known)}"
    if error["type"] == "union_tag_invalid":
        tags = [tag.strip(" '") for tag in error["ctx"]["expected_tags"].split(",")]
        given = error["ctx"]["tag"]
        return f"{path}: {given!r} is none of {', '.join(tags)}{nearest(given, tags)}"
    shown = "" if isinstance(error["input"], dict) else f" (found {error['input']!r})"
    return f"{path}: {error['msg']}{shown}"


def _as_written(loc: tuple[Any, ...], value: Any) -> typing.Iterator[str]:
    """Yield the parts of `loc` that stand in the file; pydantic adds the tags of unions."""
    for depth, part in enumerate(loc):
        if isinstance(value, Mapping | list) and (
            part in value if isinstance(value, Mapping) else isinstance(part, int)
        ):
            value = value[part]
            yield str(part)
        elif depth == len(loc) - 1:  # a key that is missing
            yield str(part)


def _known_keys(annotation: Any, loc: tuple[Any, ...]) -> set[str]:
    """Collect the field names that are allowed at `loc` below `annotation`."""
    models = _models_in(annotation)
    for part in loc:
        step: list[type[BaseModel]] = []
        for model in models:
            if isinstance(part, str) and part in model.model_fields:
                step += _models_in(model.model_fields[part].annotation)
        models = step or models  # a list index or a union's tag names no field: stay
    return {info.alias or name for model in models for name, info in model.model_fields.items()}


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for arg in get_args(annotation) for model in _models_in(arg)]
