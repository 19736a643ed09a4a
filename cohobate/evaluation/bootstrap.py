"""Intervals that account for both sources of chance: the test rows and the training seeds.

Legend: N test rows, K seeds, D draws, P patterns (distinct rows of scores).

Test rows are resampled with replacement, the same rows for every arm, so that whatever is compared
is compared on the same rows (paired bootstrap: Efron and Tibshirani 1993; Koehn 2004).

Seeds are too few to be resampled: of three values a bootstrap sees two thirds of the variance and
none of the tail. To each draw is added instead an error of the mean over seeds, drawn from
Student's t with the spread seen among the seeds (Welch 1947; degrees of freedom by Satterthwaite
1946). With one seed there is nothing to see: the interval then holds for the test rows alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
COVERAGE = 0.95


@dataclass(frozen=True)
class Interval:
    """A figure and the bounds that hold it in 95 of 100 repetitions."""

    mean: float
    low: float
    high: float

    def rounded(self) -> dict[str, float]:
        """Return the three figures as they go into files."""
        return {"mean": round(self.mean, 6), "low": round(self.low, 6), "high": round(self.high, 6)}


class Bootstrap:
    """Draws of every arm's mean score over resampled test rows; intervals of what they imply."""

    def __init__(self, scores: Mapping[str, Floats], draws: int, seed: int) -> None:
        """Draw.

        Args:
            scores: For each arm its scores, (K, N); K may differ from arm to arm, N may not.
            draws: How many times the test rows are resampled.
            seed: Of the random numbers: same scores and seed, same intervals.
        """
        self._seed, self._size = seed, draws
        self._seed_means = {arm: scores_KN.mean(axis=1) for arm, scores_KN in scores.items()}
        row_means_NA = np.stack([scores_KN.mean(axis=0) for scores_KN in scores.values()], axis=1)
        means_DA = _resampled_means(row_means_NA, draws, np.random.default_rng(seed))
        self._draws_D = {arm: means_DA[:, column] for column, arm in enumerate(scores)}

    def score(self, arm: str) -> Interval:
        """Return the interval of an arm's mean score."""
        around = self._draws_D[arm] + self._seed_errors([self._seed_variance(arm)])
        return _percentiles(self._mean(arm), np.clip(around, 0.0, 1.0))

    def difference(self, arm: str, other: str) -> Interval:
        """Return the interval of `arm`'s mean score minus `other`'s."""
        spread = [self._seed_variance(arm), self._seed_variance(other)]
        around = self._draws_D[arm] - self._draws_D[other] + self._seed_errors(spread)
        return _percentiles(self._mean(arm) - self._mean(other), around)

    def ratio(self, arm: str, other: str) -> Interval | None:
        """Return the interval of `arm`'s mean score over `other`'s; None where `other` is 0."""
        above, below = self._mean(arm), self._mean(other)
        if below == 0 or not self._draws_D[other].all():
            return None
        spread = [
            _scaled(self._seed_variance(arm), 1 / below**2),
            _scaled(self._seed_variance(other), (above / below**2) ** 2),  # the delta method
        ]
        around = self._draws_D[arm] / self._draws_D[other] + self._seed_errors(spread)
        return _percentiles(above / below, np.maximum(around, 0.0))

    def around(self, arm: str) -> tuple[float, Floats]:
        """Return an arm's mean score, and what it might have been: a draw each."""
        return self._mean(arm), self._draws_D[arm] + self._seed_errors([self._seed_variance(arm)])

    def _mean(self, arm: str) -> float:
        return float(self._seed_means[arm].mean())

    def _seed_variance(self, arm: str) -> tuple[float, int]:
        """Return the variance of an arm's mean over its seeds, and its degrees of freedom."""
        means_K = self._seed_means[arm]
        freedom = len(means_K) - 1
        return (float(means_K.var(ddof=1)) / len(means_K) if freedom else 0.0), freedom

    def _seed_errors(self, spread: list[tuple[float, int]]) -> Floats:
        seen = [(variance, freedom) for variance, freedom in spread if variance > 0]
        total = sum(variance for variance, _ in seen)
        if total == 0:
            return np.zeros(self._size)
        freedom = total**2 / sum(variance**2 / f for variance, f in seen)
        random = np.random.default_rng([self._seed, 1])  # anew: the order of questions is no matter
        errors_D: Floats = np.sqrt(total) * random.standard_t(freedom, self._size)
        return errors_D


def difference_apart(one: Bootstrap, other: Bootstrap, arm: str) -> Interval:
    """Return the interval of an arm's score on some rows minus that on others, not paired.

    The two must have been drawn with different seeds.
    """
    (mean, draws_D), (less, less_D) = one.around(arm), other.around(arm)
    return _percentiles(mean - less, draws_D - less_D)


def _resampled_means(row_means_NA: Floats, draws: int, random: np.random.Generator) -> Floats:
    """Return the arms' means over resampled rows, (D, A).

    Rows with the same scores are interchangeable: how often each *pattern* of scores is drawn is
    multinomial, which is the same as drawing rows one by one and far less work.
    """
    patterns_PA, counts_P = np.unique(row_means_NA, axis=0, return_counts=True)
    rows = len(row_means_NA)
    chunk = max(1, 2_000_000 // len(patterns_PA))  # bounds the table of (D, P)
    means = []
    for start in range(0, draws, chunk):
        size = min(chunk, draws - start)
        drawn_DP = random.multinomial(rows, counts_P / rows, size=size)
        means.append(drawn_DP @ patterns_PA / rows)
    return np.concatenate(means)


def _percentiles(mean: float, draws_D: Floats) -> Interval:
    tail = (1 - COVERAGE) / 2
    low, high = np.quantile(draws_D, [tail, 1 - tail])
    return Interval(mean, float(low), float(high))


def _scaled(spread: tuple[float, int], factor: float) -> tuple[float, int]:
    return spread[0] * factor, spread[1]
