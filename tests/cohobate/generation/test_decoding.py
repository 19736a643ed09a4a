"""Batched decoding: the tokens of one-by-one decoding, in fewer steps."""

import random
from collections import Counter

import pytest
import torch

from cohobate.generation import active_rows
from cohobate.generation.decoding import decode_batch, generate_answers, plan_batches, stop_ids
from cohobate.generation.requests import Batching, Decoding, Request


@pytest.fixture
def prompts(tokenizer):
    rng = random.Random(0)
    words = ["a small", " animal", " plant", "Definition:", " person", "q", " zz"]
    return ["".join(rng.choices(words, k=rng.randint(1, 9))) for _ in range(60)]


@pytest.fixture
def requests(prompts, tokenizer):
    return [Request(tokenizer(p)["input_ids"], str(n)) for n, p in enumerate(prompts)]


def one_by_one(model, tokenizer, request, room):
    ids = torch.tensor([request.ids])
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=room, do_sample=False
    )
    return out[0, len(request.ids) :].tolist()


def all_of(model, tokenizer, requests, how, batching):
    answers = {}
    for batch in plan_batches(requests, how, batching):
        written = decode_batch(
            model, [requests[n] for n in batch], how, stop_ids(model, tokenizer), batching
        )
        answers |= dict(zip(batch, written, strict=True))
    return [answers[n] for n in range(len(requests))]


@pytest.mark.parametrize("rows", [3, 16])
def test_greedy_tokens_are_those_of_generate_one_by_one(model, tokenizer, requests, rows):
    how = Decoding(max_tokens=12)
    everything = all_of(model, tokenizer, requests, how, Batching())
    often = Counter(token for w in everything for token in w.ids).most_common(3)[-1][0]
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, often]  # many ends, anywhere
    written = all_of(model, tokenizer, requests, how, Batching(rows=rows))
    assert [w.ids for w in written] == [one_by_one(model, tokenizer, r, 12) for r in requests]
    assert len({len(w.ids) for w in written}) > 3
    assert {w.finish for w in written} == {"stop", "length"}


@pytest.mark.parametrize("rows", [3, 64])
def test_answers_of_unlike_length_take_the_slots_of_those_that_ended(
    model, tokenizer, requests, rows
):
    how = Decoding(max_tokens=40)
    free = all_of(model, tokenizer, requests, how, Batching())
    common = Counter(token for w in free for token in set(w.ids)).most_common()
    often = next(token for token, n in common if n <= len(requests) // 2)
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, often]
    written = all_of(model, tokenizer, requests, how, Batching(rows=rows))
    assert [w.ids for w in written] == [one_by_one(model, tokenizer, r, 40) for r in requests]
    assert len({len(w.ids) for w in written}) > 5
    steps = sum(map(len, (w.ids for w in written))) / rows
    calls = counted_calls(
        model, lambda: all_of(model, tokenizer, requests, how, Batching(rows=rows))
    )
    assert rows == 64 or calls < 2.5 * steps + 40 * len(
        plan_batches(requests, how, Batching(rows=rows))
    )


def counted_calls(model, work):
    calls = []
    handle = model.register_forward_hook(lambda *_: calls.append(1))
    try:
        work()
    finally:
        handle.remove()
    return len(calls)


def test_samples_and_scores_do_not_depend_on_the_slot(model, tokenizer, requests):
    how = Decoding(max_tokens=20, temperature=1.0, top_p=0.9)
    model.generation_config.eos_token_id = list(range(0, 400, 7))
    alone, few = (all_of(model, tokenizer, requests, how, Batching(rows=rows)) for rows in (1, 4))
    assert [w.ids for w in alone] == [w.ids for w in few]
    assert [w.logprob for w in alone] == pytest.approx([w.logprob for w in few], abs=1e-4)


def test_rows_of_unequal_length_read_and_write_side_by_side(model, tokenizer):
    model.generation_config.eos_token_id = None
    requests = [Request([7, 8, 9, 10, 11][:n] * k) for n, k in ((5, 1), (3, 1), (4, 2), (5, 2))]
    written = decode_batch(model, requests, Decoding(max_tokens=9), frozenset(), Batching())
    assert [w.ids for w in written] == [one_by_one(model, tokenizer, r, 9) for r in requests]


def test_log_probabilities_are_the_models_own(model, tokenizer, requests):
    request = requests[0]

    def measure(logits_BV):
        ids_logp = logits_BV.log_softmax(-1).topk(3)
        return {"ids_NK": ids_logp.indices, "logp_NK": ids_logp.values}

    (written,) = decode_batch(
        model, [request], Decoding(max_tokens=5), frozenset(), Batching(), measure=measure
    )
    ids = torch.tensor([request.ids + written.ids])
    logp_SV = model(ids).logits[0].log_softmax(-1)
    steps = [logp_SV[len(request.ids) - 1 + n] for n in range(5)]
    mean = sum(step[token] for step, token in zip(steps, written.ids, strict=True)) / 5
    assert written.logprob == pytest.approx(mean.item(), abs=1e-5)
    for step, token in zip(steps, written.signals, strict=True):
        assert torch.allclose(step.topk(3).values, token["logp_NK"], atol=1e-5)
        assert torch.equal(step.topk(3).indices, token["ids_NK"])


