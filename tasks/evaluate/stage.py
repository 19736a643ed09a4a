"""Evaluate: every model on the same test rows, and whether distillation was worth it.

In: data/collect/test.jsonl (and ood.jsonl where there is one), data/generate, data/curriculum,
    models/adapt/<teacher>, models/init_student, models/train/<phase>/seed-<n>; what `capture`
    stored of the teacher where fidelity is asked for on that.
Out, hashed: reports/metrics.json, and below data/evaluate
    predictions/<arm>[/seed-<n>].jsonl   every answer with its scores, for instance
        {"answer": " animal", "confidence": 0.93, "finish": "stop", "id": "9f8a…",
         "scores": {"verifier": 1.0}}
    arms.json        a row for each arm: score with interval, seeds, retention, fidelity, footprint
    harness.json     figures of lm-evaluation-harness, where tasks of it were asked for
    groups.csv, intervals.csv, reliability.csv, losses/<phase>-seed-<n>.csv, samples.json
    perturbed.jsonl, robustness.json, forgetting.json, memorisation.json, router.csv, router.json
    errors.jsonl     where the student fails and the teacher does not, for the next round
    clusters.json    what those rows are about
    served.json      tokens asked of the teacher, and tokens of a request
Of a teacher behind an endpoint the answers alone are scored: bought through the ledger of
`generate`, within its cap. What needs its weights stays out, and the report says so.
Out, not hashed: reports/timings.json, cost.json (measured), report.html, report.md (rendered).
"""

from cohobate.backends.settings import GenerateParams
from cohobate.scoring.verifiers import Task
from tasks.evaluate.settings import EvaluateParams


def run(evaluate: EvaluateParams, task: Task, seeds: list[int], generate: GenerateParams) -> None:
    """Answer, score, compare, time, and render the report."""
    import torch

    from cohobate.data.records import REPORTS, write_json
    from tasks.evaluate.arms import Arm, arms_on_disk
    from tasks.evaluate.predictions import test_rows
    from tasks.evaluate.report import render
    from tasks.evaluate.run_models import Examination
    from tasks.evaluate.write_results import METRICS, write_conclusions

    torch.set_num_threads(evaluate.threads)
    arms = arms_on_disk(evaluate.teacher, evaluate.baseline, evaluate.student, seeds)
    rows = test_rows()
    examination = Examination(evaluate, task.verifier, rows, generate)
    measured = examination.sit(arms)
    write_conclusions(evaluate, task.verifier, arms, rows, measured)
    here = [arm for arm in arms if arm.has_weights]
    evaluate.harness.measure(here, evaluate.precision, METRICS)
    timed: dict[str, Arm] = {arm.role: arm for arm in here if arm.role in ("teacher", "student")}
    write_json(REPORTS / "timings.json", examination.time(timed))
    render()
