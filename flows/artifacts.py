"""What the Prefect UI shows of a stage and of a round."""

import json
import re
import time
from pathlib import Path
from typing import Any, cast
from uuid import UUID

from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)

from flows.placement import StageResult
from flows.round_history import RoundRecord, tag_of
from tasks.progress import Advance

_EVERY_SECONDS = 2.0


class ProgressBar:
    """A stage's progress artifact: made at the first event, moved every other second."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._artifact: UUID | None = None
        self._told = 0.0

    def show(self, event: Advance) -> None:
        """Move the bar to where `event` says the stage is."""
        now, finished = time.monotonic(), event.done >= event.total
        if now - self._told < _EVERY_SECONDS and not finished:
            return
        self._told = now
        percent = 100 * event.done / max(event.total, 1)
        text = f"{event.what}: {event.done}/{event.total}"
        text += "" if finished else f", {event.eta_seconds:.0f} s left"
        text += f"; {event.note}" if event.note else ""
        if self._artifact is None:
            key = _key(self._address, "progress")
            self._artifact = cast(UUID, create_progress_artifact(percent, key, text))
        else:
            update_progress_artifact(self._artifact, percent, text)


def show_stage(address: str, result: StageResult) -> None:
    """Publish a stage's outcome and its `summary.json` as a table."""
    rows = [
        {"figure": "outcome", "value": result.outcome},
        {"figure": "seconds", "value": f"{result.seconds:.1f}"},
        *({"figure": name, "value": _short(value)} for name, value in result.figures.items()),
    ]
    create_table_artifact(rows, _key(address, "summary"), f"What {address} came to")


def show_funnel(root: Path) -> None:
    """Publish the filter funnel: how many rows each filter saw and dropped, and why."""
    funnel = root / "data/filter/funnel.json"
    if not funnel.exists():
        return
    rows = [
        {
            "filter": step["filter"],
            "seen": step["seen"],
            "dropped": step["dropped"],
            "reasons": ", ".join(f"{reason}: {n}" for reason, n in step["reasons"].items()),
        }
        for step in json.loads(funnel.read_text())
    ]
    create_table_artifact(rows, "filter-funnel", "Rows that each filter saw and dropped")


def show_report(root: Path) -> None:
    """Publish the round's report."""
    report = root / "reports/report.md"
    if report.exists():
        create_markdown_artifact(report.read_text(), "report", "The round's report")


def show_promotion(record: RoundRecord, last: RoundRecord | None) -> None:
    """Publish how champion and challenger compare, and where the round is kept."""
    before = last.champion if last else "the student before any teaching"
    rows = [
        ("champion before", before, record.dev["champion"]),
        ("challenger", tag_of(record.number), record.dev["challenger"]),
    ]
    lines = [
        f"## {tag_of(record.number)}: {'promoted' if record.promoted else 'champion kept'}",
        f"{record.why}.",
        "| | | score on the dev rows |\n|---|---|---|",
        *(f"| {what} | `{which}` | {score:.3f} |" for what, which, score in rows),
        f"\nKept as git tag `{tag_of(record.number)}`, made from `{record.base[:12]}`; "
        f"the student in use is now `{record.champion}`.",
    ]
    text = "\n\n".join(lines[:2]) + "\n\n" + "\n".join(lines[2:])
    create_markdown_artifact(text, "champion", "Champion against challenger")


def _key(address: str, what: str) -> str:
    return re.sub("[^a-z0-9]+", "-", f"{address}-{what}".lower())


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
