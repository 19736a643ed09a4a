"""`--set train.kd.updates=300` and `--recipe`: edits of params.yaml that keep its comments."""

from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from ruamel.yaml import YAML

from flows import recipes
from tasks import params, schema
from tasks.params import ParamsError, nearest


def apply(root: Path, settings: list[str], recipe: str | None = None) -> list[str]:
    """Write a recipe, then `key=value` settings, into params.yaml; return a line for each change.

    The file is what a round is made from, whichever door it enters by, so a setting is an edit:
    git shows it, and `dvc repro` afterwards sees the same params.

    Raises:
        ParamsError: no such recipe, no `=`, a key that is not there, or a value that the schema
            refuses; the file is then untouched.
    """
    with _edited(root) as (document, changes):
        changes.extend(recipes.lay_over(document, recipes.read(root, recipe)) if recipe else [])
        changes.extend(change for setting in settings if (change := _set(document, setting)))
    return changes


def lay_over(root: Path, wished: BaseModel) -> list[str]:
    """Write what was set of a partial params.yaml into the whole; return a line for each change.

    Raises:
        ParamsError: the schema refuses the whole; the file is then untouched.
    """
    with _edited(root) as (document, changes):
        given = wished.model_dump(mode="json", by_alias=True, exclude_unset=True, exclude_none=True)
        changes.extend(recipes.lay_over(document, given))
    return changes


@contextmanager
def _edited(root: Path) -> Iterator[tuple[Any, list[str]]]:
    """Yield params.yaml and a list of changes; write the one if there is any of the other."""
    path, changes = root / params.PARAMS, list[str]()
    yaml = _as_it_is_written()
    document = yaml.load(path.read_text())
    yield document, changes
    schema.check(_plain(document))
    if changes:
        text = StringIO()
        yaml.dump(document, text)
        path.write_text(text.getvalue())


@contextmanager
def for_now(root: Path, settings: list[str], recipe: str | None = None) -> Iterator[list[str]]:
    """Apply a recipe and settings for the length of a block, then put params.yaml back."""
    path = root / params.PARAMS
    before = path.read_bytes()
    try:
        yield apply(root, settings, recipe)
    finally:
        path.write_bytes(before)


def _as_it_is_written() -> YAML:
    """Return a YAML that writes what it did not change as params.yaml has it."""
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 4096
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.brace_single_entry_mapping_in_flow_sequence = True
    return yaml


def _set(document: Any, setting: str) -> str | None:
    key, equals, text = setting.partition("=")
    if not equals:
        raise ParamsError(f"--set {setting}: expected key=value", mend="--set train.kd.updates=300")
    *parents, last = key.strip().split(".")
    place = document
    for depth, name in enumerate(parents):
        place = _step(place, name, ".".join(parents[: depth + 1]))
    if not isinstance(place, dict | list):
        raise ParamsError(f"{'.'.join(parents)} is a value, not a section", where="params.yaml")
    index: Any = int(last) if isinstance(place, list) and last.isdigit() else last
    value = YAML().load(text)  # keeps the style it is written in, such as [1, 2, 3]
    known_before = _has(place, index)
    old = place[index] if known_before else "(default)"
    if known_before and old == value:
        return None
    place[index] = value
    return f"{key}: {_shown(old)} -> {_shown(value)}"


def _step(place: Any, name: str, where: str) -> Any:
    index: Any = int(name) if isinstance(place, list) and name.isdigit() else name
    if not _has(place, index):
        known = place if isinstance(place, dict) else []
        raise ParamsError(
            f"{where} is not in params.yaml{nearest(name, map(str, known))}",
            mend="cohobate params --schema",
        )
    return place[index]


def _has(place: Any, index: Any) -> bool:
    return index in place if isinstance(place, dict) else index in range(len(place))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value


def _shown(value: Any) -> str:
    return str(_plain(value))
