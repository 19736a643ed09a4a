"""Batched losses against one text at a time, in float64."""

import copy
import math

import pytest
import torch

from cohobate.data.records import Row, row_id
from cohobate.data.tokenized import encode, tokens_behind
from cohobate.generation.likelihood import Continuation, Likelihood
from cohobate.generation.requests import Batching


@pytest.fixture
def rows() -> list[Row]:
    pairs = [("a small", " animal"), ("a plant with roots", " plant"), ("x", " a person, I think")]
    texts = [(f"{prompt} {n}", answer) for n in range(7) for prompt, answer in pairs]
    return [Row(id=row_id(p), prompt=p, answer=a) for p, a in texts]


def reference(model, read: list[int], judged: list[int]) -> float:
    ids = torch.tensor([[*read, *judged]])
    exact = copy.deepcopy(model).double()
    logp = exact(input_ids=ids).logits[0].detach().log_softmax(-1)
    start = len(read) - 1
    return -float(logp[start : start + len(judged)].gather(1, ids[0, len(read) :, None]).mean())


@pytest.mark.parametrize("threads", [1, 2])
def test_losses_are_those_of_one_by_one(model, tokenizer, rows, threads):
    scorer = Likelihood(model, tokenizer, Batching(rows=5, tokens=300), threads)
    actual = list(scorer.answer_losses(rows))
    encoded = [encode(tokenizer, row) for row in rows]
    expected = [reference(model, e.prompt_ids, e.completion_ids) for e in encoded]
    assert actual == pytest.approx(expected, abs=2e-5)


def test_ifd_is_the_ratio_of_two_perplexities(model, tokenizer, rows):
    actual = list(Likelihood(model, tokenizer).instruction_following_difficulty(rows))
    for row, ifd in zip(rows[:6], actual, strict=False):
        encoded = encode(tokenizer, row)
        answer = encoded.completion_ids[:-1]
        with_prompt = reference(model, encoded.prompt_ids, answer)
        alone = reference(model, [tokenizer.eos_token_id], answer)
        assert ifd == pytest.approx(math.exp(with_prompt) / math.exp(alone), rel=1e-4)


def test_what_is_too_long_is_cut_at_the_far_end_of_the_prompt(model, tokenizer):
    context = model.config.max_position_embeddings
    read, judged = list(range(10, 10 + context)), [7, 8]
    actual = Likelihood(model, tokenizer).losses([Continuation(read, judged)])
    assert actual == pytest.approx([reference(model, read[2:], judged)], abs=2e-5)


@pytest.mark.parametrize("threads", [1, 2])
def test_log_odds_are_the_difference_of_two_likelihoods(model, tokenizer, rows, threads):
    scorer = Likelihood(model, tokenizer, Batching(rows=5, tokens=300), threads)
    prompts = [str(row.prompt) for row in rows]
    prompts.append("x y " * model.config.max_position_embeddings)  # loses its start
    actual = list(scorer.log_odds(prompts, " animal", " plant"))
    yes, no = tokens_behind(tokenizer, [" animal", " plant"])
    most = model.config.max_position_embeddings - max(len(yes), len(no))
    for prompt, odds in zip(prompts, actual, strict=True):
        read = encode(tokenizer, Row(id="0", prompt=prompt)).prompt_ids[-most:]
        sums = [-len(ids) * reference(model, read, ids) for ids in (yes, no)]
        assert odds == pytest.approx(sums[0] - sums[1], abs=2e-4)
