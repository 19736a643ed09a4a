"""Scores and gains as the report writes them."""

from cohobate.evaluation.score_text import ScoreText


def test_gains_are_points_or_a_reduction_or_a_multiple() -> None:
    gain = {"low": 0.033, "mean": 0.05, "high": 0.068}
    assert ScoreText("verifier").gain(gain) == "+5.0 [+3.3, +6.8]"
    assert ScoreText("perplexity").gain(gain) == "+5.0 [+3.3, +6.8]"
    worse = {"low": -4000.0, "mean": -3302.0, "high": -2000.0}
    assert ScoreText("perplexity").gain(worse) == "3.30 k times as high"


def test_a_perplexity_at_the_limit_of_the_metric_is_a_bound() -> None:
    assert ScoreText("perplexity").score(1e6) == ">1,000,000"
    assert ScoreText("perplexity").score(65.221) == "65.22"
    assert ScoreText("verifier").score(0.6772) == "67.7"
