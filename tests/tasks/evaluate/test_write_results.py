"""From predictions on disk to the verdict, the gate and the tables."""

import csv
from pathlib import Path
from typing import Any

import pytest

from cohobate.data.records import Row
from cohobate.errors import UserError
from cohobate.evaluation.gate import Gate, ScoreComparison, TaskGate
from cohobate.scoring.metrics import ExactMatch, TokenF1, VerifierAccuracy
from cohobate.scoring.verifiers import Exact, Label, Task
from tasks.evaluate.arms import arms_on_disk
from tasks.evaluate.predictions import Prediction, Predictions
from tasks.evaluate.settings import EvaluateParams
from tests.tasks.evaluate.simulated_round import SimulatedRound, read

PARAMS = EvaluateParams(bootstrap=1000)
PROMISED = [
    "teacher.score", "initial.score", "baseline.score", "student.score", "retention",
    "gain_over_baseline.mean", "gain_over_baseline.low", "gain_over_baseline.high",
    "parameters_ratio", "non_embedding_parameters_ratio", "speedup", "seeds", "gate.passed",
    "agreement", "teacher.low", "student.high",
]  # fmt: skip


def metrics_of(project: Path, **round_: Any) -> dict[str, Any]:
    SimulatedRound(**round_).lay_out(PARAMS)
    metrics: dict[str, Any] = read("reports/metrics.json")
    return metrics


def test_a_planted_null_fails_the_gate(project: Path) -> None:
    for seeds in ((1,), (1, 2, 3)):
        metrics = metrics_of(project, student=0.68, baseline=0.68, seeds=seeds)
        assert metrics["verdict"] == "within noise"
        assert metrics["gate"] == {
            "passed": False, "gain": False, "retention": True, "min_gain": 0, "min_retention": 0.85,
        }  # fmt: skip


def test_a_planted_win_passes_the_gate(project: Path) -> None:
    metrics = metrics_of(project, student=0.72, baseline=0.55)
    assert metrics["verdict"] == "yes"
    assert metrics["gate"]["passed"]
    assert metrics["gain_over_baseline"]["low"] > 0


def test_the_baselines_best_on_dev_must_be_beaten_too(project: Path) -> None:
    metrics = metrics_of(project, student=0.72, baseline=0.55, baseline_best=0.72, rows=300)
    assert metrics["verdict"] == "yes" and metrics["gate"]["gain"]
    assert not metrics["gate"]["gain_over_best"] and not metrics["gate"]["passed"]
    assert metrics["gain_over_baseline_best"]["low"] < 0 < metrics["baseline_best"]["score"]
    arms = {arm["arm"]: arm for arm in read("data/evaluate/arms.json")}
    assert [*arms][2:4] == ["baseline", "baseline-best"]
    assert arms["baseline-best"]["updates"] == 20
    assert Path("data/evaluate/dev/baseline-seed-1.csv").read_text().startswith("update,score")
    metrics = metrics_of(project, student=0.72, baseline=0.55, baseline_best=0.56)
    assert metrics["gate"]["gain_over_best"] and metrics["gate"]["passed"]


def test_a_loss_is_called_one(project: Path) -> None:
    metrics = metrics_of(project, student=0.4, baseline=0.6)
    assert metrics["verdict"] == "no"
    assert not metrics["gate"]["passed"]


def test_a_gain_without_retention_fails_the_gate(project: Path) -> None:
    metrics = metrics_of(project, student=0.6, baseline=0.3, rows=800)
    assert metrics["gate"]["gain"]
    assert not metrics["gate"]["retention"]
    assert not metrics["gate"]["passed"]


def test_metrics_hold_what_is_promised(project: Path) -> None:
    metrics = metrics_of(project)
    for path in PROMISED:
        value: Any = metrics
        for key in path.split("."):
            value = value[key]
        assert isinstance(value, bool | int | float), path
    assert metrics["seeds"] == 3
    assert metrics["parameters_ratio"] == pytest.approx(42_471_936 / 134_515_008, abs=1e-6)
    assert metrics["speedup"] == pytest.approx(270_303_744 / 85_029_888, abs=1e-6)
    assert metrics["retention"] == pytest.approx(
        metrics["student"]["score"] / metrics["teacher"]["score"], abs=1e-5
    )
    assert metrics["gain_over_baseline"]["mean"] == pytest.approx(
        metrics["student"]["score"] - metrics["baseline"]["score"], abs=2e-6
    )


