"""What is counted and measured on models: footprint, fidelity, clock."""

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cohobate.data.records import CAPTURE, FILTER, Response, Row, write_rows
from cohobate.data.tokenized import Encoded, encode_all
from cohobate.evaluation.answer_logprobs import AnswerLogprobs
from cohobate.evaluation.drafting import Drafting
from cohobate.evaluation.footprint import footprint
from cohobate.evaluation.forgetting import Forgetting
from cohobate.evaluation.timing import Timing
from cohobate.fast.frozen import PACKED_BYTES
from cohobate.fast.packed_linear import pack, packed_bytes
from cohobate.scoring.verifiers import Exact, Label, Task
from tasks.evaluate.fidelity import AnswerTexts, LiveFidelity, StoredFidelity
from tasks.evaluate.metrics import LabelAccuracy, Perplexity


def llama(**config: Any) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    options = {
        "vocab_size": 32, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4,
    }  # fmt: skip
    return LlamaForCausalLM(LlamaConfig(**(options | config))).eval()


def both(texts):
    return AnswerTexts(texts, texts)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("tied", [True, False])
def test_a_tiny_llama_by_hand(tied: bool, packed: bool, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("cohobate.fast.packed_linear._LARGE", 1)
    (tmp_path / "model.safetensors").write_bytes(b"x" * 77)
    model = llama(tie_word_embeddings=tied)
    if packed:  # as the stage loads it
        pack(model, PACKED_BYTES)
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


def texts_of(tokenizer: Any, rows: list[Row]) -> list[Encoded]:
    return list(encode_all(tokenizer, rows))


def test_a_model_agrees_with_itself(model: Any, tokenizer: Any) -> None:
    texts = texts_of(tokenizer, ROWS)
    logprobs = AnswerLogprobs(model, tokenizer, batch=3)
    same = LiveFidelity(top_k=5).compare(logprobs, logprobs, both(texts), both(texts[:2]), "main")
    assert same.top1_agreement == same.top_k_overlap == 1
    assert same.kl == same.reverse_kl == pytest.approx(0, abs=1e-6)
    assert same.student_text is not None
    assert same.student_text.tokens < same.tokens


def test_what_is_trained_afterwards_has_gradients(model: Any, tokenizer: Any) -> None:
    """Two models in turns must not leave the thread in inference mode: stages share a process."""
    import torch

    texts = texts_of(tokenizer, ROWS)
    models = [AnswerLogprobs(model, tokenizer, batch=3) for _ in range(2)]
    hidden = [logprobs.hidden(texts) for logprobs in models]
    one, other = (logprobs.log_probs(h) for logprobs, h in zip(models, hidden, strict=True))
    for _ in zip(one, other, strict=True):
        pass
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


def test_divergences_equal_the_plain_sums(make_model: Callable[..., Any], tokenizer: Any) -> None:
    import torch

    teacher, student = make_model(tokenizer), make_model(tokenizer, seed=1, layers=2)
    texts = texts_of(tokenizer, ROWS)
    models = [AnswerLogprobs(m, tokenizer, batch=3) for m in (teacher, student)]
    figures = LiveFidelity(top_k=4).compare(*models, both(texts), both(texts), "main")
    kl = reverse = overlap = 0.0
    same = tokens = 0
    for row in texts:  # one by one, in float64, every position
        with torch.no_grad():
            p, q = (
                m(torch.tensor([row.ids])).logits[0].double().log_softmax(-1)
                for m in (teacher, student)
            )
        for place in range(len(row.prompt_ids) - 1, len(row.ids) - 1):
            kl += float((p[place].exp() * (p[place] - q[place])).sum())
            reverse += float((q[place].exp() * (q[place] - p[place])).sum())
            same += int(p[place].argmax() == q[place].argmax())
            best = [set(x[place].topk(4).indices.tolist()) for x in (p, q)]
            overlap += len(best[0] & best[1]) / 4
            tokens += 1
    assert figures.tokens == tokens
    assert figures.kl == pytest.approx(kl / tokens, rel=1e-4)
    assert figures.kl > 0.1
    assert figures.reverse_kl == pytest.approx(reverse / tokens, rel=1e-4)
    assert figures.top1_agreement == pytest.approx(same / tokens, abs=1e-6)
    assert figures.top_k_overlap == pytest.approx(overlap / tokens, abs=1e-6)
    assert figures.student_text is not None
    assert figures.student_text.kl == figures.kl


def test_what_was_read_is_not_read_again(model: Any, tokenizer: Any) -> None:
    texts, logprobs = texts_of(tokenizer, ROWS), AnswerLogprobs(model, tokenizer)
    logprobs.compute(texts)
    logprobs.model = None  # what was computed is cached
    assert len(logprobs.hidden(texts)) == sum(len(text.completion_ids) for text in texts)


def test_stored_signals_stand_in_for_the_teacher(
    project: Path, checkpoint: Path, make_model: Callable[..., Any], tokenizer: Any
) -> None:
    from cohobate.teachers.signal_store.capture import capture_signals
    from cohobate.teachers.signal_store.settings import CaptureParams

    kept = [
        Response(**row.model_dump(exclude={"origin"}), origin="teacher", teacher="main",
                 finish="stop")
        for row in ROWS
    ]  # fmt: skip
    write_rows(FILTER / "kept.jsonl", kept)
    whole = CaptureParams(
        signals={"type": "top_k", "k": len(tokenizer) - 1}, precision="float32", threads=1
    )
    capture_signals(checkpoint, FILTER / "kept.jsonl", CAPTURE / "main", whole, label="")
    student = AnswerLogprobs(make_model(tokenizer, seed=1, layers=2), tokenizer)
    teacher = AnswerLogprobs(make_model(tokenizer), tokenizer)
    texts = texts_of(tokenizer, ROWS)
    stored = StoredFidelity(type="stored", top_k=4).compare(
        student, student, both([]), both([]), "main"
    )
    live = LiveFidelity(top_k=4).compare(teacher, student, both(texts), both(texts), "main")
    assert stored.student_text is None
    assert stored.tokens == live.tokens
    assert stored.kl == pytest.approx(live.kl, rel=0.02)  # half precision on disk
    assert stored.reverse_kl == pytest.approx(live.reverse_kl, rel=0.02)
    assert stored.top_k_overlap == pytest.approx(live.top_k_overlap, abs=0.05)


def test_metrics_for_which_the_model_reads(model: Any, tokenizer: Any) -> None:
    import torch

    rows = [row.model_copy(update={"answer": f" {label}"}) for row, label in zip(
        ROWS, ("animal", "plant", "person", "animal"), strict=True)]  # fmt: skip
    texts, logprobs = texts_of(tokenizer, rows), AnswerLogprobs(model, tokenizer)
    label, exact = Task(verifier=Label(type="label")), Task(verifier=Exact(type="exact"))
    lost = []
    right = 0
    firsts = sorted({text.completion_ids[0] for text in texts})
    for text in texts:
        logp = model(torch.tensor([text.ids])).logits[0].double().log_softmax(-1)
        at = len(text.prompt_ids) - 1
        lost += [-float(logp[at + n, i]) for n, i in enumerate(text.completion_ids)]
        right += max(firsts, key=lambda i: float(logp[at, i])) == text.completion_ids[0]
    perplexity = Perplexity(type="perplexity").measure(logprobs, rows, texts, exact)
    assert perplexity == pytest.approx(math.exp(sum(lost) / len(lost)), rel=1e-4)
    accuracy = LabelAccuracy(type="label_accuracy")
    assert accuracy.measure(logprobs, rows, texts, exact) is None
    if len(firsts) == 3:
        assert accuracy.measure(logprobs, rows, texts, label) == right / 4
    alike = [row.model_copy(update={"answer": f" person{n}"}) for n, row in enumerate(rows)]
    assert accuracy.measure(logprobs, alike, texts_of(tokenizer, alike), label) is None


def test_general_text_is_scored_in_bits_a_byte(model: Any, tokenizer: Any) -> None:
    import torch

    passage = "a small animal"
    figures = Forgetting(texts=(passage,)).measure(AnswerLogprobs(model, tokenizer), [passage])
    ids = tokenizer(passage).input_ids
    logp = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    nats = -sum(float(logp[n, i]) for n, i in enumerate(ids[1:]))
    assert figures["bits_per_byte"] == pytest.approx(nats / math.log(2) / len(passage), rel=1e-4)
    assert figures["tokens"] == len(ids) - 1
    assert len(Forgetting().passages()) == 8


def test_the_larger_model_takes_longer_and_more_memory(
    make_model: Callable[..., Any], tokenizer: Any
) -> None:
    models = {
        "teacher": make_model(tokenizer, layers=24, hidden_size=128, intermediate_size=512),
        "student": make_model(tokenizer, layers=1),
    }
    timing = Timing(seconds=0.3, new_tokens=4, batch=3)
    prompts = [[5, 6, 7, 8], [5, 6, 7], [9, 9, 9, 9, 9]]
    figures = timing.measure(models, {"teacher": prompts, "student": prompts})
    teacher, student = figures["models"]["teacher"], figures["models"]["student"]
    assert teacher["latency_ms_p50"] > student["latency_ms_p50"] > 0
    assert teacher["latency_ms_p95"] >= teacher["latency_ms_p50"]
    assert teacher["tokens_per_second"] < student["tokens_per_second"]
    weights = sum(p.numel() * p.element_size() for p in models["teacher"].parameters())
    assert teacher["peak_memory_bytes"] > weights
    assert student["peak_memory_bytes"] < teacher["peak_memory_bytes"]
    pack(models["teacher"], PACKED_BYTES)
    again = timing.measure(models, {"teacher": prompts, "student": prompts})["models"]["teacher"]
    copies = packed_bytes(models["teacher"])
    assert again["peak_memory_bytes"] == pytest.approx(
        teacher["peak_memory_bytes"] + copies, rel=0.1
    )
    assert figures["prompt_tokens"] == 3
    assert figures["batch"] == 3


def test_memory_counts_what_lives_at_once() -> None:
    import torch

    from cohobate.evaluation.peak_memory import TensorMemory

    weight = torch.ones(100, 100)
    with TensorMemory([weight]) as memory:
        one = weight + 1  # 40,000 bytes
        del one
        two = weight.t() @ weight  # a view is nothing new; the product is 40,000
        three = two * 2  # both live: 80,000
        del two
        four = three[:50] + 0  # 20,000 beside three
    assert memory.peak == 80_000
    del three, four
    assert memory._held == 0


def test_a_model_that_drafts_for_itself_has_all_accepted(model: Any, tokenizer: Any) -> None:
    model.generation_config.assistant_confidence_threshold = 0.0
    prompts = [tokenizer(text).input_ids for text in ("a plant", "an animal", "a person")]
    other = copy.deepcopy(model)
    figures = Drafting(tokens=4, new_tokens=10, rows=2).measure(model, other, tokenizer, prompts)
    assert figures["acceptance"] == 1.0 and figures["same_answers"] == 1.0
    assert figures["answer_tokens"] <= 20 and figures["tokens_a_pass"] > 2
    assert {*figures["tokens_per_second"]} == {"teacher", "pair"}
