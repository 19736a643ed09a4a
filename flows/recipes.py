"""Recipes: overlays on params.yaml in `recipes/`, each a known way to distil.

A recipe contains only what differs. Mappings are merged key by key, except that one with another
`type` or `method` replaces the old one as a whole; `null` deletes; all other values replace. The
values that a recipe replaced are kept in the section `recipe` of params.yaml and restored before
the next recipe: no recipe builds on another. Several recipes are written together where no key has
two values. To add one: a file whose first line is a comment that describes it.

What phases have in common is written once, and completes each phase that the recipe names:

    train:
      defaults: {updates: 90, batch_size: 32, learning_rate: 2.0e-3}
      sft: {method: sft, from: init_student, ...}
      gkd: {method: on_policy, learning_rate: 5.0e-4, ...}

params.yaml has every phase in full: DVC sees a change of a default in each phase that it is of.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.error import YAMLError

from cohobate.params import ParamsError, nearest

FOLDER = Path("recipes")
NONE = "none"
SECTION = "recipe"
DEFAULTS = "defaults"
"""Key of a recipe's sections of phases: what its phases have in common."""
PHASES = ("assist", "train")
"""Sections that have phases."""
_KINDS = ("type", "method")


def listed(root: Path) -> dict[str, str]:
    """Return the recipes' paths, relative to the project's root, and the first line of each."""
    paths = sorted((root / FOLDER).glob("*.yaml"))
    return {
        path.relative_to(root).as_posix(): path.read_text().partition("\n")[0].removeprefix("# ")
        for path in paths
    }


def apply(document: Any, root: Path, recipes: Sequence[str]) -> None:
    """Restore in a params.yaml what the recipes before replaced, then write these into it.

    Args:
        document: the params.yaml, changed in place.
        root: the project's folder.
        recipes: paths of the recipes; `none` alone only restores.

    Raises:
        ParamsError: there is no such file, it is not a mapping of sections, or two recipes give a
            key different values.
    """
    names = [*dict.fromkeys(recipes)]
    if NONE in names and len(names) > 1:
        raise ParamsError(f"--recipe {NONE} goes with no other recipe", fix="cohobate recipes")
    overlays = {} if names == [NONE] else {name: read(root, name) for name in names}
    for key, value in (document.get(SECTION) or {}).get("replaced", {}).items():
        _restore(document, key.split("."), value)
    replaced = merge_overlay(document, _together(overlays, document))
    document[SECTION] = {"files": [*overlays], "replaced": replaced} if overlays else {}


def files_of(document: Mapping[str, Any]) -> list[str]:
    """Return the recipes that a params.yaml was last written with."""
    section = document.get(SECTION) or {}
    # versions before several could be written together had one `file`
    one = section.get("file")
    return [one] if one else [*section.get("files", ())]


def read(root: Path, recipe: str) -> Any:
    """Return a recipe as a document of its own, with its comments and its phases in full.

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
    for section in PHASES:
        _complete(document.get(section), f"{recipe}: {section}.{DEFAULTS}")
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


def _complete(phases: Any, where: str) -> None:
    """Give each phase of a recipe the defaults that it does not set itself, in place."""
    if not isinstance(phases, dict) or DEFAULTS not in phases:
        return
    defaults = phases.pop(DEFAULTS)
    if not isinstance(defaults, dict):
        raise ParamsError("expected a mapping of a phase's keys", where=where)
    for phase in phases.values():
        if isinstance(phase, dict):
            for key, value in defaults.items():
                # a copy, else YAML would write the second one as an alias of the first; and in
                # the order of the defaults, behind what is the phase's own
                phase[key] = phase.pop(key) if key in phase else copy.deepcopy(value)


def _together(overlays: Mapping[str, Any], document: Any) -> Any:
    """Return one overlay of several.

    Raises:
        ParamsError: two of them give a key different values.
    """
    for one, other in combinations(overlays, 2):
        if keys := [*_conflicts(overlays[one], overlays[other], document)]:
            raise ParamsError(
                f"{one} and {other} set {', '.join(keys)} to different values",
                where="--recipe",
                fix=f"cohobate run --recipe {one}   (and --set KEY=VALUE for keys of the other)",
            )
    whole: Any = {}
    for overlay in overlays.values():
        _update(whole, overlay)
    return whole


def _conflicts(one: Any, other: Any, old: Any, where: str = "") -> Iterator[str]:
    """Yield the dotted keys to which two overlays give different values."""
    for name in one:
        if name not in other:
            continue
        key, ours, theirs = f"{where}{name}", one[name], other[name]
        below = old.get(name) if isinstance(old, dict) else None
        if not isinstance(ours, dict) or not isinstance(theirs, dict):
            if ours != theirs:
                yield key
        elif isinstance(below, dict) and _of_one_kind(below, ours) != _of_one_kind(below, theirs):
            yield key  # one replaces the whole mapping, the other edits it
        else:
            yield from _conflicts(ours, theirs, below, f"{key}.")


def _update(whole: Any, overlay: Any) -> None:
    for name, value in overlay.items():
        if isinstance(value, dict) and isinstance(whole.get(name), dict):
            _update(whole[name], value)
        else:
            whole[name] = value


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
