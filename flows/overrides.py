"""`--set train.kd.updates=300` and `--recipe`: edits of params.yaml that keep its comments."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from io import StringIO
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.scalarstring import DoubleQuotedScalarString

from cohobate import params
from cohobate.params import ParamsError, nearest
from flows import params_schema, recipes

Recipes = str | Sequence[str] | None
"""Paths of the recipes to write: one, several or none."""
_REPLACED = f"{recipes.SECTION}.replaced"


def apply(root: Path, settings: list[str], recipe: Recipes = None) -> list[str]:
    """Write recipes, then `key=value` settings, into params.yaml; return a line for each change.

    A setting edits the file, because every round is made from the file: git shows the change, and
    `dvc repro` then uses the same params. Recipes replace those before.

    Raises:
        ParamsError: no such recipe, two that do not go together, no `=`, a key that is not there,
            or a value that the schema refuses; the file is then untouched.
    """
    with _edited(root) as (document, changes):
        if recipe:
            recipes.apply(document, root, [recipe] if isinstance(recipe, str) else recipe)
        for setting in settings:
            _set(document, setting)
    return changes


def apply_model(root: Path, changes_to_make: BaseModel) -> list[str]:
    """Write the fields that are set in a partial model into params.yaml; return the changes.

    Raises:
        ParamsError: the schema refuses the whole; the file is then untouched.
    """
    with _edited(root) as (document, changes):
        overlay = changes_to_make.model_dump(
            mode="json", by_alias=True, exclude_unset=True, exclude_none=True
        )
        recipes.merge_overlay(document, overlay)
    return changes


@contextmanager
def _edited(root: Path) -> Iterator[tuple[Any, list[str]]]:
    """Yield params.yaml and an empty list; then list what was changed, and write it if anything."""
    path, changes = root / params.PARAMS, list[str]()
    yaml = _round_trip_yaml()
    document = yaml.load(written_before := path.read_text())
    before = _plain(document)
    yield document, changes
    # before the check, which sees the document as it will be written
    _write_out_defaults(document, root / "dvc.yaml")
    params_schema.check(after := _plain(document))
    changes.extend(_differences(before, after))
    if changes:
        text = _written(yaml, document, after)
        path.write_text(text)
        if "#" not in text and "#" in written_before:
            changes.append("comments: removed, as the file would have read otherwise with them")


def _written(yaml: YAML, document: Any, plain: dict[str, Any]) -> str:
    """Return the text of params.yaml; without its comments where they would break it."""
    for one in (document, plain):
        text = StringIO()
        yaml.dump(one, text)
        with suppress(YAMLError):  # a comment that lost its place can swallow the end of a line
            if _plain(YAML().load(text.getvalue())) == plain:
                break
    return text.getvalue()


def _write_out_defaults(document: Any, graph: Path) -> None:
    """Write the defaults of the keys that dvc.yaml reads: DVC knows params.yaml alone."""
    read = re.findall(r"\$\{(\w+)\.(\w+)\}", graph.read_text()) if graph.exists() else []
    kinds = params_schema.sections()
    for name, key in read:
        section = document.get(name)
        if name in kinds and isinstance(section, dict) and key not in section:
            default = getattr(params.validated(kinds[name], _plain(section), name), key, None)
            if default is not None:
                section[key] = default


@contextmanager
def temporarily(root: Path, settings: list[str], recipe: Recipes = None) -> Iterator[list[str]]:
    """Apply recipes and settings for a block, then restore params.yaml."""
    path = root / params.PARAMS
    before = path.read_bytes()
    try:
        yield apply(root, settings, recipe)
    finally:
        path.write_bytes(before)


def _round_trip_yaml() -> YAML:
    """Return a YAML object that keeps comments and the style of unchanged values."""
    yaml = YAML()
    yaml.preserve_quotes = True
    # long lines are not wrapped: only changed keys show in a diff
    yaml.width = 4096
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.brace_single_entry_mapping_in_flow_sequence = True
    return yaml


def _set(document: Any, setting: str) -> None:
    key, equals, text = setting.partition("=")
    if not equals:
        raise ParamsError(f"--set {setting}: expected key=value", fix="--set train.kd.updates=300")
    *parents, last = key.strip().split(".")
    section = document
    for depth, name in enumerate(parents):
        section = _step(section, name, ".".join(parents[: depth + 1]))
    if not isinstance(section, dict | list):
        raise ParamsError(f"{'.'.join(parents)} is a value, not a section", where="params.yaml")
    index: Any = int(last) if isinstance(section, list) and last.isdigit() else last
    value = _quoted(YAML().load(text))  # keeps the style it is written in, such as [1, 2, 3]
    # an equal value stays as it is written, with its comment
    if not _has(section, index) or section[index] != value:
        section[index] = value


def _quoted(value: Any) -> Any:
    """Quote the strings with a colon, such as addresses: DVC's parser refuses them in {} and []."""
    if isinstance(value, dict | list):
        for index in value if isinstance(value, dict) else range(len(value)):
            value[index] = _quoted(value[index])
    return DoubleQuotedScalarString(value) if isinstance(value, str) and ":" in value else value


def _step(place: Any, name: str, where: str) -> Any:
    index: Any = int(name) if isinstance(place, list) and name.isdigit() else name
    if not _has(place, index):
        known = place if isinstance(place, dict) else []
        raise ParamsError(
            f"{where} is not in params.yaml{nearest(name, map(str, known))}",
            fix="cohobate params --schema",
        )
    return place[index]


def _has(place: Any, index: Any) -> bool:
    return index in place if isinstance(place, dict) else index in range(len(place))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value


def _differences(before: Any, after: Any, where: str = "") -> Iterator[str]:
    """Yield a line for each key that is not the same in two plain documents."""
    for name in [*before, *(name for name in after if name not in before)]:
        key, old, new = f"{where}{name}", before.get(name), after.get(name)
        if name not in after:
            yield f"{key}: removed"
        elif isinstance(old, dict) and isinstance(new, dict) and key != _REPLACED:
            yield from _differences(old, new, f"{key}.")
        elif old != new and key != _REPLACED:
            yield f"{key}: {_shown(old, name in before)} -> {_shown(new)}"


def _shown(value: Any, given: bool = True) -> str:
    if not given:
        return "(default)"
    return "{…}" if isinstance(value, dict) else str(value)
