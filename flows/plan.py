"""What a round would do, and why, without doing it."""

from dataclasses import dataclass
from pathlib import Path

from cohobate.dvc_bridge import versioning


@dataclass(frozen=True)
class Planned:
    """One stage as `--dry-run` and `status` see it."""

    address: str
    state: str
    """`up to date`, `new` where it has not run here, `changed`, or `follows` where only something
    upstream changed."""
    reasons: tuple[str, ...]


def plan(root: Path, only: str | None = None) -> list[Planned]:
    """Return each stage in order with its state and the reasons DVC gives.

    A new or changed stage is run, or restored where the run-cache knows its inputs. One that
    follows is left alone if what it reads comes out the same.
    """
    from flows.selection import wanted

    changed, known = versioning.reasons(root), versioning.locked_stages(root)
    planned: dict[str, Planned] = {}
    for node in wanted(versioning.stages(root), only):
        moved = [up for up in node.upstream if up in planned and planned[up].state != "up to date"]
        if node.address not in known:
            state, why = "new", ["has not run here"]
        elif node.address in changed:
            state, why = "changed", changed[node.address]
        elif moved:
            state, why = "follows", [f"{up} may change" for up in moved]
        else:
            state, why = "up to date", []
        planned[node.address] = Planned(node.address, state, tuple(why))
    return [*planned.values()]
