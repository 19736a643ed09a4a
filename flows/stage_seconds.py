"""How long each stage took when it last ran: for people, and outside everything that is hashed."""

import json
import threading
from pathlib import Path

from cohobate.data.records import write_json
from flows.placement import StageResult

STAGE_SECONDS = Path("reports/stages.json")
_writing = threading.Lock()


def record(root: Path, address: str, result: StageResult) -> None:
    """Add a stage that ran to `reports/stages.json`, at once: the round may die before its end."""
    if result.outcome != "ran":
        return
    path = root / STAGE_SECONDS
    with _writing:  # stages end side by side
        known = json.loads(path.read_text()) if path.exists() else {}
        known[address] = {
            "seconds": round(result.seconds, 1),
            "own_seconds": round(result.body_seconds, 1),  # the rest is DVC's: hash, copy, push
            "worker": result.worker,
        }
        write_json(path, known)