def test_every_phase_is_a_row(project: Path) -> None:
    metrics = metrics_of(project, others=(("sft", 0.66),))
    assert metrics["phases"]["sft"]["score"] == pytest.approx(0.66, abs=0.08)
    arms = read("data/evaluate/arms.json")
    assert [(arm["arm"], arm["role"]) for arm in arms] == [
        ("teacher", "teacher"), ("initial", "initial"), ("baseline", "baseline"),
        ("kd", "student"), ("sft", "other"),
    ]  # fmt: skip
    assert set(arms[3]["by_seed"]) == {"1", "2", "3"}
    assert arms[2]["gain_over_baseline"] is None
    assert arms[3]["gain_over_baseline"] == metrics["gain_over_baseline"]
    above = arms[4]["score"]["mean"] - arms[2]["score"]["mean"]
    assert arms[4]["gain_over_baseline"]["mean"] == pytest.approx(above, abs=2e-6)


def test_the_same_predictions_are_the_same_bytes(project: Path) -> None:
    def hashed() -> dict[str, bytes]:
        metrics_of(project)
        hashed_files = [*Path("data/evaluate").rglob("*"), Path("reports/metrics.json")]
        return {str(path): path.read_bytes() for path in hashed_files if path.is_file()}

    first, second = hashed(), hashed()
    assert first == second
    assert len(first) > 15


def test_groups_come_with_the_largest_gap_first(project: Path) -> None:
    metrics_of(project)
    with Path("data/evaluate/groups.csv").open() as lines:
        groups = list(csv.DictReader(lines))
    gaps = [float(line["student"]) - float(line["teacher"]) for line in groups]
    assert gaps == sorted(gaps)
    assert sum(int(line["rows"]) for line in groups) == 400


def test_samples_are_of_the_kind_they_are_said_to_be(project: Path) -> None:
    metrics_of(project)
    samples = read("data/evaluate/samples.json")
    right = [{a: s["answers"][a]["score"] for a in s["answers"]} for s in samples]
    by_kind: dict[str, list[dict[str, float]]] = {}
    for sample, scores in zip(samples, right, strict=True):
        by_kind.setdefault(sample["kind"], []).append(scores)
    assert [len(by_kind[kind]) for kind in ("won", "lost", "behind", "ahead", "random")] == [4] * 5
    assert all(s["kd"] > s["baseline"] for s in by_kind["won"])
    assert all(s["kd"] < s["baseline"] for s in by_kind["lost"])
    assert all(s["kd"] < s["teacher"] for s in by_kind["behind"])
    assert all(s["kd"] > s["teacher"] for s in by_kind["ahead"])
    ids = [sample["id"] for sample in samples if sample["kind"] != "random"]
    assert len(set(ids)) == len(ids)
    behind = [s["answers"]["kd"]["confidence"] for s in samples if s["kind"] == "behind"]
    assert behind == sorted(behind, reverse=True)


def test_no_samples_where_none_are_asked_for(project: Path) -> None:
    SimulatedRound(seeds=(1,), rows=50).lay_out(EvaluateParams(bootstrap=100, samples=0))
    assert read("data/evaluate/samples.json") == []


def test_a_missing_checkpoint_is_named(project: Path) -> None:
    SimulatedRound(seeds=(1,)).lay_out(PARAMS)
    with pytest.raises(UserError, match="did you mean 'kd'") as error:
        arms_on_disk("main", "baseline", "kdd", [1])
    assert error.value.where == "params.yaml, evaluate.student"
    with pytest.raises(UserError) as error:
        arms_on_disk("main", "baseline", "kd", [1, 2])
    assert error.value.where == "models/train/baseline/seed-2"
    with pytest.raises(UserError, match="nothing to compare"):
        arms_on_disk("main", "kd", "kd", [1])


def test_a_phase_left_over_from_other_seeds_is_no_row(project: Path) -> None:
    SimulatedRound(seeds=(1,)).lay_out(PARAMS)
    Path("models/train/old/seed-9").mkdir(parents=True)
    assert "old" not in [arm.name for arm in arms_on_disk("main", "baseline", "kd", [1])]
    Path("models/train/teacher/seed-1").mkdir(parents=True)
    with pytest.raises(UserError, match="'teacher'"):
        arms_on_disk("main", "baseline", "kd", [1])


