"""vLLM: what it is asked, and how its answers are read; on a GPU, that they are the model's."""

import shutil
import sys
from types import ModuleType, SimpleNamespace

import pytest

from cohobate.backends.settings import GenerateParams
from cohobate.backends.vllm import Vllm
from cohobate.data.records import (
    ADAPT,
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
    assert stand_in.samplings == [{"max_tokens": 9, "logprobs": 0, "temperature": 0.0}] * 5


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
