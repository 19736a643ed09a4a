"""Duration of each stage's last run, in `reports/stages.json`, which no hash covers."""

import json
import threading
from pathlib import Path

from cohobate.data.records import write_json
from flows.placement import StageResult

STAGE_SECONDS = Path("reports/stages.json")
_writing = threading.Lock()


def record(root: Path, address: str, result: StageResult) -> None:
    """Write the duration of a stage that ran, at once: the round may be killed before its end."""
    if result.outcome != "ran":
        return
    path = root / STAGE_SECONDS
    with _writing:  # stages end in parallel
        known = json.loads(path.read_text()) if path.exists() else {}
        known[address] = {
            "seconds": round(result.seconds, 1),
            "own_seconds": round(result.body_seconds, 1),  # the rest is DVC's: hash, copy, push
            "worker": result.worker,
        }
        write_json(path, known)
