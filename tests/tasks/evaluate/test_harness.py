"""lm-evaluation-harness and this project give the same answers the same score, to the digit."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cohobate import params
from cohobate.data.records import Row, row_id, write_rows
from cohobate.errors import UserError
from cohobate.generation.decoding import generate_answers
from cohobate.generation.requests import Decoding
from cohobate.models import checkpoints
from cohobate.params import ParamsError
from cohobate.scoring.metrics import ExactMatch
from cohobate.scoring.verifiers import Label
from tasks.evaluate.arms import Arm
from tasks.evaluate.harness import Harness, means
from tests.tasks.evaluate.simulated_round import read

TASK = """
task: round_test
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{prompt}}}}"
doc_to_target: "{{{{answer|trim}}}}"
generation_kwargs: {{until: ["<|end|>", "<|im_end|>"], max_gen_toks: {most}, do_sample: false}}
filter_list: [{{name: none, filter: [{{function: remove_whitespace}}, {{function: take_first}}]}}]
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
metadata: {{version: 1}}
"""


def lay_out(folder: Path, rows: Path, most: int) -> Harness:
    folder.mkdir(parents=True)
    (folder / "round_test.yaml").write_text(TASK.format(rows=rows.absolute(), most=most))
    return Harness(tasks=("round_test",), include_path=str(folder))


@pytest.fixture
def harness(
    project: Path, make_model: Callable[..., Any], tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> Harness:
    """A task of 30 rows; the reference of every third is what the model will say."""
    pytest.importorskip("lm_eval")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(project / "cache"))
    model = make_model(tokenizer)
    checkpoints.save(model, tokenizer, Path("models/train/kd/seed-1"), {})
    prompts = [f"Definition: {'a small ' * (n % 4)}thing {n}\nCategory:" for n in range(30)]
    answers = dict(generate_answers(model, tokenizer, prompts, Decoding(max_tokens=4)))
    rows = [
        Row(id=row_id(p), prompt=p, answer=f"{answers[n].text}{'' if n % 3 == 0 else ' or not'}")
        for n, p in enumerate(prompts)
    ]
    write_rows(Path("data/collect/test.jsonl"), rows)
    return lay_out(Path("harness"), Path("data/collect/test.jsonl"), 4)


def ours(folder: Path, rows: list[dict[str, Any]], most: int) -> float:
    how = Decoding(max_tokens=most)
    prompts = [row["prompt"] for row in rows]
    answers = dict(generate_answers(*checkpoints.load(folder), prompts, how))
    metric, verifier = ExactMatch(type="exact_match"), Label(type="label")
    scores = [metric.score(answers[n].text, row["answer"], verifier) for n, row in enumerate(rows)]
    return sum(scores) / len(scores)


@pytest.mark.slow  # lm-eval takes long to import
def test_exact_match_is_that_of_lm_eval_to_the_last_digit(harness: Harness) -> None:
    folder = Path("models/train/kd/seed-1")
    rows = [json.loads(line) for line in Path("data/collect/test.jsonl").read_text().splitlines()]
    theirs = harness.results(folder, "float32")["round_test"]["exact_match,none"]
    assert theirs == ours(folder, rows, 4) == pytest.approx(1 / 3)
    arm = Arm("kd", "student", {1: folder})
    Path("reports").mkdir()
    metrics = Path("reports/metrics.json")
    metrics.write_text('{"seeds": 1}')
    harness.measure([arm], "float32", metrics)
    [line] = read("data/evaluate/harness.json")
    assert (line["arm"], line["seed"], line["metric"]) == ("kd", 1, "exact_match")
    assert line["stderr"] == pytest.approx((1 / 3 * 2 / 3 / 29) ** 0.5, abs=1e-6)
    report = read("reports/metrics.json")
    assert report["seeds"] == 1
    assert report["harness"]["round_test"]["exact_match"]["kd"]["value"] == line["value"]


@pytest.mark.slow
def test_a_task_that_nobody_knows_is_a_readable_error(harness: Harness) -> None:
    unknown = harness.model_copy(update={"tasks": ("no_such_task",)})
    with pytest.raises(UserError, match="no_such_task"):
        unknown.results(Path("models/train/kd/seed-1"), "float32")


def test_the_harness_loads_onto_the_accelerator(harness: Harness, monkeypatch) -> None:
    class LoadedError(Exception):
        pass

    def load(folder: Path, **options: Any) -> Any:
        raise LoadedError(options["device"])

    monkeypatch.setattr(checkpoints, "accelerator", lambda: "cuda")
    monkeypatch.setattr(checkpoints, "load", load)
    with pytest.raises(LoadedError, match="cuda"):
        harness.results(Path("models/train/kd/seed-1"), "auto")


def test_no_task_asked_for_leaves_the_metrics_alone(project: Path) -> None:
    Harness().measure([], "float32", project / "metrics.json")
    assert not [*project.iterdir()]


def test_seeds_are_averaged_and_filters_told_apart() -> None:
    base = {"arm": "kd", "task": "t", "metric": "acc", "filter": "none", "stderr": 0.01}
    lines = [
        base | {"seed": 1, "value": 0.5},
        base | {"seed": 2, "value": 0.7},
        base | {"seed": 1, "filter": "strict", "value": 0.2, "stderr": None},
    ]
    assert means(lines) == {
        "t": {
            "acc": {"kd": {"value": 0.6, "stderr": 0.01}},
            "acc strict": {"kd": {"value": 0.2, "stderr": None}},
        }
    }


def test_tasks_are_read_from_the_project_alone() -> None:
    with pytest.raises(ParamsError, match="must stay inside the project"):
        params.validated(Harness, {"include_path": "../elsewhere"}, "evaluate.harness")
