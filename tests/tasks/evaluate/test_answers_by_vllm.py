"""Models under test that generate by vLLM: over a stand-in for it, the figures are the same.

The stand-in decodes the checkpoint that it is given, one prompt after the other.
"""

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from cohobate.backends import ray_workers
from cohobate.backends.settings import GenerateParams
from cohobate.backends.vllm import Vllm
from cohobate.backends.vllm_engine import VllmEngine
from cohobate.data.records import (
    ADAPT,
    DEV,
    TEST,
    VERDICT,
    Row,
    read_rows,
    write_rows,
)  # fmt: skip
from cohobate.errors import UserError
from cohobate.evaluation import tested_checkpoint
from cohobate.generation.decoding import decode_batch, stop_ids
from cohobate.generation.requests import Batching, Decoding, Request
from cohobate.methods.teacher_tuning import NoTuning
from cohobate.models import checkpoints
from cohobate.params import ParamsError, validated
from cohobate.scoring.metrics import VerifierAccuracy
from tasks.adapt.stage import _mean_score
from tasks.challenge.stage import ChallengeParams
from tasks.challenge.stage import run as run_challenge
from tasks.evaluate.settings import EvaluateParams
from tasks.evaluate.stage import run
from tests.tasks.evaluate.simulated_round import read
from tests.tasks.evaluate.test_evaluate_stage import PARAMS, TASK, trained

__all__ = ["trained"]
BY_VLLM = Vllm(type="vllm", memory=0.5, rows=7)
EVALUATE = PARAMS.model_copy(update={"backend": BY_VLLM})


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The models that the stand-in has loaded, and whether each still runs."""
    module, started = ModuleType("vllm"), []

    class LLM:
        def __init__(self, **options: Any) -> None:
            assert not any(one.runs for one in started), "two models would need the GPU at once"
            self.options, self.runs = options, True
            self.loaded = checkpoints.load(Path(options["model"]))
            self.llm_engine = SimpleNamespace(engine_core=SimpleNamespace(shutdown=self.stop))
            started.append(self)

        def stop(self) -> None:
            self.runs = False

        def generate(self, prompts: Any, samplings: Any, use_tqdm: bool) -> Any:
            model, tokenizer = self.loaded
            for prompt, sampling in zip(prompts, samplings, strict=True):
                decoding = Decoding(max_tokens=sampling["max_tokens"])
                request = Request(prompt["prompt_token_ids"])
                stop = stop_ids(model, tokenizer)
                (own,) = decode_batch(model, [request], decoding, stop, Batching())
                logprob = own.logprob * len(own.ids)
                fields = {"finish_reason": own.finish, "cumulative_logprob": logprob}
                yield SimpleNamespace(outputs=[SimpleNamespace(token_ids=own.ids, **fields)])

    module.LLM, module.SamplingParams = LLM, dict
    monkeypatch.setitem(sys.modules, "vllm", module)
    return started


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The checkpoints whose weights were loaded in this process."""
    folders, load = [], tested_checkpoint.load_frozen

    def counted(folder: Path, **options: Any) -> Any:
        folders.append(str(folder))
        return load(folder, **options)

    monkeypatch.setattr(tested_checkpoint, "load_frozen", counted)
    return folders


def predictions() -> dict[str, list[dict[str, Any]]]:
    files = sorted(Path("data/evaluate/predictions").rglob("*.jsonl"))
    return {str(path): [json.loads(x) for x in path.read_text().splitlines()] for path in files}


def test_evaluation_by_vllm_gives_the_figures_of_the_loaded_models(
    trained: Path, engines: list[Any]
) -> None:
    run(PARAMS, TASK, [1, 2], GenerateParams())
    metrics, expected = read("reports/metrics.json"), predictions()
    assert not engines
    run(EVALUATE, TASK, [1, 2], GenerateParams())
    for path, rows in predictions().items():
        for row, other in zip(rows, expected[path], strict=True):
            assert row.pop("confidence") == pytest.approx(other.pop("confidence"), abs=1e-4)
            assert row == other
    again = read("reports/metrics.json")
    assert {k: again[k] for k in ("teacher", "student", "fidelity", "robustness", "agreement")} == {
        k: metrics[k] for k in ("teacher", "student", "fidelity", "robustness", "agreement")
    }
    # teacher, initial student, two seeds of two phases: each once, and none runs any longer
    assert len(engines) == 6 and not any(engine.runs for engine in engines)
    assert engines[0].options["model"] == "models/adapt/main"
    assert engines[0].options["dtype"] == "float32"


