"""Tasks of lm-evaluation-harness, run on every model; by name, or from YAML files of the project.

The results go to data/evaluate/harness.json, an entry for each checkpoint, task and metric:

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
    """Tasks that are run on all models in addition to the round's own test."""

    tasks: tuple[str, ...] = ()
    """Names of tasks, such as `hellaswag`; none by default."""
    include_path: str | None = None
    """A folder of the project with further tasks in YAML."""
    limit: int | None = Field(None, ge=1)
    """Largest number of rows of each task."""
    batch_size: int = Field(16, ge=1)
    """Rows in a batch."""

    @field_validator("include_path")
    @classmethod
    def _stays_inside(cls, path: str | None) -> str | None:
        if path and (Path(path).is_absolute() or ".." in Path(path).parts):
            raise ValueError("must stay inside the project")
        return path

    def measure(self, arms: Sequence[Arm], precision: Precision, metrics: Path) -> None:
        """Run the tasks, write the results, and add their means to the file `metrics`.

        Raises:
            UserError: lm-eval is not installed, or does not know or cannot run a task.
        """
        if not self.tasks:
            return
        lines = [line for arm in arms for line in self._lines(arm, precision)]
        write_json(HARNESS, lines)
        write_json(metrics, json.loads(metrics.read_bytes()) | {"harness": means(lines)})

    def _lines(self, arm: Arm, precision: Precision) -> Iterator[dict[str, Any]]:
        for seed, folder in arm.checkpoints.items():
            say(f"{arm.name}: {', '.join(self.tasks)} by lm-evaluation-harness")
            for task, figures in self.results(folder, precision).items():
                for name, value in figures.items():
                    # lm-eval's names are "<metric>,<filter>"; "alias" and the like have no comma
                    metric, _, harness_filter = name.partition(",")
                    error = figures.get(f"{metric}_stderr,{harness_filter}")
                    if harness_filter and not metric.endswith("_stderr"):
                        line = {"arm": arm.name, "seed": seed, "task": task, "metric": metric}
                        error = round(error, 6) if isinstance(error, float) else None
                        figure = {"value": round(value, 6), "stderr": error}
                        yield line | {"filter": harness_filter} | figure

    def results(self, folder: Path, precision: Precision) -> dict[str, dict[str, Any]]:
        """Return lm-eval's results of one checkpoint, by task and under lm-eval's names.

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
        task_manager = TaskManager(include_path=self.include_path)
        try:
            evaluation = simple_evaluate(
                HFLM(pretrained=model, tokenizer=tokenizer, batch_size=self.batch_size),
                tasks=[*self.tasks],
                task_manager=task_manager,
                limit=self.limit,
                log_samples=False,
            )
        except Exception as error:  # a task's own code and data can raise anything
            raise UserError(
                f"lm-evaluation-harness: {str(error) or type(error).__name__}",
                where="params.yaml, evaluate.harness",
                fix="lm-eval ls tasks   (lists the names)",
            ) from error
        figures: dict[str, dict[str, Any]] = evaluation["results"]
        return figures


def means(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return value and standard error by task, metric and arm, each the mean over the seeds."""
    by_arm: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for line in lines:
        suffix = "" if line["filter"] == "none" else f" {line['filter']}"
        key = (line["task"], line["metric"] + suffix, line["arm"])
        by_arm.setdefault(key, []).append(line)
    results: dict[str, Any] = {}
    for (task, metric, arm), seeds in by_arm.items():
        # some metrics have no standard error
        errors = [line["stderr"] for line in seeds if line["stderr"] is not None]
        results.setdefault(task, {}).setdefault(metric, {})[arm] = {
            "value": round(fmean(line["value"] for line in seeds), 6),
            "stderr": round(fmean(errors), 6) if errors else None,
        }
    return results
