"""Artifacts in the Prefect UI: progress, tables and pictures of stages and rounds."""

import json
import re
import time
from pathlib import Path
from typing import Any, cast
from uuid import UUID

from prefect.artifacts import (
    create_image_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)

from cohobate.progress import Advance
from flows import pictures
from flows.placement import StageResult
from flows.round_history import RoundRecord, name_of
from tasks.evaluate.report.round_files import RoundFiles

_EVERY_SECONDS = 2.0


class ProgressBar:
    """A stage's progress artifact: created at the first event, updated every other second."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._artifact: UUID | None = None
        self._updated = 0.0

    def show(self, event: Advance) -> None:
        """Update the bar with the progress in `event`."""
        now, finished = time.monotonic(), event.done >= event.total
        if now - self._updated < _EVERY_SECONDS and not finished:
            return
        self._updated = now
        percent = 100 * event.done / max(event.total, 1)
        text = f"{event.label}: {event.done}/{event.total}"
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
    create_table_artifact(rows, _key(address, "summary"), f"Outcome and figures of {address}")


def show_funnel(root: Path) -> None:
    """Publish the filter funnel: how many rows each filter received and dropped, and why."""
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
    create_table_artifact(rows, "filter-funnel", "Rows that each filter got and dropped")


def show_report(root: Path) -> None:
    """Publish the round's report."""
    report = root / "reports/report.md"
    if report.exists():
        create_markdown_artifact(report.read_text(), "report", "The round's report")


def show_losses(root: Path) -> None:
    """Publish the loss curves of all phases and seeds as a picture, and the checks on dev rows."""
    losses = {
        phase: [[(line["step"], line["loss"]) for line in curve] for curve in seeds.values()]
        for phase, seeds in RoundFiles(root).losses.items()
    }
    if losses:
        picture = pictures.curves(losses, "update", "loss")
        create_image_artifact(picture, "losses", "Training loss at each update, one curve per seed")
    checks = {
        phase: [[(float(one.update), one.value) for one in curve] for curve in seeds.values()]
        for phase, seeds in RoundFiles(root).dev.items()
    }
    if checks:
        picture = pictures.curves(checks, "update", "on dev", linear=True)
        create_image_artifact(
            picture, "dev-scores", "Score on dev rows while training, or loss, one curve per seed"
        )


def show_samples(root: Path) -> None:
    """Publish sample rows with the answer of each model."""
    rows = [
        {"kind": row["kind"], "prompt": row["prompt"], "reference": row["reference"]}
        | {arm: answer["answer"] for arm, answer in row["answers"].items()}
        for row in RoundFiles(root).samples
    ]
    if rows:
        create_table_artifact(
            rows, "samples", "Sample rows where the student is better or worse than the baseline"
        )


def show_promotion(verdict: dict[str, Any], record: RoundRecord, last: RoundRecord | None) -> None:
    """Publish how champion and challenger compare on the dev rows: a table and a picture."""
    before = last.champion if last else "the untrained student"
    names = {"champion": before, "challenger": name_of(record.number)}
    lines = [
        f"## {name_of(record.number)}: {'promoted' if record.promoted else 'champion kept'}",
        f"{record.why}.",
        "| | | score on the dev rows | 95 % interval |\n|---|---|---|---|",
        *(_scored(role, name, verdict["intervals"][role]) for role, name in names.items()),
        f"\nThe champion is now `{record.champion}`.",
    ]
    text = "\n\n".join(lines[:2]) + "\n\n" + "\n".join(lines[2:])
    create_markdown_artifact(text, "champion", "Champion and challenger on the dev rows")
    scores = {f"{role}\n{name}": verdict["intervals"][role] for role, name in names.items()}
    picture = pictures.intervals(scores, "score on the dev rows, with its 95 % interval")
    create_image_artifact(picture, "champion-picture", "Champion and challenger on the dev rows")


def _scored(role: str, name: str, score: dict[str, float]) -> str:
    mean, low, high = (score[key] for key in ("mean", "low", "high"))
    return f"| {role} | `{name}` | {mean:.3f} | [{low:.3f}, {high:.3f}] |"


def show_lineage(record: RoundRecord, tag: str, commit: str, hashes: dict[str, str]) -> None:
    """Publish the git tag and commits of a round, and the hash of every output."""
    lines = [
        f"| git tag | git commit | made from |\n|---|---|---|\n| `{tag}` | `{commit}` | "
        f"`{record.base}` |",
        f"Files: `git checkout {tag} && dvc pull`. Report: `cohobate show {record.number}`.",
        "| stage and output | DVC's MD5 |\n|---|---|\n"
        + "\n".join(f"| {name} | `{value}` |" for name, value in hashes.items()),
    ]
    create_markdown_artifact(
        "\n\n".join(lines), "lineage", f"Commit and outputs of {name_of(record.number)}"
    )


def _key(address: str, what: str) -> str:
    return re.sub("[^a-z0-9]+", "-", f"{address}-{what}".lower())


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
