"""Checks of what scores answers: judges, the sandbox of code, and metrics of tasks.

The sections `evaluate`, `task` and `collect` are read here and not recorded: the stages refuse the
same themselves, but after hours of work.
"""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import Field

from cohobate.errors import UserError
from cohobate.evaluation.deciding_metric import ByTask, judged_metrics
from cohobate.evaluation.judged_metrics import Rubric, WinRate
from cohobate.params import nearest, validated
from cohobate.scoring.metrics import AnswerScore
from cohobate.scoring.verifiers import Code

_Checked = Annotated[WinRate | Rubric | ByTask, Field(discriminator="type")]
_TYPES = ("win_rate", "rubric", "by_task")


def check_scoring(document: Mapping[str, Any]) -> None:
    """Check the judges and the sandbox of code that params.yaml names.

    Raises:
        UserError: a judge is not there, its key is not set, code cannot be isolated on this
            machine, or a metric is for a task that is none.
    """
    sources = (document.get("collect") or {}).get("sources") or {}
    for place, metric in _metrics(document):
        if isinstance(metric, ByTask):
            _check_tasks(place, metric, sources)
        for at, judged in judged_metrics(metric, place).items():
            judged.judge.check(f"params.yaml, {at}.judge")
    for place, verifier in _verifiers(document):
        if verifier.get("type") == "code":
            code: Code = validated(Code, verifier, place)
            code.sandbox.check(f"params.yaml, {place}.sandbox")


def _metrics(document: Mapping[str, Any]) -> Iterator[tuple[str, AnswerScore]]:
    for place, metric in enumerate((document.get("evaluate") or {}).get("metrics") or ()):
        if isinstance(metric, dict) and metric.get("type") in _TYPES:
            where = f"evaluate.metrics.{place}"
            yield where, validated(_Checked, metric, where)


def _verifiers(document: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    task = document.get("task") or {}
    yield "task.verifier", task.get("verifier") or {}
    for name, own in (task.get("tasks") or {}).items():
        yield f"task.tasks.{name}.verifier", (own or {}).get("verifier") or {}


def _check_tasks(place: str, metric: ByTask, sources: Mapping[str, Any]) -> None:
    for name in metric.metrics:
        if name not in sources:
            raise UserError(
                f"by_task: no source is called {name!r}{nearest(name, sources)}",
                where=f"params.yaml, {place}.metrics",
                fix="name the sources of collect.sources; a round with one source has one metric: "
                "cohobate run --set 'evaluate.metrics=[{type: verifier}]'",
            )
