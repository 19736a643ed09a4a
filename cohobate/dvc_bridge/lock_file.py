"""dvc.lock as a text file: the order of its entries, and the error where it cannot be read.

DVC appends the entry of a stage when the stage ends, so entries of stages that run in parallel come
in the order in which they happen to end. The file is a result of the round and must not depend on
that race: at the end of a round its entries are sorted as one `dvc repro` would have written them.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from cohobate.errors import UserError

_STAGES = re.compile(r"(.*?^stages:\n)(.*?)(^\S.*)?", re.MULTILINE | re.DOTALL)
_ENTRY = re.compile(r"^(?=  [^\s#-])", re.MULTILINE)
"""Where an entry begins, below `stages:`: all lines inside it are indented further."""


def sort_entries(root: Path, addresses: Sequence[str]) -> None:
    """Sort the entries of dvc.lock in the order of `addresses`; hold DVC's lock meanwhile."""
    lock, new = root / "dvc.lock", root / ".dvc/tmp/dvc.lock"
    text = lock.read_text("utf-8") if lock.exists() else ""
    if (ordered := in_order(text, addresses)) != text:
        # renamed into place: a kill leaves the old order or the new
        new.write_text(ordered, "utf-8")
        new.replace(lock)


def in_order(lock: str, addresses: Sequence[str]) -> str:
    """Return the text of dvc.lock with its entries in the order of `addresses`.

    An entry of no address, such as that of a phase that params.yaml no longer has, keeps its
    position. Entries are moved as text: to parse and write the file as YAML, with the comments that
    people may have added, takes DVC 0.3 s in a default round.
    """
    if not (parts := _STAGES.fullmatch(lock)):
        return lock
    head, body, rest = parts.groups(default="")
    preamble, *entries = _ENTRY.split(body)
    rank = {address: number for number, address in enumerate(addresses)}
    # the first line of an entry is its address, which YAML may put in quotes
    names = [entry.partition(":\n")[0].strip(" '\"") for entry in entries]
    positions = [position for position, name in enumerate(names) if name in rank]
    ordered = sorted(positions, key=lambda position: rank[names[position]])
    result = list(entries)
    # known entries take each other's positions; all others stay where they are
    for position, source in zip(positions, ordered, strict=True):
        result[position] = entries[source]
    return head + preamble + "".join(result) + rest


def unreadable(path: Path, reason: str) -> UserError:
    """Return the error of dvc.lock, or of another YAML file, that DVC cannot read."""
    text = path.read_text("utf-8", "replace")
    in_conflict = any(line.startswith("<<<<<<< ") for line in text.split("\n"))
    reason = "it contains merge conflicts" if in_conflict else " ".join(reason.split())
    fix = f"correct {path.name}; git diff {path.name} shows what changed"
    if path.name == "dvc.lock":
        fix = (
            "git checkout HEAD -- dvc.lock   (or rm dvc.lock: DVC restores outputs from its cache)"
        )
    return UserError(f"{path.name} cannot be read: {reason}", where=str(path), fix=fix)
