"""On-policy text by vLLM: TRL's helper as it is, over a stand-in for vLLM's engine.

The stand-in decodes greedily with weights of its own, so that an answer shows which weights it had.
"""

import copy
import os
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from cohobate.data.examples import Example
from cohobate.errors import UserError
from cohobate.generation.decoding import decode_batch, stop_ids
from cohobate.generation.requests import Batching, Decoding, Request
from cohobate.methods.rollout_settings import ConstantShare, Sampling
from cohobate.methods.rollouts import StudentRollouts
from cohobate.methods.train import Method
from cohobate.params import ParamsError, validated
from cohobate.training.adapters import Lora, merged_weights
from tests.cohobate.methods.test_on_policy import ON_POLICY, prompts

SAMPLING = Sampling.model_validate(
    {"decoding": {"max_tokens": 6, "temperature": 1}, "writer": {"type": "vllm", "memory": 0.2}}
)


@pytest.fixture
def engine(monkeypatch, model) -> SimpleNamespace:
    """The parts of vLLM that TRL's helper uses."""
    from trl.generation import vllm_generation

    calls = SimpleNamespace(options={}, samplings=[], model=copy.deepcopy(model).float().eval())
    with torch.no_grad():
        for weight in calls.model.parameters():
            weight.zero_()  # what vLLM read from disk is not the student's of now

    class LLM:
        def __init__(self, **options: Any) -> None:
            calls.options = options
            runner = SimpleNamespace(model=SimpleNamespace(load_weights=self.load))
            driver = SimpleNamespace(model_runner=runner)
            self.llm_engine = SimpleNamespace(model_executor=SimpleNamespace(driver_worker=driver))

        def load(self, named: list[tuple[str, torch.Tensor]]) -> None:
            own = dict(calls.model.named_parameters())
            for name, weight in named:
                own[name].data.copy_(weight)

        def reset_prefix_cache(self) -> None:
            """Nothing is kept here."""

        def generate(self, prompts: Any, sampling_params: Any, use_tqdm: bool) -> Any:
            calls.samplings.append(sampling_params)
            how = Decoding(max_tokens=sampling_params["max_tokens"])
            stop = frozenset(sampling_params["stop_token_ids"])
            outputs = []
            for prompt in prompts:
                ids = list(prompt["prompt_token_ids"])
                (answer,) = decode_batch(calls.model, [Request(ids)], how, stop, Batching())
                logprobs = [{n: SimpleNamespace(logprob=-1.0, rank=1)} for n in answer.ids]
                one = SimpleNamespace(token_ids=answer.ids, logprobs=logprobs)
                outputs.append(SimpleNamespace(prompt_token_ids=ids, outputs=[one]))
            return outputs

    monkeypatch.setattr(vllm_generation, "LLM", LLM, raising=False)
    monkeypatch.setattr(vllm_generation, "SamplingParams", dict, raising=False)
    monkeypatch.setattr(vllm_generation, "is_vllm_available", lambda: True)
    monkeypatch.setattr("cohobate.methods.rollout_generators.find_spec", lambda name: name)
    return calls


def greedy(model: Any, tokenizer: Any, row: Example) -> list[int]:
    ids = row.ids[: row.prompt_length].tolist()
    how, stop = Decoding(max_tokens=6), stop_ids(model, tokenizer)
    (answer,) = decode_batch(model, [Request(ids)], how, stop, Batching())
    return [*ids, *answer.ids]


def test_answers_are_those_of_the_students_weights_right_now(model, tokenizer, engine) -> None:
    before = dict(os.environ)
    text = StudentRollouts(
        model.train(), tokenizer, SAMPLING, ConstantShare(share=1), seed=1, updates=4
    )
    assert dict(os.environ) == before, "a rank would outlive this phase"
    for update in range(2):
        generated = text.rows(update, prompts())
        model.eval()
        expected = [greedy(model, tokenizer, row) for row in prompts()]
        assert generated and sorted(row.ids.tolist() for row in generated) == sorted(expected)
        with torch.no_grad():
            for weight in model.train().parameters():
                weight.add_(torch.randn_like(weight))
    assert all(row.by_student for row in generated)
    assert text.counts["answers"] == 2 * len(prompts())
    assert engine.options["gpu_memory_utilization"] == 0.2
    assert engine.options["model"] == model.name_or_path
    assert {"max_tokens": 6, "temperature": 1, "top_p": 1.0}.items() <= engine.samplings[0].items()


