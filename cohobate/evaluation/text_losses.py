"""Losses of reference answers and raw text under a model, row by row."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cohobate.data.records import Row
from cohobate.data.tokenized import encode_all
from cohobate.evaluation.bootstrap import Floats, shares_of_loss
from cohobate.generation.likelihood import Likelihood
from cohobate.scoring.metrics import LikelihoodScore


@dataclass(frozen=True)
class TextLosses:
    """Loss and size of each row's text."""

    nats_R: Floats  # noqa: N815
    sizes_R: Floats  # noqa: N815
    """Tokens or bytes, as the metric divides by."""

    @classmethod
    def of(
        cls, likelihood: Likelihood, rows: Sequence[Row], metric: LikelihoodScore
    ) -> "TextLosses":
        """Compute the losses of the rows' answers; of a text beyond the model's context its
        beginning stands for the whole."""
        means_R = np.array([*likelihood.answer_losses(rows)])
        lengths = [len(text.completion_ids) for text in encode_all(likelihood.tokenizer, rows)]
        pairs = zip(rows, lengths, strict=True)
        sizes = [metric.size(row.answer or "", length) for row, length in pairs]
        return cls(means_R * np.array(lengths), np.array(sizes, dtype=np.float64))

    @property
    def shares_R(self) -> Floats:  # noqa: N802
        """Each row's share of the mean loss, times the number of rows."""
        return shares_of_loss(self.nats_R, self.sizes_R)

    def figure(self, metric: LikelihoodScore) -> float:
        """Return the metric's figure over all rows."""
        return metric.figure(float(self.nats_R.sum() / self.sizes_R.sum()))