def test_metrics_of_an_answer() -> None:
    label = Label(type="label")
    assert VerifierAccuracy().score(" Animal ", " animal", label) == 1
    assert ExactMatch(type="exact_match").score(" Animal ", " animal", label) == 0
    assert ExactMatch(type="exact_match").score(" animal ", " animal", label) == 1
    f1 = TokenF1(type="token_f1")
    assert f1.score("The red fox.", "a fox", label) == pytest.approx(2 / 3)
    assert f1.score("", "", label) == 1
    assert f1.score("", "fox", label) == 0


def test_gate_asks_for_both() -> None:
    gate = Gate(min_gain=0.01, min_retention=0.9)
    assert gate.judge(ScoreComparison(0.02, 0.95))["passed"]
    assert not gate.judge(ScoreComparison(0.01, 0.95))["passed"]
    assert not gate.judge(ScoreComparison(0.02, 0.89))["passed"]
    assert not gate.judge(ScoreComparison(0.02, None))["passed"]


def test_each_task_may_have_to_pass_the_gate() -> None:
    gate = Gate(min_gain=0.0, min_retention=0.5, each_task=TaskGate(min_gain=-0.02))
    whole, good, bad = (
        ScoreComparison(0.05, 0.9),
        ScoreComparison(-0.01, 0.9),
        ScoreComparison(-0.03, None),
    )
    assert gate.judge(whole, {"a": good, "b": good})["passed"]
    judged = gate.judge(whole, {"a": good, "b": bad})
    assert not judged["passed"] and judged["gain"] and judged["retention"]
    assert judged["each_task"]["passed"] == {"a": True, "b": False}
    assert not gate.judge(whole, None)["passed"], "there is no task to pass it"


def test_scores_of_each_task_and_their_macro_mean(project: Path) -> None:
    each = {"gate": {"each_task": {"min_gain": -0.9}}}
    params = EvaluateParams.model_validate({"bootstrap": 1000, **each})
    SimulatedRound(tasks=("nouns", "nouns", "nouns", "sums")).lay_out(params)
    metrics = read("reports/metrics.json")
    tasks, macro = metrics["tasks"], metrics["macro_mean"]
    assert {name: of["test_rows"] for name, of in tasks.items()} == {"nouns": 300, "sums": 100}
    for role in ("teacher", "initial", "baseline", "student"):
        scores = [of[role]["score"] for of in tasks.values()]
        assert macro[role]["score"] == pytest.approx(sum(scores) / 2, abs=2e-6)
        assert metrics[role]["score"] == pytest.approx((3 * scores[0] + scores[1]) / 4, abs=2e-6)
        assert macro[role]["low"] <= macro[role]["score"] <= macro[role]["high"]
    # a small task has wide intervals, and weighs as much in the macro mean
    widths = [of["student"]["high"] - of["student"]["low"] for of in (*tasks.values(), macro)]
    assert widths[0] < widths[2] < widths[1]
    assert metrics["gate"]["each_task"]["passed"] == {"nouns": True, "sums": True}
    lines = read("data/evaluate/tasks.json")
    assert [line["task"] for line in lines] == ["nouns", "sums", "macro mean"]
    assert set(lines[0]["arms"]) == {"teacher", "initial", "baseline", "kd"}


def test_a_round_with_one_source_has_no_scores_by_task(project: Path) -> None:
    metrics = metrics_of(project)
    assert {"tasks", "macro_mean"}.isdisjoint(metrics)
    assert not Path("data/evaluate/tasks.json").exists()


def prediction(answer: str, confidence: float | None, score: float) -> Prediction:
    scores = {"verifier": score}
    return Prediction(id="x", answer=answer, finish="stop", confidence=confidence, scores=scores)


def test_calibration_error_and_agreement_by_hand() -> None:
    teacher = [prediction("a", 0.9, 1), prediction("b", 0.9, 1), prediction("c", 0.4, 0)]
    student = [prediction(" A", 0.8, 1), prediction("x", 0.6, 0), prediction("c", None, 0)]
    rows = [Row(id="x", prompt="p")] * 3
    task = Task(verifier=Exact(type="exact"))
    predictions = Predictions({"teacher": {0: teacher}, "kd": {1: student}})
    # two bins: [0, .5) holds 0.4 against 0; [.5, 1] holds mean 0.9 against 1 twice
    error = predictions.calibration_error("teacher", "verifier", bins=2)
    assert error == pytest.approx((0.4 + 2 * 0.1) / 3)
    assert predictions.calibration_error("kd", "verifier", bins=2) is None
    assert predictions.same_answer("kd", "teacher", rows, task) == pytest.approx(2 / 3)
