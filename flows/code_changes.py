"""Changes of code between runs: which stages they touch, and what would run again for nothing else.

Comments and docstrings do not count (cohobate/code_fingerprint.py). An upgrade of Cohobate changes
code; what took long is not run again for that alone unless a person says so.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from cohobate.data.records import DEV
from cohobate.dvc_bridge import accepted_code, versioning
from cohobate.errors import UserError
from cohobate.progress import duration
from flows.plan import DEV_CHECKS, Planned, changed_code, plan
from flows.stage_seconds import STAGE_SECONDS

LONG = 1800.0
"""Seconds that the stages changed in code alone took, from which a round asks before it reruns."""


def refresh_fingerprints(root: Path) -> None:
    """Run the stage `code` in this process where files changed, so that DVC sees what it is to."""
    from tasks.__main__ import run_stage

    if any(stage.name == "code" for stage in versioning.stages(root)):
        versioning.reproduce(root, "code", run_stage)


def refresh_dev_checks(root: Path) -> None:
    """Run the stage `dev_checks` in this process, for phases that an earlier version trained."""
    from tasks.__main__ import run_stage

    known = any(stage.address == DEV_CHECKS for stage in versioning.stages(root))
    if known and (root / DEV).exists():
        versioning.reproduce(root, DEV_CHECKS, run_stage)


def check_reruns(root: Path, planned: Sequence[Planned]) -> None:
    """Refuse a round that would rerun long stages for a change of code alone.

    Raises:
        UserError: naming the stages, how long they took, and both ways on.
    """
    stages = [stage.address for stage in planned if stage.state == "code only"]
    path = root / STAGE_SECONDS
    seconds = json.loads(path.read_text()) if path.exists() else {}
    took = {stage: seconds.get(stage, {}).get("seconds", 0.0) for stage in stages}
    if sum(took.values()) < LONG:
        return
    slowest = sorted(took, key=lambda stage: -took[stage])
    times = ", ".join(f"{stage} ({duration(took[stage])})" for stage in slowest[:5])
    raise UserError(
        f"only code changed, and these stages would run again: {times}",
        where="cohobate run --dry-run names the modules",
        fix=f"cohobate accept {' '.join(slowest)}   (keeps their outputs), "
        "or cohobate run --rerun-code",
    )


def accept(root: Path, addresses: Sequence[str]) -> list[str]:
    """Keep the outputs of stages of which only the code changed; return their addresses.

    `addresses`: stages, or names of several (`train` for all its phases); none: all such stages.

    Raises:
        UserError: a stage is not known, or more than its code changed.
    """
    refresh_fingerprints(root)
    refresh_dev_checks(root)
    states = {stage.address: stage for stage in plan(root)}
    chosen = [a for a in states if not addresses or {a, a.partition("@")[0]} & set(addresses)]
    known = {name for address in states for name in (address, address.partition("@")[0])}
    if unknown := [name for name in addresses if name not in known]:
        raise UserError(
            f"no stage is called {unknown[0]!r}", where="dvc.yaml", fix="cohobate status"
        )
    for address in chosen:
        if addresses and states[address].state in ("new", "changed"):
            raise UserError(
                f"{address}: more than its code changed: {'; '.join(states[address].reasons)}",
                where="dvc.lock",
                fix=f"cohobate run --stage {address}",
            )
    changed = changed_code(root)
    accepted = [a for a in chosen if a in changed and states[a].state in ("code only", "follows")]
    accepted_code.accept(root, accepted)
    return accepted