def test_a_sample_is_its_own_whatever_the_batch(model, tokenizer, requests):
    how = Decoding(max_tokens=6, temperature=1.0, top_p=0.9, seed=3)
    alone = all_of(model, tokenizer, requests, how, Batching(rows=1))
    together = all_of(model, tokenizer, requests, how, Batching(rows=16))
    assert [w.ids for w in alone] == [w.ids for w in together]
    other = all_of(model, tokenizer, requests, how.model_copy(update={"seed": 4}), Batching())
    assert [w.ids for w in other] != [w.ids for w in together]


def test_samples_follow_the_distribution(model):
    request = Request([7, 8, 9])
    many = [request._replace(draw=str(n)) for n in range(4000)]
    how = Decoding(max_tokens=1, temperature=0.8)
    drawn = Counter(w.ids[0] for w in decode_batch(model, many, how, frozenset(), Batching()))
    expected_V = (model(torch.tensor([request.ids])).logits[0, -1] / 0.8).softmax(-1)
    for token in expected_V.topk(5).indices.tolist():
        p = expected_V[token].item()
        assert drawn[token] / 4000 == pytest.approx(p, abs=4 * (p * (1 - p) / 4000) ** 0.5)
    nucleus = decode_batch(
        model, many, how.model_copy(update={"top_p": 1e-6}), frozenset(), Batching()
    )
    assert {w.ids[0] for w in nucleus} == {expected_V.argmax().item()}


def test_the_context_bounds_an_answer(model, tokenizer):
    full, nearly = Request([5] * 256), Request([5] * 253)
    one, other = decode_batch(
        model, [full, nearly], Decoding(max_tokens=9), frozenset(), Batching()
    )
    assert (one.ids, one.finish, one.logprob) == ([], "length", None)
    assert (len(other.ids), other.finish) == (3, "length")


def test_batches_are_bounded_and_of_like_length(requests):
    long = [Request([1] * n) for n in range(300, 400)]
    how, batching = Decoding(max_tokens=4), Batching(rows=8, tokens=2000)
    batches = plan_batches(requests + long, how, batching)
    assert sorted(n for batch in batches for n in batch) == list(range(len(requests + long)))
    for batch in batches:
        lengths = [len((requests + long)[n].ids) for n in batch]
        assert len(batch) <= 8 and (max(lengths) + 4) * len(batch) <= 2000
        assert max(lengths) - min(lengths) <= min(lengths) // 32
    assert sum(len(batch) > 1 for batch in batches if batch[0] >= len(requests)) > 10


def test_dropping_whole_batches_leaves_the_others_as_they_are(requests):
    requests = requests + [Request([1] * n) for n in range(100, 140)]
    how, batching = Decoding(max_tokens=4), Batching(rows=4, tokens=600)
    batches = plan_batches(requests, how, batching)
    for seed in range(20):
        kept = [b for b in batches if random.Random(f"{seed}{b}").random() < 0.6]
        left = sorted(n for batch in kept for n in batch)
        again = plan_batches([requests[n] for n in left], how, batching)
        assert [[left[n] for n in batch] for batch in again] == kept


def test_answers_are_text_without_the_closing_token(model, tokenizer, prompts):
    answers = dict(
        generate_answers(model, tokenizer, prompts, Decoding(max_tokens=6), Batching(rows=7))
    )
    assert sorted(answers) == list(range(len(prompts)))
    request = Request(tokenizer(prompts[5])["input_ids"])
    (written,) = decode_batch(
        model, [request], Decoding(max_tokens=6), stop_ids(model, tokenizer), Batching()
    )
    ids = written.ids[:-1] if written.finish == "stop" else written.ids
    assert answers[5].text == tokenizer.decode(ids)


@pytest.mark.parametrize(("temperature", "top_p"), [(0.7, 1.0), (1.0, 0.9), (1.5, 0.6)])
def test_a_draw_is_found_among_the_likeliest_ids_or_among_all(temperature, top_p):
    """As by sorting the whole vocabulary: flat rows, on which the likeliest ids are few, too."""
    generator = torch.Generator().manual_seed(3)
    widths_B1 = torch.tensor([[0.2], [1.0], [4.0], [12.0]]).repeat(8, 1)
    logits_BV = torch.randn(32, 2000, generator=generator) * widths_B1
    draws = torch.rand(32, generator=generator).tolist()
    decoding = Decoding(max_tokens=1, temperature=temperature, top_p=top_p)
    sampled_B = active_rows._sampled(logits_BV, decoding, draws)
    for logits_V, draw, sampled in zip(logits_BV, draws, sampled_B.tolist(), strict=True):
        p, ids = (logits_V.double() / temperature).softmax(-1).sort(descending=True)
        kept = p[p.cumsum(-1) - p < top_p]
        place = int((kept.cumsum(-1) <= draw * kept.sum()).sum())
        assert sampled == int(ids[min(place, len(kept) - 1)])
