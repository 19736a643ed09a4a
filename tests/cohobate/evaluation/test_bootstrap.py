"""Intervals hold the truth as often as they say, and count both sources of chance."""

import numpy as np
import pytest

from cohobate.evaluation.bootstrap import Bootstrap, Floats

GAIN = 0.08


def simulated(number: int, seeds: int, rows: int, spread: float) -> dict[str, Floats]:
    """Scores of a baseline and a student that is better by GAIN in truth.

    Rows differ in ease, and fall alike for both arms (that is what pairing uses); each seed of
    each arm is better or worse by its own amount.
    """
    random = np.random.default_rng(number)
    ease_N = random.uniform(0.2, 0.7, rows)
    shared_N = random.random(rows)

    def arm(better: float) -> Floats:
        own_K1 = random.normal(0, spread, (seeds, 1)) if spread else 0.0
        common = random.random((seeds, rows)) < 0.6
        luck_KN = np.where(common, shared_N, random.random((seeds, rows)))
        return (luck_KN < ease_N + better + own_K1).astype(np.float64)

    return {"baseline": arm(0.0), "student": arm(GAIN)}


def covered(seeds: int, rows: int, spread: float, *, forget_seeds: bool = False) -> int:
    hits = 0
    for number in range(100):
        scores = simulated(number, seeds, rows, spread)
        if forget_seeds:
            scores = {arm: s.mean(axis=0, keepdims=True) for arm, s in scores.items()}
        gain = Bootstrap(scores, 1000, seed=0).difference("student", "baseline")
        hits += gain.low <= GAIN <= gain.high
    return hits


@pytest.mark.parametrize(
    ("seeds", "rows", "spread"),
    [(1, 400, 0.0), (3, 400, 0.0), (3, 400, 0.03), (5, 300, 0.02), (2, 300, 0.02)],
)
def test_intervals_cover_the_truth(seeds: int, rows: int, spread: float) -> None:
    assert covered(seeds, rows, spread) >= 93


def test_rows_alone_do_not_cover_where_seeds_differ() -> None:
    assert covered(3, 2500, 0.03, forget_seeds=True) < 80


def test_pairing_narrows_the_interval() -> None:
    paired = simulated(0, 1, 2000, 0.0)
    random = np.random.default_rng(1)
    unpaired = {arm: random.permuted(scores, axis=1) for arm, scores in paired.items()}
    narrow, wide = (
        Bootstrap(scores, 2000, seed=0).difference("student", "baseline")
        for scores in (paired, unpaired)
    )
    assert narrow.high - narrow.low < 0.9 * (wide.high - wide.low)


def test_patterns_give_what_rows_drawn_one_by_one_give() -> None:
    scores = simulated(3, 1, 500, 0.0)
    interval = Bootstrap(scores, 4000, seed=0).difference("student", "baseline")
    difference_N = (scores["student"] - scores["baseline"])[0]
    random = np.random.default_rng(5)
    means = [random.choice(difference_N, 500).mean() for _ in range(4000)]
    low, high = np.quantile(means, [0.025, 0.975])
    assert interval.low == pytest.approx(low, abs=0.006)
    assert interval.high == pytest.approx(high, abs=0.006)
    assert interval.mean == pytest.approx(difference_N.mean())


def test_order_of_questions_does_not_matter() -> None:
    scores = simulated(0, 3, 300, 0.02)
    one, other = Bootstrap(scores, 500, seed=7), Bootstrap(scores, 500, seed=7)
    other.score("baseline")
    other.ratio("student", "baseline")
    assert one.difference("student", "baseline") == other.difference("student", "baseline")


def test_scores_stay_between_0_and_1_and_a_ratio_to_0_is_unknown() -> None:
    scores = {"best": np.ones((2, 50)), "worst": np.zeros((1, 50))}
    scores["best"][0, 0] = 0.0
    bootstrap = Bootstrap(scores, 500, seed=0)
    assert bootstrap.score("best").high <= 1
    assert bootstrap.score("worst").mean == bootstrap.score("worst").high == 0
    assert bootstrap.ratio("best", "worst") is None
    kept = bootstrap.ratio("worst", "best")
    assert kept is not None
    assert kept.mean == 0
