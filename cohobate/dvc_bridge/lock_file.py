"""dvc.lock as a file: in which order its entries stand, and what is said where it cannot be read.

The order is that in which one `dvc repro` would have written them. DVC appends a stage when it
ends, so stages that run side by side land in whatever order they end in; the file is a result, and
a result must not depend on a race.
"""

import re
from collections.abc import Collection
from pathlib import Path

from cohobate.errors import UserError

_STAGES = re.compile(r"(.*?^stages:\n)(.*?)(^\S.*)?", re.MULTILINE | re.DOTALL)
_ENTRY = re.compile(r"^(?=  [^\s#-])", re.MULTILINE)
"""Where an entry begins, below `stages:`: all that is in it stands further right."""


def place(root: Path, address: str, later: Collection[str]) -> None:
    """Move the entry of `address`, which is new, before the first of those in `later`.

    Hold DVC's lock of the repository.
    """
    lock, new = root / "dvc.lock", root / ".dvc/tmp/dvc.lock"
    found = lock.read_text("utf-8") if lock.exists() else ""
    if (placed := in_order(found, address, later)) != found:
        new.write_text(placed, "utf-8")
        new.replace(lock)


def in_order(lock: str, address: str, later: Collection[str]) -> str:
    """Return dvc.lock's text with the entry of `address` before the first of those in `later`.

    Entries are moved as text: to read and write the file as YAML, with all that people may have
    noted in it, takes DVC .3 s in a default round.
    """
    if not (parts := _STAGES.fullmatch(lock)):
        return lock
    head, body, rest = parts.groups(default="")
    _, *entries = _ENTRY.split(body)
    names = [entry.partition(":\n")[0].strip(" '\"") for entry in entries]
    before = next((at for at, name in enumerate(names) if name in later), len(names))
    if address not in names[before:]:
        return lock
    entries.insert(before, entries.pop(names.index(address)))
    return head + "".join(entries) + rest


def unreadable(path: Path, why: str) -> UserError:
    """Return the error of dvc.lock, or another YAML file, that DVC refuses."""
    merging = any(
        line.startswith("<<<<<<< ") for line in path.read_text("utf-8", "replace").split("\n")
    )
    why = "it has conflicts of a merge" if merging else " ".join(why.split())
    fix = f"look at {path.name}; git diff {path.name}"
    if path.name == "dvc.lock":
        fix = "git checkout HEAD -- dvc.lock   (or rm dvc.lock: DVC's cache has what had run)"
    return UserError(f"{path.name} cannot be read: {why}", where=str(path), fix=fix)
