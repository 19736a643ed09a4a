"""How long each stage took when it last ran: for people, and outside everything that is hashed."""

import json
from pathlib import Path

from flows.placement import StageResult

STAGE_SECONDS = Path("reports/stages.json")


def record(root: Path, results: dict[str, StageResult]) -> None:
    """Merge the seconds of the stages that ran into `reports/stages.json`."""
    path = root / STAGE_SECONDS
    known = json.loads(path.read_text()) if path.exists() else {}
    for address, result in results.items():
        if result.outcome == "ran":
            known[address] = {
                "seconds": round(result.seconds, 1),
                "own_seconds": round(result.body_seconds, 1),  # the rest is DVC's: hash, copy, push
                "worker": result.worker,
            }
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(known, indent=2) + "\n")
