"""Recipes: overlays on params.yaml in `recipes/`, each a known way to distil.

A recipe contains only what differs. Mappings are merged key by key, except that one with another
`type` or `method` replaces the old one as a whole; `null` deletes; all other values replace. The
values that a recipe replaced are kept in the section `recipe` of params.yaml and restored before
the next recipe: no recipe builds on another. To add one: a file whose first line is a comment that
describes it.
"""

from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.error import YAMLError

from cohobate.params import ParamsError, nearest

FOLDER = Path("recipes")
NONE = "none"
SECTION = "recipe"
_KINDS = ("type", "method")


def listed(root: Path) -> dict[str, str]:
    """Return the recipes' paths, relative to the project's root, and the first line of each."""
    paths = sorted((root / FOLDER).glob("*.yaml"))
    return {
        path.relative_to(root).as_posix(): path.read_text().partition("\n")[0].removeprefix("# ")
        for path in paths
    }


def apply(document: Any, root: Path, recipe: str) -> None:
    """Restore in a params.yaml what the recipe before replaced, then write this one into it.

    Args:
        document: the params.yaml, changed in place.
        root: the project's folder.
        recipe: path of the recipe; `none` restores alone.

    Raises:
        ParamsError: there is no such file, or it is not a mapping of sections.
    """
    overlay = {} if recipe == NONE else read(root, recipe)
    for key, value in (document.get(SECTION) or {}).get("replaced", {}).items():
        _restore(document, key.split("."), value)
    replaced = merge_overlay(document, overlay)
    document[SECTION] = {} if recipe == NONE else {"file": recipe, "replaced": replaced}


def read(root: Path, recipe: str) -> Any:
    """Return a recipe as a document of its own, with its comments.

    Raises:
        ParamsError: there is no such file, or it is not a mapping of sections.
    """
    path = root / recipe
    if not path.is_file():
        raise ParamsError(
            f"there is no recipe {recipe}{nearest(recipe, listed(root))}", fix="cohobate recipes"
        )
    try:
        document = YAML().load(path.read_text())
    except YAMLError as error:
        raise ParamsError(f"not YAML: {error}", where=recipe) from error
    if not isinstance(document, dict):
        raise ParamsError("expected a mapping of sections", where=recipe)
    return document


def merge_overlay(document: Any, overlay: Any, where: str = "") -> dict[str, Any]:
    """Write an overlay into a document, in place; return what it replaced, by dotted key."""
    replaced: dict[str, Any] = {}
    for name, value in overlay.items():
        key, old = f"{where}{name}", document.get(name)
        if isinstance(value, dict) and isinstance(old, dict) and _of_one_kind(old, value):
            replaced |= merge_overlay(old, value, f"{key}.")
        elif value is None and name in document:
            replaced[key] = document.pop(name)
        elif value is not None and (name not in document or old != value):
            replaced[key] = old
            document[name] = value
    return replaced


def _restore(document: Any, path: list[str], value: Any) -> None:
    """Set the value at a path as it was; nothing where the sections above it no longer exist."""
    *parents, last = path
    for name in parents:
        document = document.get(name)
        if not isinstance(document, dict):
            return
    if value is None:
        document.pop(last, None)
        if not document and isinstance(document, CommentedMap):
            # else a comment beside the key would come before the braces, which is no YAML
            document.fa.set_flow_style()
    else:
        document[last] = value


def _of_one_kind(old: Any, new: Any) -> bool:
    return all(old.get(kind) == new[kind] for kind in _KINDS if kind in new)
