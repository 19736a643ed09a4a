"""Confidence intervals over both sources of variation: the test rows and the training seeds.

Test rows are resampled with replacement, the same rows for every arm, so that all comparisons are
paired (paired bootstrap: Efron and Tibshirani 1993; Koehn 2004).

Seeds are too few to be resampled: with three values a bootstrap has two thirds of the variance
and no tail. Instead, each draw gets an error of the mean over seeds, drawn from Student's t
with the variance among the seeds (Welch 1947; degrees of freedom by Satterthwaite 1946). With one
seed this variance is unknown: the interval then holds for the test rows alone.

Arrays: R test rows, Z seeds of an arm, G arms, X resamples, C distinct rows of scores.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cohobate.scoring.metrics import LikelihoodScore

Floats = NDArray[np.float64]
COVERAGE = 0.95


@dataclass(frozen=True)
class Interval:
    """A figure and its 95 % confidence interval."""

    mean: float
    low: float
    high: float

    def rounded(self) -> dict[str, float]:
        """Return the figures as they are written to files."""
        return {"mean": round(self.mean, 6), "low": round(self.low, 6), "high": round(self.high, 6)}


class ArmIntervals(Protocol):
    """Intervals of the arms' figures and of comparisons between two arms."""

    def score(self, arm: str) -> Interval:
        """Return the interval of an arm's figure."""

    def seed_scores(self, arm: str) -> Floats:
        """Return the figure of each of an arm's seeds, (Z,)."""

    def difference(self, arm: str, other: str) -> Interval:
        """Return the interval of `arm`'s gain over `other`."""

    def ratio(self, arm: str, other: str) -> Interval | None:
        """Return the interval of how much of `other`'s quality `arm` has; None where unknown."""


class Bootstrap:
    """Bootstrap draws of every arm's mean score, and intervals computed from them."""

    def __init__(self, scores: Mapping[str, Floats], draws: int, seed: int) -> None:
        """Draw the resampled means.

        Args:
            scores: scores by arm, (Z, R); Z can differ between arms, R cannot.
            draws: number of resamples of the test rows.
            seed: of the random numbers: the same scores and seed give the same intervals.
        """
        self._seed, self._size = seed, draws
        self._seed_means = {arm: scores_ZR.mean(axis=1) for arm, scores_ZR in scores.items()}
        row_means_RG = np.stack([scores_ZR.mean(axis=0) for scores_ZR in scores.values()], axis=1)
        means_XG = _resampled_means(row_means_RG, draws, np.random.default_rng(seed))
        self._draws_X = {arm: means_XG[:, column] for column, arm in enumerate(scores)}

    @property
    def arms(self) -> list[str]:
        """The arms that were drawn."""
        return [*self._draws_X]

    def score(self, arm: str) -> Interval:
        """Return the interval of an arm's mean score."""
        around = self._draws_X[arm] + self._seed_errors([self._seed_variance(arm)])
        return _percentiles(self._mean(arm), np.clip(around, 0.0, 1.0))

    def seed_scores(self, arm: str) -> Floats:
        """Return the mean score of each of an arm's seeds, (Z,)."""
        means_Z: Floats = self._seed_means[arm]
        return means_Z

    def difference(self, arm: str, other: str) -> Interval:
        """Return the interval of `arm`'s mean score minus `other`'s."""
        spread = [self._seed_variance(arm), self._seed_variance(other)]
        around = self._draws_X[arm] - self._draws_X[other] + self._seed_errors(spread)
        return _percentiles(self._mean(arm) - self._mean(other), around)

    def ratio(self, arm: str, other: str) -> Interval | None:
        """Return the interval of `arm`'s mean score over `other`'s; None where `other` is 0."""
        above, below = self._mean(arm), self._mean(other)
        # a ratio is undefined where any draw of the divisor is 0
        if below == 0 or not self._draws_X[other].all():
            return None
        spread = [
            _scaled(self._seed_variance(arm), 1 / below**2),
            _scaled(self._seed_variance(other), (above / below**2) ** 2),  # the delta method
        ]
        around = self._draws_X[arm] / self._draws_X[other] + self._seed_errors(spread)
        return _percentiles(above / below, np.maximum(around, 0.0))

    def around(self, arm: str) -> tuple[float, Floats]:
        """Return an arm's mean score and its draws, (X,), seed errors included."""
        return self._mean(arm), self._draws_X[arm] + self._seed_errors([self._seed_variance(arm)])

    def _mean(self, arm: str) -> float:
        return float(self._seed_means[arm].mean())

    def _seed_variance(self, arm: str) -> tuple[float, int]:
        """Return the variance of an arm's mean over its seeds, and its degrees of freedom."""
        means_Z = self._seed_means[arm]
        freedom = len(means_Z) - 1
        return (float(means_Z.var(ddof=1)) / len(means_Z) if freedom else 0.0), freedom

    def _seed_errors(self, spread: list[tuple[float, int]]) -> Floats:
        # an arm of one seed, or of seeds that agree, adds nothing
        known = [(variance, freedom) for variance, freedom in spread if variance > 0]
        total = sum(variance for variance, _ in known)
        if total == 0:
            return np.zeros(self._size)
        # Welch-Satterthwaite: the degrees of freedom of a sum of variances
        freedom = total**2 / sum(variance**2 / f for variance, f in known)
        # a new generator each time: results do not depend on the order of calls
        rng = np.random.default_rng([self._seed, 1])
        errors_X: Floats = np.sqrt(total) * rng.standard_t(freedom, self._size)
        return errors_X


