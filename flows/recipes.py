"""Recipes: overlays on params.yaml in `recipes/`, each a known way to distil.

A recipe says only what differs. Mappings are merged, key by key; one whose `type` or `method` is
another than the one in place takes its place whole; `null` deletes; all else replaces. To add one:
a file whose first line says in a comment what it is.
"""

from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from tasks.params import ParamsError, nearest

FOLDER = Path("recipes")
_KINDS = ("type", "method")


def listed(root: Path) -> dict[str, str]:
    """Return the recipes' paths, relative to the project's root, and the first line of each."""
    found = sorted((root / FOLDER).glob("*.yaml"))
    return {
        path.relative_to(root).as_posix(): path.read_text().partition("\n")[0].removeprefix("# ")
        for path in found
    }


def read(root: Path, recipe: str) -> Any:
    """Return a recipe as a document of its own, with its comments.

    Raises:
        ParamsError: there is no such file, or it is not a mapping of sections.
    """
    path = root / recipe
    if not path.is_file():
        raise ParamsError(
            f"there is no recipe {recipe}{nearest(recipe, listed(root))}", mend="cohobate recipes"
        )
    try:
        document = YAML().load(path.read_text())
    except YAMLError as error:
        raise ParamsError(f"not YAML: {error}", where=recipe) from error
    if not isinstance(document, dict):
        raise ParamsError("expected a mapping of sections", where=recipe)
    return document


def lay_over(document: Any, overlay: Any, where: str = "") -> list[str]:
    """Write an overlay into a document, in place; return a line for each change."""
    changes: list[str] = []
    for name, value in overlay.items():
        key, old = f"{where}{name}", document.get(name)
        if value is None:
            if name in document:
                del document[name]
                changes.append(f"{key}: removed")
        elif isinstance(value, dict) and isinstance(old, dict) and _of_one_kind(old, value):
            changes += lay_over(old, value, f"{key}.")
        elif name not in document or old != value:
            changes.append(f"{key}: {_shown(old)} -> {_shown(value)}")
            document[name] = value
    return changes


def _shown(value: Any) -> str:
    if value is None:
        return "(none)"
    return "{…}" if isinstance(value, dict) else str(value)


def _of_one_kind(old: Any, new: Any) -> bool:
    return all(old.get(kind) == new[kind] for kind in _KINDS if kind in new)