def says_always(model: Any, token: int) -> None:
    """Have every position of a model favour one token, whatever stands before it."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.fill_(any(part in name for part in ("norm", "embed", "lm_head")))
        model.get_output_embeddings().weight[token] = 2


def test_an_answer_ends_where_the_tokenizer_says(model, tokenizer, engine) -> None:
    text = StudentRollouts(model, tokenizer, SAMPLING, ConstantShare(share=1), seed=1, updates=4)
    end = tokenizer.eos_token_id
    says_always(model, end)
    (ended,) = text.generator.generate([Request([5, 6, 7])])
    assert (ended.ids, ended.finish) == ([end], "stop")
    says_always(model, end + 1)
    (cut,) = text.generator.generate([Request([5, 6, 7])])
    assert (cut.ids, cut.finish) == ([end + 1] * 6, "length")
    assert cut.logprob == pytest.approx(-1.0)


def test_without_vllm_it_says_what_to_do(model, tokenizer) -> None:
    with pytest.raises(UserError, match="vLLM is not installed") as refused:
        StudentRollouts(model, tokenizer, SAMPLING, ConstantShare(share=1), seed=1, updates=4)
    assert "uv pip install vllm" in refused.value.fix


def test_low_rank_updates_are_part_of_the_weights(model, tokenizer, engine) -> None:
    text = StudentRollouts(model, tokenizer, SAMPLING, ConstantShare(share=1), seed=1, updates=4)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    lora = Lora(type="lora", rank=4)
    requests = [Request(row.ids[: row.prompt_length].tolist()) for row in prompts()]
    with lora.attach(model, [], seed=1):
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if "lora_B" in name:
                    weight.normal_(std=0.3)
        merged = dict(merged_weights(model))
        generated = text.generator.generate(requests)
        model.eval()
        expected = [greedy(model, tokenizer, row) for row in prompts()]
        # the base stays to the bit
        bases = {n.replace(".base_layer.", "."): w for n, w in model.named_parameters()}
        assert all(torch.equal(bases[name], before[name]) for name in before)
    pairs = zip(requests, generated, strict=True)
    assert [[*request.ids, *answer.ids] for request, answer in pairs] == expected
    assert merged.keys() == before.keys()
    after = dict(model.named_parameters())
    assert all(torch.allclose(after[name], merged[name], atol=1e-6) for name in merged)
    assert any(not torch.equal(before[name], merged[name]) for name in merged)


def test_a_quantised_student_and_vllm_do_not_go_together() -> None:
    whole = ON_POLICY | {"sampling": {"writer": {"type": "vllm"}}}
    validated(Method, whole | {"adapter": {"type": "lora"}}, "train.kd")
    with pytest.raises(ParamsError, match="leave out quantisation"):
        validated(Method, whole | {"quantisation": {"type": "int8"}}, "train.kd")


@pytest.mark.gpu
def test_vllm_itself_writes_what_the_student_would(model, tokenizer) -> None:
    how = SAMPLING.model_copy(update={"decoding": Decoding(max_tokens=6)})
    text = StudentRollouts(model.cuda(), tokenizer, how, ConstantShare(share=1), seed=1, updates=4)
    generated = text.rows(0, prompts())
    expected = [greedy(model, tokenizer, row) for row in prompts()]
    written = sorted(row.ids.tolist() for row in generated or [])
    agree = np.mean([a == b for a, b in zip(written, sorted(expected), strict=True)])
    assert agree > 0.5  # bfloat16 may turn a near tie
