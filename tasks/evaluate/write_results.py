"""Writes the results: the hashed files below data/evaluate, and reports/metrics.json."""

from collections.abc import Mapping, Sequence
from typing import Any

from cohobate.data.records import EVALUATE, REPORTS, Row, write_json
from cohobate.evaluation.bootstrap import ArmIntervals, Bootstrap, LikelihoodBootstrap
from cohobate.progress import say
from cohobate.scoring.verifiers import Task
from tasks.evaluate import tables
from tasks.evaluate.arms import BASELINE_BEST, Arm
from tasks.evaluate.behaviour import write_behaviour
from tasks.evaluate.capabilities import write_capabilities
from tasks.evaluate.predictions import Predictions
from tasks.evaluate.settings import EvaluateParams
from tasks.evaluate.statistics import ModelResults, Statistics
from tasks.evaluate.task_scores import MACRO_MEAN, TASKS, TaskScores

ARMS = EVALUATE / "arms.json"
METRICS = REPORTS / "metrics.json"


def write_results(
    params: EvaluateParams,
    task: Task,
    arms: list[Arm],
    rows: Sequence[Row],
    results: Mapping[str, ModelResults],
) -> None:
    """Compute the statistics of the predictions on disk; write scores, tables and verdict."""
    # from disk: the figures are a function of the files that DVC keeps
    predictions = Predictions.read(arms)
    metric = params.metrics[0].type
    bootstrap = _comparison(params, predictions)
    names: dict[str, str] = {arm.role: arm.name for arm in arms if arm.role != "other"}
    by_task = None
    if params.likelihood_metric is None:
        draws = (params.bootstrap, params.seed)
        by_task = TaskScores.of(rows, predictions.scores(metric), names, *draws)
    statistics = Statistics(
        arms,
        predictions,
        results,
        metric,
        rows,
        task,
        bootstrap,
        by_task,
        params.calibration_bins,
        params.gate,
        params.likelihood_metric,
        params.answer_figures,
    )
    write_json(ARMS, statistics.table())
    if statistics.by_task:
        write_json(TASKS, statistics.by_task.table())
    tables.write_groups(statistics, rows)
    tables.write_intervals(statistics)
    tables.write_losses(arms)
    tables.write_reliability(statistics)
    write_json(tables.SAMPLES, tables.samples(statistics, rows, params.samples, params.seed))
    # one file for `dvc metrics` and the gate: scores and behaviour
    metrics = statistics.metrics() | write_behaviour(params, statistics, rows, results)
    draws_and_seed = (params.bootstrap, params.seed)
    metrics |= write_capabilities(params.capabilities, params.groups, statistics, *draws_and_seed)
    metrics["number_format"] = params.number_format
    write_json(METRICS, metrics)
    write_json(EVALUATE / "summary.json", _summary(metrics))
    gain = metrics["gain_over_baseline"]
    unit = f"% lower {metric}" if params.likelihood_metric else "points"
    say(
        f"gain over the baseline: {100 * gain['mean']:+.1f} {unit} "
        f"[{100 * gain['low']:+.1f}, {100 * gain['high']:+.1f}]"
    )
    if over_best := metrics.get("gain_over_baseline_best"):
        say(
            f"over its best checkpoint on dev: {100 * over_best['mean']:+.1f} {unit} "
            f"[{100 * over_best['low']:+.1f}, {100 * over_best['high']:+.1f}]"
        )
    for name, figures in _by_task(metrics).items():
        say(f"{name}: {100 * figures['gain_over_baseline']['mean']:+.1f} points")


def _comparison(params: EvaluateParams, predictions: Predictions) -> ArmIntervals:
    if params.likelihood_metric is None:
        scores = predictions.scores(params.metrics[0].type)
        return Bootstrap(scores, params.bootstrap, params.seed)
    losses = predictions.loss_shares()
    return LikelihoodBootstrap(losses, params.likelihood_metric, params.bootstrap, params.seed)


def _summary(metrics: Mapping[str, Any]) -> dict[str, Any]:
    gain = metrics["gain_over_baseline"]
    roles = ("teacher", "initial", "baseline", BASELINE_BEST, "student")
    return {
        **{role: metrics[role]["score"] for role in roles if role in metrics},
        "retention": metrics["retention"],
        "gain": gain["mean"],
        "gain_low": gain["low"],
        "gain_high": gain["high"],
        "beats_baseline": metrics["verdict"],
        "gate_passed": metrics["gate"]["passed"],
        "seeds": metrics["seeds"],
        "test_rows": metrics["test_rows"],
        **{f"student, {n}": of["student"]["score"] for n, of in _by_task(metrics).items()},
    }


def _by_task(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return the figures of each task and of the macro mean; none of a round with one source."""
    if "tasks" not in metrics:
        return {}
    return {**metrics["tasks"], MACRO_MEAN: metrics["macro_mean"]}
