"""What a round would run, and why, without running it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cohobate.dvc_bridge import versioning
from cohobate.dvc_bridge.accepted_code import CODE, locked_code

DEV_CHECKS = "dev_checks"
State = Literal["up to date", "new", "changed", "code only", "follows"]


@dataclass(frozen=True)
class Planned:
    """One stage as `--dry-run` and `status` show it."""

    address: str
    state: State
    """`new`: it has not run here. `changed`: its inputs or params changed. `code only`: nothing but
    its code changed. `follows`: only something upstream changed."""
    reasons: tuple[str, ...]


def plan(root: Path, only: str | None = None) -> list[Planned]:
    """Return each stage in order with its state and the reasons DVC gives.

    A new or changed stage is run, or restored where the run-cache knows its inputs. One that
    follows is left alone if what it reads comes out the same.
    """
    from flows.selection import select_stages

    changed, known = versioning.reasons(root), versioning.locked_stages(root)
    code = changed_code(root)
    planned: dict[str, Planned] = {}
    for node in select_stages(versioning.stages(root), only):
        reasons = [r for r in changed.get(node.address, ()) if not r.startswith(f"{CODE}/")]
        reasons = [r for r in reasons if not _of_earlier_version(root, node.address, r)]
        modules = code.get(node.address, ())
        upstream = {up: planned[up].state for up in node.upstream if up in planned and up != "code"}
        moved = {up: state for up, state in upstream.items() if state != "up to date"}
        if moved.get(DEV_CHECKS) == "new":  # of an earlier version, which had no such stage
            del moved[DEV_CHECKS]
        state: State
        if node.address not in known:
            state, why = "new", ["has not run here"]
        elif reasons:
            state, why = "changed", [*reasons, *modules]
        elif modules and set(moved.values()) <= {"code only"}:
            state, why = "code only", [*modules]
        elif modules or moved:
            state, why = "follows", [*(f"{up} may change" for up in moved), *modules]
        else:
            state, why = "up to date", []
        planned[node.address] = Planned(node.address, state, tuple(why))
    return [*planned.values()]


def _of_earlier_version(root: Path, address: str, reason: str) -> bool:
    """Say whether a reason is only that a phase did not depend on dev rows in earlier versions.

    A phase that has `dev` now has changed params too.
    """
    below = f"data/{DEV_CHECKS}/"
    if not reason.startswith(below):
        return False
    deps = (versioning.lock_entry(root, address) or {}).get("deps", [])
    return not any(dep["path"].startswith(below) for dep in deps)


def changed_code(root: Path) -> dict[str, tuple[str, ...]]:
    """Return, for each stage whose code is not what it last ran with, the modules that changed."""
    changes: dict[str, tuple[str, ...]] = {}
    for address, before in locked_code(root).items():
        from tasks.code.stage import code_of

        now = code_of(address.partition("@")[0], root)
        if before is None:
            changes[address] = ("its code (what it was is not in DVC's cache)",)
        elif now != before:
            changes[address] = _differing(before, now)
    return changes


def _differing(before: Mapping[str, str], now: Mapping[str, str]) -> tuple[str, ...]:
    names = sorted(before.keys() | now.keys())
    return tuple(name for name in names if before.get(name) != now.get(name))
