"""Files of a round, as read for the report."""

import csv
import hashlib
import json
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from cohobate.data.records import COLLECT, CURRICULUM, FILTER, MODELS, REPORTS
from cohobate.errors import UserError
from cohobate.params import validated
from tasks.evaluate.behaviour import FORGETTING, MEMORISATION
from tasks.evaluate.capabilities import CAPABILITIES, GAPS
from tasks.evaluate.cost import TOKEN_COUNTS, Prices, cost_per_kept_point
from tasks.evaluate.judging import JUDGED
from tasks.evaluate.mistakes import CLUSTERS, ERRORS
from tasks.evaluate.robustness import ROBUSTNESS
from tasks.evaluate.router import ROUTED, ROUTER
from tasks.evaluate.tables import DEV, GROUPS, LOSSES, RELIABILITY, SAMPLES
from tasks.evaluate.task_scores import TASKS
from tasks.evaluate.write_results import ARMS, METRICS

TIMINGS = REPORTS / "timings.json"
STAGE_SECONDS = REPORTS / "stages.json"
Table = list[dict[str, Any]]


class DevCheck(NamedTuple):
    """One check on dev rows while a phase trained."""

    update: int
    value: float
    """The score, or the loss where nothing is scored; NaN where there is neither."""
    is_score: bool

    @classmethod
    def of(cls, line: dict[str, str]) -> "DevCheck":
        """Read a line of dev.csv."""
        value = line["score"] or line["loss"] or "nan"
        return cls(int(line["update"]), float(value), bool(line["score"]))


