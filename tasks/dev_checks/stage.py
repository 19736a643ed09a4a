"""Choose the dev rows on which each phase is scored while it trains, and say how.

In:  data/collect/dev.jsonl; the phases of params.yaml, the metric that decides, the verifiers
Out: data/dev_checks/train/<phase>.json, data/dev_checks/assist/<phase>.json

    {"decoding": {"max_tokens": 3}, "metric": {"type": "verifier"}, "rows": [...], "task": {...}}

`{}` for a phase without `dev`, whose training so does not depend on any of these: another metric
does not train it again.
"""

from collections.abc import Sequence
from itertools import islice
from typing import Annotated, Any

from cohobate.data.records import DEV, DEV_CHECKS, Row, read_rows, write_json
from cohobate.errors import UserError
from cohobate.evaluation.deciding_metric import DecidingMetric, is_judged
from cohobate.evaluation.dev_scores import DevRows, dev_file
from cohobate.generation.requests import Decoding
from cohobate.methods.train import Method
from cohobate.params import ValueOf
from cohobate.scoring.metrics import LikelihoodScore, refuse_raw_text
from cohobate.scoring.verifiers import Task
from cohobate.training.dev_checks import DevChecks, no_dev_rows


def run(
    train: dict[str, Method],
    assist: dict[str, Method],
    *,
    task: Task,
    metric: DecidingMetric,
    decoding: Annotated[Decoding, ValueOf("evaluate.decoding")],
) -> None:
    """Write a file for each phase.

    Raises:
        UserError: a phase is to be scored, and no dev row has an answer; the rows are raw text, and
            the metric scores answers; or a judge decides, who would be asked at each check.
    """
    scored = {}
    for section, phases in (("train", train), ("assist", assist)):
        for name, phase in phases.items():
            content: dict[str, Any] = {}
            if phase.dev:
                rows = _rows(phase.dev, metric, f"{section}.{name}")
                dev = DevRows(rows=tuple(rows), metric=metric, task=task, decoding=decoding)
                content = dev.content()
                scored[f"dev rows of {section} {name}"] = len(rows)
            write_json(dev_file(section, name), content)
    write_json(DEV_CHECKS / "summary.json", scored)


def _rows(checks: DevChecks, metric: DecidingMetric, phase: str) -> Sequence[Row]:
    answered = (row for row in read_rows(DEV, Row) if row.answer is not None)
    rows = list(islice(answered, checks.rows))
    if not rows:
        raise no_dev_rows(phase)
    if checks.by == "score" and not isinstance(metric, LikelihoodScore):
        refuse_raw_text(rows, metric.type, "dev")
        if is_judged(metric):
            raise UserError(
                f"{metric.type} needs a judge, which each check would have to wait or pay for",
                where=f"params.yaml, {phase}.dev",
                fix=f"cohobate run --set {phase}.dev.by=loss",
            )
    return rows
