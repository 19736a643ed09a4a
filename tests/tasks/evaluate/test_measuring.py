"""What is counted and measured on models: footprint, fidelity, clock."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tasks.evaluate.efficiency import footprint
from tasks.evaluate.fidelity import compare
from tasks.evaluate.timing import Timing
from tasks.records import Row


def llama(**config: Any) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    options = {
        "vocab_size": 32, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4,
    }  # fmt: skip
    return LlamaForCausalLM(LlamaConfig(**(options | config))).eval()


@pytest.mark.parametrize("tied", [True, False])
def test_a_tiny_llama_by_hand(tied: bool, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"x" * 77)
    model = llama(tie_word_embeddings=tied)
    counted = footprint(model, tmp_path, context=10)
    # q: 8x8, k and v: 8x4 each, o: 8x8; gate, up, down: 8x16 each; two norms of 8
    matrices = 8 * 8 + 2 * 8 * 4 + 8 * 8 + 3 * 8 * 16
    inner = 2 * (matrices + 2 * 8) + 8  # and the last norm
    assert counted.non_embedding_parameters == inner
    assert counted.parameters == inner + (1 if tied else 2) * 32 * 8
    # two products of 10 keys with 2 heads of width 4 in each layer, scores and values
    attention = 2 * (2 * 2 * 10 * 2 * 4)
    assert counted.flops_per_token == 2 * (2 * matrices + 32 * 8) + attention
    assert counted.bytes == 77
    assert model.config._attn_implementation == llama().config._attn_implementation


ROWS = [
    Row(id=str(n), prompt=f"Definition: a small {word}\nCategory:", answer=answer)
    for n, (word, answer) in enumerate(
        [("dog", " animal"), ("very old oak", " plant"), ("x", " person person"), ("bird", "")]
    )
]


def test_a_model_agrees_with_itself(model: Any, tokenizer: Any) -> None:
    same = compare(model, model, tokenizer, ROWS, batch=3)
    assert same.top1_agreement == 1
    assert same.kl == pytest.approx(0, abs=1e-6)


def test_divergence_equals_the_plain_sum(make_model: Callable[..., Any], tokenizer: Any) -> None:
    import torch

    from tasks.text import encode_all

    teacher, student = make_model(tokenizer), make_model(tokenizer, seed=1, layers=2)
    found = compare(teacher, student, tokenizer, ROWS, batch=3)
    kl, same, tokens = 0.0, 0, 0
    for row in encode_all(tokenizer, ROWS):  # one by one, in float64, every position
        with torch.no_grad():
            p, q = (
                m(torch.tensor([row.ids])).logits[0].double().log_softmax(-1)
                for m in (teacher, student)
            )
        for place in range(len(row.prompt_ids) - 1, len(row.ids) - 1):
            kl += float((p[place].exp() * (p[place] - q[place])).sum())
            same += int(p[place].argmax() == q[place].argmax())
            tokens += 1
    assert found.tokens == tokens
    assert found.kl == pytest.approx(kl / tokens, rel=1e-4)
    assert found.kl > 0.1
    assert found.top1_agreement == pytest.approx(same / tokens, abs=1e-6)


def test_the_larger_model_takes_longer_and_more_memory(
    make_model: Callable[..., Any], tokenizer: Any
) -> None:
    models = {
        "teacher": make_model(tokenizer, layers=24, hidden_size=128, intermediate_size=512),
        "student": make_model(tokenizer, layers=1),
    }
    timing = Timing(seconds=0.3, new_tokens=4, batch=3)
    prompts = [[5, 6, 7, 8], [5, 6, 7], [9, 9, 9, 9, 9]]
    found = timing.measure(models, {"teacher": prompts, "student": prompts})
    teacher, student = found["models"]["teacher"], found["models"]["student"]
    assert teacher["latency_ms_p50"] > student["latency_ms_p50"] > 0
    assert teacher["latency_ms_p95"] >= teacher["latency_ms_p50"]
    assert teacher["tokens_per_second"] < student["tokens_per_second"]
    weights = sum(p.numel() * p.element_size() for p in models["teacher"].parameters())
    assert teacher["peak_memory_bytes"] > weights
    assert student["peak_memory_bytes"] < teacher["peak_memory_bytes"]
    assert found["prompt_tokens"] == 3
    assert found["batch"] == 3


def test_memory_counts_what_lives_at_once() -> None:
    import torch

    from tasks.evaluate.memory import Allocations

    weight = torch.ones(100, 100)
    with Allocations([weight]) as allocations:
        one = weight + 1  # 40,000 bytes
        del one
        two = weight.t() @ weight  # a view is nothing new; the product is 40,000
        three = two * 2  # both live: 80,000
        del two
        four = three[:50] + 0  # 20,000 beside three
    assert allocations.peak == 80_000
    del three, four
    assert allocations._held == 0
