"""The code with which each stage last ran, and taking outputs over after the code has changed."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cohobate.dvc_bridge.versioning import locked_repo
from cohobate.errors import UserError

CODE = "data/code"
"""Folder with the fingerprints of each stage's code; the stage `code` writes it."""


def locked_code(root: Path) -> dict[str, dict[str, str] | None]:
    """Return, for each stage that dvc.lock knows, the fingerprints of the code it last ran with.

    By module; None where DVC's cache no longer has them. Stages that depend on no fingerprints
    are left out.
    """
    with locked_repo(root) as repo:
        stages = [stage for stage in repo.index.stages if hasattr(stage, "name")]
        deps = {stage.name: _code_dependency(stage) for stage in stages}
        known = {name: dep for name, dep in deps.items() if dep is not None and dep.hash_info}
        return {name: _cached(repo, dep.hash_info.value) for name, dep in known.items()}


def accept(root: Path, addresses: Sequence[str]) -> None:
    """Record in dvc.lock that the outputs of stages are as their present inputs and code make them.

    Nothing runs: it is DVC's `commit`, for stages whose code was changed by an edit that a person
    vouches for.

    Raises:
        UserError: an output is not here.
    """
    with locked_repo(root) as repo:
        for address in addresses:
            for stage in repo.stage.collect(address):
                if absent := [str(out) for out in stage.outs if not out.exists]:
                    raise UserError(
                        f"{address} has no output here to accept",
                        where=absent[0],
                        fix=f"dvc pull {absent[0]}, or cohobate run --stage {address}",
                    )
            # force: DVC would ask at the terminal whether to take the changed dependency
            repo.commit(address, force=True)


def _code_dependency(stage: Any) -> Any:
    path = f"{CODE}/{stage.name.partition('@')[0]}.json"
    return next((dep for dep in stage.deps if dep.def_path == path), None)


def _cached(repo: Any, md5: str) -> dict[str, str] | None:
    path = Path(repo.cache.local.oid_to_path(md5))
    if not path.exists():
        return None
    content: dict[str, str] = json.loads(path.read_bytes())
    return content