@dataclass(frozen=True)
class RoundFiles:
    """The files of one round, below `root`; missing ones are None or empty."""

    root: Path

    @property
    def metrics(self) -> dict[str, Any]:
        """The verdict and the figures that `dvc metrics` shows."""
        metrics: dict[str, Any] = self._needed(METRICS)
        return metrics

    @property
    def arms(self) -> Table:
        """A row of figures for each model."""
        arms: Table = self._needed(ARMS)
        return arms

    @property
    def tasks(self) -> Table:
        """Scores of each task, then their macro mean; empty where the round has one source."""
        return self._json(TASKS) or []

    @property
    def samples(self) -> Table:
        """Sample rows, with every model's answer."""
        return self._json(SAMPLES) or []

    @property
    def groups(self) -> Table:
        """Scores by group, the student's largest gaps first."""
        return [_numbers(line) for line in self._csv(GROUPS)]

    @property
    def reliability(self) -> Table:
        """Confidence and score, by bin of confidence."""
        return [_numbers(line) for line in self._csv(RELIABILITY)]

    @property
    def losses(self) -> dict[str, dict[int, Table]]:
        """The loss at each step, by phase and seed."""
        losses: dict[str, dict[int, Table]] = defaultdict(dict)
        for path in sorted((self.root / LOSSES).glob("*.csv")):
            phase, _, seed = path.stem.rpartition("-seed-")
            losses[phase][int(seed)] = [_numbers(line) for line in self._csv(path)]
        return {phase: dict(sorted(seeds.items())) for phase, seeds in losses.items()}

    @property
    def dev(self) -> dict[str, dict[int, list[DevCheck]]]:
        """The figure that decides of each check on dev rows while training, by phase and seed."""
        checks: dict[str, dict[int, list[DevCheck]]] = defaultdict(dict)
        for path in sorted((self.root / DEV).glob("*.csv")):
            phase, _, seed = path.stem.rpartition("-seed-")
            checks[phase][int(seed)] = [*map(DevCheck.of, self._csv(path))]
        return {phase: dict(sorted(seeds.items())) for phase, seeds in checks.items()}

    @property
    def collected(self) -> dict[str, Any]:
        """How many rows of each kind `collect` found."""
        return self._json(COLLECT / "summary.json") or {}

    @property
    def funnel(self) -> Table:
        """The rows that each filter saw and dropped, in order."""
        return self._json(FILTER / "funnel.json") or []

    @property
    def robustness(self) -> Table:
        """Scores and drops on perturbed and out-of-distribution prompts."""
        return self._json(ROBUSTNESS) or []

    @property
    def forgetting(self) -> Table:
        """The loss of each checkpoint on general text."""
        return self._json(FORGETTING) or []

    @property
    def memorisation(self) -> dict[str, Any]:
        """How much of the answers is copied from training answers."""
        return self._json(MEMORISATION) or {}

    @property
    def router(self) -> tuple[Table, dict[str, Any] | None]:
        """The curve of score by share of traffic, and the results at the floor."""
        return [_numbers(line) for line in self._csv(ROUTER)], self._json(ROUTED)

    @property
    def clusters(self) -> Table:
        """The clusters of the student's mistakes, the largest first."""
        return self._json(CLUSTERS) or []

    @property
    def errors(self) -> Table:
        """The test rows that the teacher answers better than the student."""
        return list(self._lines(ERRORS))

    @property
    def training_rows(self) -> Table:
        """The student's training rows, in the order of the curriculum."""
        return list(self._lines(CURRICULUM / "train.jsonl"))

    @property
    def cost(self) -> dict[str, Any] | None:
        """Cost and savings at the prices in params.yaml; None where files are missing."""
        tokens, timings, stages = self._json(TOKEN_COUNTS), self.timings, self.stage_seconds
        if not (tokens and timings and stages):
            return None
        prices = (self.params.get("evaluate") or {}).get("prices") or {}
        assumed: Prices = validated(Prices, prices, "evaluate.prices")
        judged = sum(one.get("cost_usd", 0.0) for one in self.judged.values())
        cost = assumed.cost_of_round(tokens | {"judged": judged}, stages, timings)
        return cost | cost_per_kept_point(cost["teacher_tokens_cost"], self.metrics["retention"])

    @property
    def judged(self) -> dict[str, Any]:
        """Outcomes, replies and cost of the metrics by a judge, by their places in params.yaml."""
        return self._json(JUDGED) or {}

    @property
    def capabilities(self) -> Table:
        """Scores by capability, all rows first; empty where none is configured."""
        return self._json(CAPABILITIES) or []

    @property
    def gaps(self) -> Table:
        """The gap between teacher and student by group, the largest first."""
        return self._json(GAPS) or []

    @property
    def curriculum(self) -> Table:
        """Rows and difficulty of each stage, from the training rows."""
        stages: dict[int, dict[str, Any]] = {}
        for row in self._lines(CURRICULUM / "train.jsonl"):
            stage, difficulty = row["stage"], row["difficulty"]
            first = {"rows": 0, "sum": 0.0, "low": difficulty, "high": difficulty}
            figures = stages.setdefault(stage, first)
            figures["rows"] += 1
            figures["sum"] += difficulty
            figures["low"] = min(figures["low"], difficulty)
            figures["high"] = max(figures["high"], difficulty)
        return [
            figures | {"stage": stage, "mean": figures["sum"] / figures["rows"]}
            for stage, figures in sorted(stages.items())
        ]

    @property
    def summaries(self) -> dict[str, dict[str, Any]]:
        """The key figures that each stage wrote beside its outputs, by folder."""
        folders = sorted((self.root / "data").glob("**/summary.json"))
        folders += sorted((self.root / "models").glob("**/summary.json"))
        return {
            str(path.parent.relative_to(self.root)): json.loads(path.read_text())
            for path in folders
        }

    @property
    def models(self) -> dict[str, Any]:
        """The models that preflight pinned."""
        return self._json(MODELS) or {}

    @property
    def timings(self) -> dict[str, Any] | None:
        """Latency and throughput, measured; varies from run to run."""
        timings: dict[str, Any] | None = self._json(TIMINGS)
        return timings

    @property
    def stage_seconds(self) -> dict[str, dict[str, Any]]:
        """Seconds and outcome of each stage in the last run; varies from run to run."""
        return self._json(STAGE_SECONDS) or {}

    @property
    def outputs(self) -> Table:
        """Every output in dvc.lock with its hash, in the lock's order."""
        lock = self._yaml(Path("dvc.lock"))
        return [
            {"stage": stage, "path": out["path"], "md5": out["md5"], "size": out.get("size", 0)}
            for stage, entry in (lock.get("stages") or {}).items()
            for out in entry.get("outs", [])
            if "md5" in out
        ]

    @property
    def params(self) -> dict[str, Any]:
        """params.yaml as plain values."""
        return self._yaml(Path("params.yaml"))

    @property
    def params_digest(self) -> str | None:
        """The sha256 of params.yaml."""
        path = self.root / "params.yaml"
        return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else None

    @property
    def commit(self) -> str | None:
        """The git commit that is checked out, with a + where files differ from it."""
        command = ["git", "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"]
        try:
            described = subprocess.run(
                command, cwd=self.root, capture_output=True, text=True, timeout=10, check=True
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return described.stdout.strip() or None

    def _needed(self, path: Path) -> Any:
        content = self._json(path)
        if content is None:
            raise UserError("no round has been evaluated here", where=str(path), fix="cohobate run")
        return content

    def _json(self, path: Path) -> Any:
        whole = self.root / path
        try:
            return json.loads(whole.read_text()) if whole.exists() else None
        except ValueError as error:
            raise UserError(
                f"not JSON: {error}", where=str(path), fix="dvc checkout, or cohobate run"
            ) from error

    def _yaml(self, path: Path) -> dict[str, Any]:
        from ruamel.yaml import YAML

        whole = self.root / path
        loaded = YAML(typ="safe", pure=True).load(whole.read_text()) if whole.exists() else None
        return loaded if isinstance(loaded, dict) else {}

    def _csv(self, path: Path) -> list[dict[str, str]]:
        whole = self.root / path
        if not whole.exists():
            return []
        with whole.open(newline="") as lines:
            return list(csv.DictReader(lines))

    def _lines(self, path: Path) -> Iterator[dict[str, Any]]:
        whole = self.root / path
        if whole.exists():
            with whole.open() as lines:
                yield from map(json.loads, lines)


def _numbers(line: dict[str, str]) -> dict[str, Any]:
    """Give the figures of a CSV line their type; names stay text."""
    return {key: value if key in ("group", "arm") else float(value) for key, value in line.items()}
