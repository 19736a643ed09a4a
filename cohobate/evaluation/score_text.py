"""Scores as text for people: percent of a score, or a perplexity or bits per byte as it is."""

from collections.abc import Mapping
from dataclasses import dataclass

from cohobate.evaluation.number_text import figure, points, short, signed

METRICS = {
    "verifier": "accuracy by the task's verifier",
    "exact_match": "exact match",
    "token_f1": "token F1",
    "rouge_l": "ROUGE-L",
    "bleu": "sentence BLEU",
    "chrf": "chrF",
    "perplexity": "perplexity",
    "bits_per_byte": "bits per byte",
    "rouge_1": "ROUGE-1",
    "rouge_2": "ROUGE-2",
    "format": "share of answers in the form",
    "win_rate": "win rate by the judge",
    "rubric": "rating by the judge",
    "by_task": "the metric of each task",
}
NO_SHARE = ("perplexity", "bits_per_byte", "length_words", "length_characters")
"""Metrics whose figures are no share of 1."""
PERPLEXITY_CAP = 1e6
"""Perplexities are written up to here: the metric itself goes no further."""
_TIMES_HIGHER = 10
"""From this multiple on a loss is written as one: a percentage would say nothing."""
LIKELIHOODS = ("perplexity", "bits_per_byte")
"""Metrics of which lower is better; a gain is the share by which the figure is lower."""


@dataclass(frozen=True)
class ScoreText:
    """How the figures of the metric that decides are written."""

    metric: str
    """Its name in params.yaml."""

    @property
    def lower_is_better(self) -> bool:
        """Whether a lower figure is better."""
        return self.metric in LIKELIHOODS

    @property
    def name(self) -> str:
        """Name of the metric."""
        return METRICS.get(self.metric, self.metric)

    def score(self, value: float) -> str:
        """Write a score, without its unit."""
        if self.lower_is_better:
            return ">1,000,000" if value >= PERPLEXITY_CAP else figure(float(value))
        return points(value)

    def gain(self, gain: Mapping[str, float]) -> str:
        """Write a gain with its interval: `+8.4 [+7.1, +9.7]`."""
        if self.lower_is_better and gain["mean"] < -_TIMES_HIGHER:
            return f"{short(1 - gain['mean'])} times as high"
        mean, low, high = (signed(gain[end]) for end in ("mean", "low", "high"))
        return f"{mean} [{low}, {high}]"

    @property
    def unit(self) -> str:
        """Unit of a score, with the blank before it."""
        return "" if self.lower_is_better else " %"

    @property
    def heading(self) -> str:
        """Heading of a column of scores."""
        return f"{self.name}, lower is better" if self.lower_is_better else "score, %"

    @property
    def gain_unit(self) -> str:
        """Unit of a gain."""
        return "%" if self.lower_is_better else "points"

    @property
    def gain_heading(self) -> str:
        """Heading of a column of gains."""
        lower = self.lower_is_better
        return "% lower than the baseline's" if lower else "points over the baseline"

    @property
    def gain_of(self) -> str:
        """What a gain is, as the beginning of a sentence."""
        if self.lower_is_better:
            return f"Reduction of {self.name} in per cent"
        return f"Points of {self.name}"
