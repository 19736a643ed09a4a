"""vLLM: what it is asked, and how its answers are read; on a GPU, that they are the model's."""

import json
import shutil
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from cohobate.backends import ray_workers
from cohobate.backends.settings import GenerateParams
from cohobate.backends.vllm import Vllm
from cohobate.data.records import (
    ADAPT,
    ANSWER_SIGNALS,
    CAPTURE,
    FILTER,
    GENERATE,
    UNLABELLED,
    Response,
    Row,
    read_rows,
    row_id,
    write_rows,
)
from cohobate.errors import UserError
from cohobate.generation.requests import Decoding
from cohobate.teachers.signal_store.settings import CaptureParams
from cohobate.teachers.signal_store.store import SignalStore
from cohobate.teachers.teacher import Teacher
from tasks.capture.stage import run as run_capture
from tasks.generate.stage import run
from tests.loopback_teacher import publish_address


@pytest.fixture
def ready(project, checkpoint):
    shutil.copytree(checkpoint, ADAPT / "main")
    prompts = [f"a small animal {n}" for n in range(5)]
    write_rows(UNLABELLED, [Row(id=row_id(p), prompt=p) for p in prompts])


@pytest.fixture
def stand_in(monkeypatch, tokenizer):
    """The part of vLLM that is used, which echoes each prompt."""
    module, calls = ModuleType("vllm"), SimpleNamespace(samplings=[], options={})

    class LLM:
        def __init__(self, **options):
            calls.options = options

        def generate(self, prompts, samplings, use_tqdm):
            calls.samplings += samplings
            for prompt in prompts:
                ids = [*prompt["prompt_token_ids"], tokenizer.eos_token_id]
                one = SimpleNamespace(token_ids=ids, finish_reason="stop", cumulative_logprob=-2.0)
                yield SimpleNamespace(outputs=[one])

    module.LLM, module.SamplingParams = LLM, dict
    monkeypatch.setitem(sys.modules, "vllm", module)
    return calls


def answered(backend, **how):
    run("main", GenerateParams(backend=backend, decoding=Decoding(max_tokens=9, **how)))
    return list(read_rows(GENERATE / "main" / "responses.jsonl", Response))


def test_answers_come_without_the_closing_token(ready, stand_in, tokenizer):
    rows = answered(Vllm(type="vllm", rows=2, gpus=2))
    assert all(row.answer == row.prompt and row.finish == "stop" for row in rows)
    length = len(tokenizer(rows[0].prompt)["input_ids"]) + 1
    assert rows[0].logprob == pytest.approx(-2 / length, abs=1e-6)
    assert stand_in.options["tensor_parallel_size"] == 2
    assert stand_in.options["pipeline_parallel_size"] == 1
    assert stand_in.samplings == [{"max_tokens": 9, "logprobs": 0, "temperature": 0.0}] * 5


class Engine:
    """An actor's handle, whose calls are answered at once."""

    def __init__(self, name):
        self.name, self.generate = name, SimpleNamespace(remote=self.answers)

    def answers(self, prompts, samplings, use_tqdm):
        return [f"{self.name} {prompt} {s}" for prompt, s in zip(prompts, samplings, strict=True)]


def test_prompts_are_divided_among_replicas_and_keep_their_order(monkeypatch):
    import ray

    monkeypatch.setattr(ray, "get", lambda replies: replies)
    replicas = ray_workers.VllmReplicas([Engine("a"), Engine("b")])
    outputs = replicas.generate([1, 2, 3], [7, 8, 9], use_tqdm=False)
    assert outputs == ["a 1 7", "a 2 8", "b 3 9"]
    assert replicas.generate([1], [7], use_tqdm=False) == ["a 1 7"]


def test_replicas_are_started_with_their_gpus(ready, stand_in, monkeypatch, tokenizer):
    calls = []

    def start(options, replicas, gpus):
        calls.append((options, replicas, gpus))
        return sys.modules["vllm"].LLM(**options)

    monkeypatch.setattr(ray_workers, "start_vllm", start)
    rows = answered(Vllm(type="vllm", gpus=2, stages=2, replicas=3))
    assert all(row.answer == row.prompt for row in rows)
    ((options, replicas, gpus),) = calls
    assert (replicas, gpus, options["pipeline_parallel_size"]) == (3, 4, 2)
    assert Path(options["model"]).is_absolute()


def test_each_sample_has_a_seed_of_its_own(ready, stand_in):
    answered(Vllm(type="vllm"), temperature=1.0)
    assert len({sampling["seed"] for sampling in stand_in.samplings}) == 5


