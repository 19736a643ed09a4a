"""The whole stage on tiny models: answers, scores, clock, report."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cohobate.backends.settings import GenerateParams
from cohobate.data.records import TEST, Row, read_rows, row_id, write_rows
from cohobate.evaluation.drafting import Drafting
from cohobate.evaluation.timing import Timing
from cohobate.models import checkpoints
from cohobate.scoring.metrics import VerifierAccuracy
from cohobate.scoring.verifiers import Label, Task
from tasks.evaluate.metrics import LabelAccuracy, Perplexity
from tasks.evaluate.models_under_test import LoadedModel
from tasks.evaluate.perturbations import Case, Distractor
from tasks.evaluate.robustness import PERTURBED, Robustness
from tasks.evaluate.settings import EvaluateParams
from tasks.evaluate.stage import run
from tests.tasks.evaluate.simulated_round import LABELS, read

PARAMS = EvaluateParams(
    bootstrap=200,
    precision="float32",
    threads=1,
    timing=Timing(seconds=0.1, new_tokens=2, draft=Drafting(new_tokens=4, rows=2)),
    metrics=(
        VerifierAccuracy(),
        LabelAccuracy(type="label_accuracy"),
        Perplexity(type="perplexity"),
    ),
    robustness=Robustness(rows=6, perturbations=(Case(type="case"), Distractor(type="distractor"))),
)
TASK = Task(verifier=Label(type="label"))


@pytest.fixture
def trained(project: Path, make_model: Callable[..., Any], tokenizer: Any) -> Path:
    """Checkpoints of a round: each another random model, kd as the teacher to the letter."""

    def publish(folder: str, seed: int, layers: int) -> None:
        model = make_model(tokenizer, seed=seed, layers=layers)
        checkpoints.save(model, tokenizer, Path(folder), {})

    publish("models/adapt/main", 0, 4)
    publish("models/init_student", 1, 2)
    for seed in (1, 2):
        publish(f"models/train/baseline/seed-{seed}", 1 + seed, 2)
        publish(f"models/train/kd/seed-{seed}", 0, 4)
    history = Path("models/train/kd/seed-1/history.csv")
    history.write_text("step,loss,learning_rate,stage\n1,2.5,0.1,0\n2,1.5,0.0,0\n")
    prompts = [f"Definition: a {word} {n}\nCategory:" for n, word in enumerate(LABELS * 2)]
    rows = [Row(id=row_id(p), prompt=p, answer=f" {LABELS[n % 9]}") for n, p in enumerate(prompts)]
    write_rows(TEST, [*rows, Row(id="unlabelled", prompt="Definition: no answer\nCategory:")])
    return project


def test_models_are_evaluated_on_the_accelerator(monkeypatch, checkpoint: Path) -> None:
    monkeypatch.setattr(checkpoints, "accelerator", lambda: "meta")
    assert LoadedModel.of(PARAMS, checkpoint).model.device.type == "meta"


def test_the_stage_answers_scores_and_reports(trained: Path) -> None:
    run(PARAMS, TASK, [1, 2], GenerateParams())
    metrics, arms = read("reports/metrics.json"), read("data/evaluate/arms.json")
    assert metrics["test_rows"] == 18
    assert metrics["seeds"] == 2
    assert metrics["agreement"] == 1  # the student is the teacher
    assert metrics["fidelity"]["top1_agreement"] == 1
    assert metrics["fidelity"]["kl"] == pytest.approx(0, abs=1e-5)
    assert arms[1]["fidelity"]["kl"] > 0.01
    assert "student_text" not in arms[1]["fidelity"]
    assert metrics["fidelity"]["student_text"]["kl"] == pytest.approx(0, abs=1e-5)
    assert arms[0]["metrics"]["perplexity"] == arms[3]["metrics"]["perplexity"] > 1
    assert (
        metrics["robustness"]["case"]["student_drop"]
        == (metrics["robustness"]["case"]["teacher_drop"])
    )
    assert metrics["forgetting"]["bits_per_byte_after"] > 0
    variants = [json.loads(line) for line in Path(PERTURBED).read_text().splitlines()]
    assert [v["variant"] for v in variants] == ["case"] * 6 + ["distractor"] * 6
    assert all(len(v["answers"]["student"]) == 2 for v in variants)
    assert all(set(v["answers"]["student"]) == set(v["answers"]["teacher"]) for v in variants)
    assert metrics["parameters_ratio"] == 1
    assert metrics["speedup"] == 1
    timings = read("reports/timings.json")
    assert set(timings["models"]) == {"teacher", "student"}
    assert timings["draft"]["same_answers"] == 1.0 and timings["draft"]["answer_tokens"] <= 8
    assert "student drafting" in Path("reports/report.html").read_text()
    lines = Path("data/evaluate/predictions/kd/seed-2.jsonl").read_text().splitlines()
    assert len(lines) == 18
    assert Path("data/evaluate/losses/kd-seed-1.csv").read_text().splitlines()[2] == "2,1.5,0"
    assert Path("reports/report.html").exists()


def test_a_student_is_asked_with_the_prefix_that_it_learnt(trained: Path, make_model, tokenizer):
    from cohobate.generation.decoding import generate_answers

    model = make_model(tokenizer, seed=0)
    for seed in (1, 2):
        folder = Path(f"models/train/kd/seed-{seed}")
        checkpoints.save(model, tokenizer, folder, {"prompt_prefix": "[label] "})
    run(PARAMS, TASK, [1, 2], GenerateParams())
    rows = [row for row in read_rows(TEST, Row) if row.answer is not None]
    for arm, prefix in {"teacher": "", "kd/seed-1": "[label] "}.items():
        prompts = [prefix + row.prompt for row in rows]
        answers = dict(generate_answers(model, tokenizer, prompts, PARAMS.decoding, threads=1))
        lines = Path(f"data/evaluate/predictions/{arm}.jsonl").read_text().splitlines()
        written = [json.loads(line)["answer"] for line in lines]
        assert written == [answers[n].text for n in range(len(rows))]
    fidelity = read("reports/metrics.json")["fidelity"]
    assert fidelity["kl"] > 1e-4  # each reads the same answers behind its own prompt


def test_running_it_again_gives_the_same_bytes(trained: Path) -> None:
    def hashed() -> dict[str, bytes]:
        run(PARAMS, TASK, [1, 2], GenerateParams())
        files = [*Path("data/evaluate").rglob("*.*"), Path("reports/metrics.json")]
        return {str(path): path.read_bytes() for path in files}

    assert hashed() == hashed()


def test_another_vocabulary_is_not_compared(
    trained: Path, make_model: Callable[..., Any], make_tokenizer: Callable[..., Any]
) -> None:
    other = make_tokenizer(vocabulary=280)
    checkpoints.save(make_model(other, layers=2), other, Path("models/train/kd/seed-1"), {})
    checkpoints.save(make_model(other, layers=2), other, Path("models/train/kd/seed-2"), {})
    run(PARAMS, TASK, [1, 2], GenerateParams())
    assert read("reports/metrics.json")["fidelity"] is None
    assert "vocabularies differ" in Path("reports/report.html").read_text()