def test_of_a_teacher_that_is_larger_than_a_gpu_the_answers_are_evaluated(
    trained: Path, engines: list[Any], loaded: list[str]
) -> None:
    answers = EVALUATE.model_copy(update={"teacher_figures": "answers"})
    run(answers, TASK, [1], GenerateParams())
    assert "models/adapt/main" not in loaded and "models/train/kd/seed-1" in loaded
    assert len(engines) == 4 and not any(engine.runs for engine in engines)
    metrics, (teacher, *_) = read("reports/metrics.json"), read("data/evaluate/arms.json")
    assert metrics["teacher"]["score"] == metrics["student"]["score"]
    assert metrics["fidelity"] is None and teacher["footprint"] is None
    assert read("data/evaluate/served.json")["request"]["prompt_tokens"] > 1
    page = Path("reports/report.html").read_text()
    assert "The teacher, except for its answers: its weights" in page
    with pytest.raises(ParamsError, match="teacher_figures must be all"):
        fields = {"metrics": [{"type": "perplexity"}], "teacher_figures": "answers"}
        validated(EvaluateParams, fields, "evaluate")


def test_champion_and_challenger_and_dev_rows_are_answered_by_vllm(
    trained: Path, engines: list[Any], loaded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_rows(DEV, [row for row in read_rows(TEST, Row) if row.answer is not None])
    where = {"student": "kd", "metric": VerifierAccuracy(), "decoding": Decoding(max_tokens=4)}
    conditions = {"gate": EVALUATE.gate}
    verdicts = []
    for backend in ({}, {"backend": BY_VLLM}):
        challenge = ChallengeParams(precision="float32", threads=1, **backend)
        run_challenge(challenge, TASK, [1], **where, **conditions)
        verdicts.append(read(str(VERDICT)))
    assert verdicts[0] == verdicts[1]
    assert len(engines) == 2 and not any(engine.runs for engine in engines)
    loaded.clear()
    rows = list(read_rows(DEV, Row))
    scores = [
        _mean_score("main", NoTuning(type="none", precision="float32", **fields), TASK,
                    VerifierAccuracy(), rows)
        for fields in ({}, {"dev_backend": BY_VLLM})
    ]  # fmt: skip
    assert scores[0] == scores[1]
    assert loaded == ["models/adapt/main"], "by vLLM no weights are loaded"


def test_the_default_leaves_no_trace_in_provenance() -> None:
    assert "dev_backend" not in NoTuning(type="none").model_dump(mode="json")
    assert "dev_backend" in NoTuning(type="none", dev_backend=BY_VLLM).model_dump(mode="json")


def test_what_vllm_cannot_do_right_is_refused_or_answered_here(
    trained: Path, engines: list[Any]
) -> None:
    folder = ADAPT / "main"
    engine = BY_VLLM.start(folder)
    (cut,) = engine.complete([Request(list(range(engine.context)))], Decoding(max_tokens=3))
    assert (cut.ids, cut.finish) == ([], "length"), "a prompt that fills the context"
    engine.close()
    path = folder / "generation_config.json"
    config = json.loads(path.read_bytes()) | {"suppress_tokens": [5, 6]}
    path.write_text(json.dumps(config))
    with pytest.raises(UserError, match="suppresses 2 tokens"):
        BY_VLLM.start(folder)


def test_replicas_give_their_gpus_back(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray
    from ray import util

    ended: list[Any] = []
    monkeypatch.setattr(ray, "kill", ended.append)
    monkeypatch.setattr(util, "remove_placement_group", ended.append)
    VllmEngine(ray_workers.VllmReplicas(["a", "b"], ["group"]), dict).close()
    assert ended == ["a", "b", "group"]