def test_what_cannot_work_is_refused(ready, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(UserError, match="vLLM is not installed"):
        answered(Vllm(type="vllm"))
    publish_address("http://127.0.0.1:9/v1")
    with pytest.raises(UserError, match="behind an endpoint"):
        answered(Vllm(type="vllm"))


@pytest.mark.gpu
def test_greedy_answers_are_the_models_own(ready):
    here = [row.answer for row in answered(GenerateParams().backend)]
    assert [row.answer for row in answered(Vllm(type="vllm"))] == here


class Logprob(SimpleNamespace):
    """The fields of `vllm.logprobs.Logprob`."""


@pytest.fixture
def with_logprobs(monkeypatch, stand_in, tokenizer, model):
    """Log-probabilities of the tiny model, as vLLM gives them: k or k + 1 a token, by id."""
    module = sys.modules["vllm"]
    generate = module.LLM.generate

    def likeliest(self, prompts, samplings, use_tqdm):
        outputs = generate(self, prompts, samplings, use_tqdm)
        for prompt, sampling, output in zip(prompts, samplings, outputs, strict=True):
            (one,), k = output.outputs, sampling["logprobs"]
            before, ids = prompt["prompt_token_ids"], one.token_ids
            with torch.no_grad():
                logp = model(torch.tensor([before + ids])).logits[0, len(before) - 1 : -1]
            logp = logp.double().log_softmax(-1)
            one.logprobs = [
                {n: Logprob(logprob=float(row[n]), rank=1, decoded_token="") for n in
                 {*row.topk(k).indices.tolist(), drawn}}
                for row, drawn in zip(logp, ids, strict=True)
            ]  # fmt: skip
            yield output

    monkeypatch.setattr(module.LLM, "generate", likeliest)
    return stand_in


def kept_signals(k=24, temperatures=(1.0,)):
    form = {"type": "top_k", "k": k, "temperatures": temperatures}
    params = GenerateParams(
        backend=Vllm(type="vllm", precision="float32"), decoding=Decoding(max_tokens=40)
    )
    capture = CaptureParams(signals=form, precision="float32", threads=1)
    run("main", params, None, Teacher(model="tiny"), capture)
    shutil.copytree(GENERATE / "main", FILTER, dirs_exist_ok=True)
    (FILTER / "responses.jsonl").replace(FILTER / "kept.jsonl")
    return captured(capture)


def captured(capture):
    run_capture("main", Teacher(model="tiny"), capture)
    summary = json.loads((CAPTURE / "main" / "summary.json").read_text())
    return SignalStore(CAPTURE / "main"), summary["rows_with_answers"]


def test_signals_come_with_its_answers(ready, with_logprobs):
    store, copied = kept_signals()
    assert with_logprobs.options["max_logprobs"] == 24
    assert {sampling["logprobs"] for sampling in with_logprobs.samplings} == {24}
    assert copied == store.origin.rows == 5
    with_answers = store.read(range(5))
    shutil.rmtree(ANSWER_SIGNALS)
    form = {"type": "top_k", "k": 24}
    by_pass, copied = captured(CaptureParams(signals=form, precision="float32", threads=1))
    assert copied == 0
    for name, bound in (("ids_NK", 0), ("logp_NK", 0.02), ("rest_logprob_NQ", 0.02)):
        difference = (with_answers[name] - by_pass.read(range(5))[name]).abs().max()
        assert difference <= bound


def test_it_gives_none_at_other_temperatures(ready, with_logprobs):
    store, copied = kept_signals(temperatures=(1.0, 2.0))
    assert (store.origin.rows, copied) == (5, 0)
    assert {sampling["logprobs"] for sampling in with_logprobs.samplings} == {0}


@pytest.mark.parametrize("damage", ["fewer", "nan", "positive", "padding"])
def test_signals_that_cannot_be_right_are_not_kept(ready, with_logprobs, monkeypatch, damage):
    module = sys.modules["vllm"]
    generate = module.LLM.generate

    def damaged(self, prompts, samplings, use_tqdm):
        for n, output in enumerate(generate(self, prompts, samplings, use_tqdm)):
            first = output.outputs[0].logprobs[0]
            likeliest = max(first, key=lambda token: first[token].logprob)
            if n == 2 and damage == "fewer":
                for token in sorted(first)[:3]:
                    del first[token]
            elif n == 2 and damage == "padding":
                first[100_000] = first.pop(likeliest)
            elif n == 2:
                first[likeliest].logprob = float("nan") if damage == "nan" else 0.5
            yield output

    monkeypatch.setattr(module.LLM, "generate", damaged)
    assert kept_signals()[1] == 4
