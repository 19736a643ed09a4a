"""params.yaml as frozen typed sections; an unknown key is refused with the nearest known name."""

import difflib
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from cohobate.errors import UserError

PARAMS = Path("params.yaml")


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


def load(path: Path = PARAMS) -> dict[str, Any]:
    """Read params.yaml as plain values (safe YAML: no object is ever constructed)."""
    try:
        return parse(path.read_text(), str(path))
    except FileNotFoundError:
        raise ParamsError(
            "there is no params.yaml here", where=str(path), fix="run from the project's root"
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
            "\n".join(lines), where=f"params.yaml, section {where}", fix="cohobate params --schema"
        ) from None


def nearest(name: str, known: typing.Iterable[str]) -> str:
    """Return `; did you mean 'x'?`, or nothing when no known name is near."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def value_at(document: Mapping[str, Any], keys: list[str]) -> Any:
    """Return the value under nested keys; a number in `keys` is a position in a list.

    Raises:
        ParamsError: a key is missing.
    """
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
