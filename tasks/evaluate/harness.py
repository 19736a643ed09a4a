"""Tasks of lm-evaluation-harness, by name or from YAML files of the project, for every model.

Written to data/evaluate/harness.json, a line of figures for each checkpoint, task and metric:

    {"arm": "kd", "filter": "none", "metric": "acc_norm", "seed": 1, "stderr": 0.0049,
     "task": "hellaswag", "value": 0.4312}
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from pydantic import Field, field_validator

from cohobate.data.records import EVALUATE, write_json
from cohobate.errors import UserError
from cohobate.models import checkpoints
from cohobate.models.number_formats import Precision
from cohobate.params import Section
from cohobate.progress import say
from tasks.evaluate.arms import Arm

HARNESS = EVALUATE / "harness.json"


class Harness(Section):
    """Which tasks are run beside the round's own test, on teacher, baseline and student alike."""

    tasks: tuple[str, ...] = ()
    """Names of tasks, such as `hellaswag`; none are run unless asked for."""
    include_path: str | None = None
    """A folder of the project with tasks of your own in YAML."""
    limit: int | None = Field(None, ge=1)
    """At most so many rows of each task."""
    batch_size: int = Field(16, ge=1)
    """Rows that are answered at once."""

    @field_validator("include_path")
    @classmethod
    def _stays_inside(cls, path: str | None) -> str | None:
        if path and (Path(path).is_absolute() or ".." in Path(path).parts):
            raise ValueError("must stay inside the project")
        return path

    def measure(self, arms: Sequence[Arm], precision: Precision, metrics: Path) -> None:
        """Run the tasks, write the figures, and add their means to the file `metrics`.

        Raises:
            UserError: lm-eval is not installed, or does not know or cannot run a task.
        """
        if not self.tasks:
            return
        found = [line for arm in arms for line in self._lines(arm, precision)]
        write_json(HARNESS, found)
        write_json(metrics, json.loads(metrics.read_bytes()) | {"harness": means(found)})

    def _lines(self, arm: Arm, precision: Precision) -> Iterator[dict[str, Any]]:
        for seed, folder in arm.checkpoints.items():
            say(f"{arm.name}: {', '.join(self.tasks)} by lm-evaluation-harness")
            for task, figures in self.results(folder, precision).items():
                for named, value in figures.items():
                    metric, _, kept = named.partition(",")
                    error = figures.get(f"{metric}_stderr,{kept}")
                    if kept and not metric.endswith("_stderr"):
                        line = {"arm": arm.name, "seed": seed, "task": task, "metric": metric}
                        error = round(error, 6) if isinstance(error, float) else None
                        yield line | {"filter": kept, "value": round(value, 6), "stderr": error}

    def results(self, folder: Path, precision: Precision) -> dict[str, dict[str, Any]]:
        """Return lm-eval's figures of one checkpoint by task, under lm-eval's names for them.

        Raises:
            UserError: lm-eval is not installed, or does not know or cannot run a task.
        """
        try:
            from lm_eval import simple_evaluate
            from lm_eval.models.huggingface import HFLM
            from lm_eval.tasks import TaskManager
        except ImportError as error:
            raise UserError(
                "lm-evaluation-harness is not installed",
                where="params.yaml, evaluate.harness",
                fix='pip install -e ".[harness]"',
            ) from error
        model, tokenizer = checkpoints.load(
            folder, precision=precision, device=checkpoints.accelerator()
        )
        own = TaskManager(include_path=self.include_path)
        try:
            told = simple_evaluate(
                HFLM(pretrained=model, tokenizer=tokenizer, batch_size=self.batch_size),
                tasks=[*self.tasks],
                task_manager=own,
                limit=self.limit,
                log_samples=False,
            )
        except Exception as error:  # whatever the task's own code and data raise
            raise UserError(
                f"lm-evaluation-harness: {str(error) or type(error).__name__}",
                where="params.yaml, evaluate.harness",
                fix="lm-eval ls tasks   (the names it knows)",
            ) from error
        figures: dict[str, dict[str, Any]] = told["results"]
        return figures


def means(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return value and standard error by task, metric and arm, each the mean over the seeds."""
    by_arm: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for line in lines:
        kept = "" if line["filter"] == "none" else f" {line['filter']}"
        key = (line["task"], line["metric"] + kept, line["arm"])
        by_arm.setdefault(key, []).append(line)
    found: dict[str, Any] = {}
    for (task, metric, arm), seeds in by_arm.items():
        errors = [line["stderr"] for line in seeds if line["stderr"] is not None]
        found.setdefault(task, {}).setdefault(metric, {})[arm] = {
            "value": round(fmean(line["value"] for line in seeds), 6),
            "stderr": round(fmean(errors), 6) if errors else None,
        }
    return found
