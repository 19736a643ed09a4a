"""What a round's answers cost, told to whoever decides whether there is a next round.

A ledger knows what its teacher ever cost, over all rounds. Here each stage that asks a teacher
notes, outside all that is hashed, what its ledger stood at before the round asked, and now:

    reports/spent/main.json     {"ledger": "5be1…", "before": 1.25, "after": 1.75}
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cohobate.backends.ledger import Ledger
from cohobate.data.records import REPORTS, write_json

COST_LOG = REPORTS / "spent"


@contextmanager
def log_cost(teacher: str, ledger: Ledger) -> Iterator[None]:
    """Note what the answers of a block cost, however it ends; `before` stands from run to run."""
    path = COST_LOG / f"{teacher}.json"
    before = json.loads(path.read_text())["before"] if path.exists() else ledger.spent

    def note() -> None:
        figures: dict[str, Any] = {"before": before, "after": ledger.spent}
        write_json(path, {"ledger": ledger.storage.name, **figures})

    note()  # what a kill cuts off from here on is still known to the ledger
    try:
        yield
    finally:
        note()
