"""Time and money that a round cost, from the files of its worktree."""

import json
from pathlib import Path
from typing import Any

from cohobate.backends.cost_log import COST_LOG
from flows.round_history import RoundRecord
from flows.stage_seconds import STAGE_SECONDS


def totals(worktree: Path, last: RoundRecord | None) -> dict[str, Any]:
    """Return `seconds`, `money` and `ledgers` of a round's record.

    Costs between two rounds, such as those of a run in place with the same teacher or of an attempt
    that died on a node, count for the later round.
    """
    path = worktree / STAGE_SECONDS
    stages = json.loads(path.read_text()) if path.exists() else {}
    known = last.ledgers if last else {}
    now, money = dict(known), 0.0
    for note in sorted((worktree / COST_LOG).glob("*.json")):
        figures = json.loads(note.read_text())
        ledger, after = figures["ledger"], figures["after"]
        money += max(0.0, after - now.get(ledger, figures["before"]))
        now[ledger] = max(after, now.get(ledger, 0.0))
    seconds = sum(stage["seconds"] for stage in stages.values())
    return {"seconds": round(seconds, 1), "money": round(money, 6), "ledgers": now}
