"""The cost of a round's answers, for the stop rule on money.

A ledger records what its teacher cost over all rounds. Each stage that sends requests to a teacher
writes the ledger's total before the round and now, to a file that no hash covers:

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
    """Record the cost of a block, however it ends; `before` is written once a round."""
    path = COST_LOG / f"{teacher}.json"
    before = json.loads(path.read_text())["before"] if path.exists() else ledger.spent

    def write() -> None:
        figures: dict[str, Any] = {"before": before, "after": ledger.spent}
        write_json(path, {"ledger": ledger.storage.name, **figures})

    write()  # so that the file exists after a kill; the ledger has the cost
    try:
        yield
    finally:
        write()
