"""Evaluate every model on the same test rows, apply the gate, and render the report.

In: data/collect/test.jsonl (and ood.jsonl where there is one), data/generate, data/curriculum,
    models/adapt/<teacher>, models/init_student, models/train/<phase>/seed-<n>; what `capture`
    stored of the teacher, where `evaluate.fidelity` is of type stored.
Out, hashed: reports/metrics.json, and below data/evaluate
    predictions/<arm>[/seed-<n>].jsonl   every answer with its scores, for instance
        {"answer": " animal", "confidence": 0.93, "finish": "stop", "id": "9f8a…",
         "scores": {"verifier": 1.0}}
    arms.json        a row for each arm: score with interval, seeds, retention, fidelity, footprint
    tasks.json       scores of each task and their macro mean, where there are several sources
    harness.json     results of lm-evaluation-harness, where tasks are configured
    groups.csv, intervals.csv, reliability.csv, losses/<phase>-seed-<n>.csv, samples.json
    dev/<phase>-seed-<n>.csv             checks on dev rows of the phases that have `dev`
    perturbed.jsonl, robustness.json, forgetting.json, memorisation.json, router.csv, router.json
    errors.jsonl     rows that the teacher answers better than the student
    clusters.json    these rows clustered by topic
    served.json      tokens that the teacher generated, and mean tokens of a request
    judged.json, capabilities.json, gaps.json, where params.yaml asks for them
Out, not hashed: reports/timings.json, cost.json (measured), report.html, report.md (rendered).

Of a teacher behind an endpoint only the answers are evaluated. They are bought through the ledger
of `generate`, within its budget. What needs the weights is left out, and the report says so. The
same holds of a teacher whose answers alone are evaluated (`teacher_figures`), which vLLM generates.
"""

from dataclasses import replace

from cohobate.backends.settings import GenerateParams
from cohobate.scoring.verifiers import Task
from tasks.evaluate.settings import EvaluateParams


def run(evaluate: EvaluateParams, task: Task, seeds: list[int], generate: GenerateParams) -> None:
    """Run the models, write the results, measure the speed, and render the report."""
    import torch

    from cohobate.data.records import REPORTS, write_json
    from tasks.evaluate.arms import Arm, arms_on_disk
    from tasks.evaluate.predictions import test_rows
    from tasks.evaluate.report import render
    from tasks.evaluate.run_models import Evaluator
    from tasks.evaluate.write_results import METRICS, write_results

    torch.set_num_threads(evaluate.threads)
    arms = arms_on_disk(evaluate.teacher, evaluate.baseline, evaluate.student, seeds)
    arms[0] = replace(arms[0], answers_only=evaluate.teacher_figures == "answers")
    by_answer = evaluate.answer_metrics[0].type if evaluate.answer_metrics else ""
    rows = test_rows(by_answer, evaluate.likelihood_metric is not None)
    evaluator = Evaluator(evaluate, task, rows, generate)
    results = evaluator.run(arms)
    write_results(evaluate, task, arms, rows, results)
    with_weights = [arm for arm in arms if arm.has_weights]
    # after the metrics file is written: its figures are added there
    evaluate.harness.measure(with_weights, evaluate.precision, METRICS)
    timed: dict[str, Arm] = {
        arm.role: arm for arm in with_weights if arm.role in ("teacher", "student")
    }
    # after all else: no other model is in memory then
    write_json(REPORTS / "timings.json", evaluator.time(timed))
    render()
