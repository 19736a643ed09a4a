"""Outputs of stages that no longer exist: of a phase or a teacher that params.yaml does not have.

DVC leaves them in the workspace, and a stage that reads the folder above them would read them too:
an old phase would be a row of the report, and the student would train on an old teacher's answers.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

from cohobate.dvc_bridge import versioning
from cohobate.dvc_bridge.versioning import StageNode


def drop_leftovers(root: Path, nodes: Sequence[StageNode]) -> list[str]:
    """Delete outputs in dvc.lock of stages that are not among `nodes`; return their paths.

    DVC's cache has every output in dvc.lock: a stage that comes back is restored.
    """
    current = {Path(out) for node in nodes for out in node.outs}
    addresses = {node.address for node in nodes}
    dropped = []
    for address in versioning.locked_stages(root):
        if address in addresses:
            continue
        for out in (versioning.lock_entry(root, address) or {}).get("outs", []):
            path = Path(out["path"])
            # a present output may lie at or below an old one: that stays
            if not (root / path).exists() or any(path in (c, *c.parents) for c in current):
                continue
            if (root / path).is_dir():
                shutil.rmtree(root / path)
            else:
                (root / path).unlink()
            dropped.append(path.as_posix())
    return dropped
