"""Perplexity and bits per byte as the metric that decides: lower is better."""

from math import exp, log

import numpy as np
import pytest

from cohobate.data.records import Row, row_id
from cohobate.evaluation.bootstrap import LikelihoodBootstrap, shares_of_loss
from cohobate.evaluation.text_losses import TextLosses
from cohobate.generation.likelihood import Likelihood
from cohobate.scoring.metrics import BitsPerByte, Perplexity

PERPLEXITY, BITS = Perplexity(type="perplexity"), BitsPerByte(type="bits_per_byte")


@pytest.fixture
def bootstrap():
    rng = np.random.default_rng(0)
    sizes_R = rng.integers(5, 50, 300).astype(float)
    nats_R = sizes_R * rng.normal(2.0, 0.2, 300)
    better_R, worse_R = nats_R * 0.9, nats_R * 1.1

    def of(metric):
        losses = {"student": np.stack([nats_R, nats_R]), "teacher": better_R[None]}
        losses |= {"baseline": worse_R[None]}
        shares = {
            arm: np.stack([shares_of_loss(row, sizes_R) for row in rows])
            for arm, rows in losses.items()
        }
        return LikelihoodBootstrap(shares, metric, draws=2000, seed=0)

    return of, float(nats_R.sum() / sizes_R.sum())


def test_a_score_is_the_figure_over_all_tokens(bootstrap):
    of, mean = bootstrap
    score = of(PERPLEXITY).score("student")
    assert score.mean == pytest.approx(exp(mean))
    assert score.low < score.mean < score.high
    assert of(PERPLEXITY).seed_scores("student").tolist() == pytest.approx([exp(mean)] * 2)
    assert of(BITS).score("teacher").mean == pytest.approx(0.9 * mean / log(2))


def test_a_gain_is_the_share_by_which_it_is_lower(bootstrap):
    of, mean = bootstrap
    gain = of(PERPLEXITY).difference("student", "baseline")
    assert gain.mean == pytest.approx(1 - exp(-0.1 * mean))
    assert 0 < gain.low < gain.mean < gain.high < 1
    assert of(PERPLEXITY).difference("baseline", "student").high < 0
    assert of(BITS).difference("student", "baseline").mean == pytest.approx(1 - 1 / 1.1)


def test_retention_is_the_teachers_figure_over_the_students(bootstrap):
    of, mean = bootstrap
    kept = of(PERPLEXITY).ratio("student", "teacher")
    assert kept.mean == pytest.approx(exp(-0.1 * mean)) and kept.high < 1
    assert of(BITS).ratio("student", "teacher").mean == pytest.approx(0.9)
    assert of(BITS).ratio("teacher", "teacher").mean == 1


def test_raw_text_is_measured_at_every_token(model, tokenizer):
    import torch

    text = "animal plant person"
    rows = [Row(id=row_id("", text), prompt="", answer=text, cut=cut) for cut in (True, None)]
    losses = TextLosses.of(Likelihood(model, tokenizer), rows, PERPLEXITY)
    ids = [tokenizer.eos_token_id, *tokenizer(text)["input_ids"]]
    for n, end in enumerate(([], [tokenizer.eos_token_id])):
        with torch.no_grad():
            logp = model(torch.tensor([ids + end])).logits[0].log_softmax(-1)
        targets = (ids + end)[1:]
        nats = -sum(float(logp[at, target]) for at, target in enumerate(targets))
        assert losses.nats_R[n] == pytest.approx(nats, rel=1e-4)
        assert losses.sizes_R[n] == len(targets)
    assert TextLosses.of(Likelihood(model, tokenizer), rows, BITS).sizes_R[0] == len(text)
