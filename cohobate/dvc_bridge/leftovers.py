"""Outputs of stages that are gone: a phase or a teacher that params.yaml no longer has.

DVC leaves them in the workspace, and a stage that reads the folder above them would read them too:
an old phase would be a row of the report, and the answers of an old teacher would be learnt from.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

from cohobate.dvc_bridge import versioning
from cohobate.dvc_bridge.versioning import StageNode


def drop_leftovers(root: Path, nodes: Sequence[StageNode]) -> list[str]:
    """Delete what dvc.lock says that stages wrote which are none of `nodes`; return the paths.

    Only outputs that DVC's cache has are in dvc.lock, so the stage is restored when it comes back.
    """
    made = {Path(out) for node in nodes for out in node.outs}
    addresses = {node.address for node in nodes}
    dropped = []
    for address in versioning.locked_stages(root):
        if address in addresses:
            continue
        for out in (versioning.lock_entry(root, address) or {}).get("outs", []):
            path = Path(out["path"])
            if not (root / path).exists() or any(path in (m, *m.parents) for m in made):
                continue
            if (root / path).is_dir():
                shutil.rmtree(root / path)
            else:
                (root / path).unlink()
            dropped.append(path.as_posix())
    return dropped