class LikelihoodBootstrap:
    """Intervals of perplexities or bits per byte, where lower is better.

    Both are functions of a mean loss over all tokens or bytes. Its draws are those of rows with
    losses for each row, where the number of tokens or bytes is held fixed.
    """

    def __init__(
        self, losses: Mapping[str, Floats], metric: LikelihoodScore, draws: int, seed: int
    ) -> None:
        """Draw the resampled mean losses.

        Args:
            losses: by arm, (Z, R): the row's share of the mean loss, times R (`shares_of_loss`).
            metric: perplexity or bits per byte.
            draws: number of resamples of the test rows.
            seed: of the random numbers.
        """
        self._metric = metric
        self._losses = Bootstrap(losses, draws, seed)

    def score(self, arm: str) -> Interval:
        """Return the interval of an arm's figure."""
        mean, draws_X = self._losses.around(arm)
        loss, figure = _percentiles(mean, draws_X), self._metric.figure
        return Interval(figure(loss.mean), figure(loss.low), figure(loss.high))

    def seed_scores(self, arm: str) -> Floats:
        """Return the figure of each of an arm's seeds, (Z,)."""
        return np.array([self._metric.figure(loss) for loss in self._losses.seed_scores(arm)])

    def difference(self, arm: str, other: str) -> Interval:
        """Return the interval of the share by which `arm`'s figure is below `other`'s."""
        ratio = self._ratio(arm, other)
        return Interval(1 - ratio.mean, 1 - ratio.high, 1 - ratio.low)

    def ratio(self, arm: str, other: str) -> Interval | None:
        """Return the interval of `other`'s figure over `arm`'s: 1 where they are as good."""
        return self._ratio(other, arm)

    def _ratio(self, above: str, below: str) -> Interval:
        if not self._metric.exponential:
            ratio = self._losses.ratio(above, below)
            assert ratio is not None  # no language model has a loss of 0
            return ratio
        loss = self._losses.difference(above, below)
        low, mean, high = np.exp(np.clip([loss.low, loss.mean, loss.high], -20.0, 20.0)).tolist()
        return Interval(mean, low, high)


def shares_of_loss(nats_R: Floats, sizes_R: Floats) -> Floats:
    """Return each row's share of the mean loss, times R: their mean is the mean loss, (R,).

    Args:
        nats_R: loss of each row's text.
        sizes_R: its tokens or bytes.
    """
    shares_R: Floats = nats_R * (len(nats_R) / sizes_R.sum())
    return shares_R


def macro_mean(parts: Sequence[Bootstrap], seed: int) -> Bootstrap:
    """Return the bootstrap of the mean over several sets of rows, each set weighing alike.

    The sets have the same arms and seeds, and were drawn with different seeds: the resampled mean
    is then the mean of their resampled means (a stratified bootstrap).

    Args:
        parts: the bootstrap of each set.
        seed: of the errors of the mean over training seeds.
    """
    whole = object.__new__(Bootstrap)
    whole._seed, whole._size = seed, parts[0]._size
    whole._seed_means = {
        arm: np.mean([part._seed_means[arm] for part in parts], axis=0) for arm in parts[0].arms
    }
    whole._draws_X = {
        arm: np.mean([part._draws_X[arm] for part in parts], axis=0) for arm in parts[0].arms
    }
    return whole


def unpaired_difference(one: Bootstrap, other: Bootstrap, arm: str) -> Interval:
    """Return the interval of an arm's score on some rows minus that on others, not paired.

    The two must have been drawn with different seeds.
    """
    (mean, draws_X), (other_mean, other_X) = one.around(arm), other.around(arm)
    return _percentiles(mean - other_mean, draws_X - other_X)


def _resampled_means(row_means_RG: Floats, draws: int, rng: np.random.Generator) -> Floats:
    """Return the arms' means over resampled rows, (X, G).

    Rows with the same scores are interchangeable: the number of times that each distinct row of
    scores is drawn is multinomial. This equals drawing rows one by one, at far less work.
    """
    distinct_CG, counts_C = np.unique(row_means_RG, axis=0, return_counts=True)
    rows = len(row_means_RG)
    chunk = max(1, 2_000_000 // len(distinct_CG))  # bounds the table of (X, C)
    means = []
    for start in range(0, draws, chunk):
        size = min(chunk, draws - start)
        drawn_XC = rng.multinomial(rows, counts_C / rows, size=size)
        means.append(drawn_XC @ distinct_CG / rows)
    return np.concatenate(means)


def _percentiles(mean: float, draws_X: Floats) -> Interval:
    tail = (1 - COVERAGE) / 2
    low, high = np.quantile(draws_X, [tail, 1 - tail])
    return Interval(mean, float(low), float(high))


def _scaled(spread: tuple[float, int], factor: float) -> tuple[float, int]:
    return spread[0] * factor, spread[1]
