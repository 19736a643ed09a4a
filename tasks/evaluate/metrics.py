"""Metrics of a model: those of its answers, and those that need the model itself.

Answer metrics score one answer from 0 to 1 (cohobate/scoring/metrics.py); a model's score is the
mean over the test rows. Model metrics use the log-probabilities of the reference answers on a
sample of rows, and are reported. Perplexity and bits per byte can also decide, as the first metric:
then they are computed on all test rows.

To add a model metric: a class with `measure`, and its name in `Metric` at the bottom.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal, Protocol, runtime_checkable

from pydantic import Field

from cohobate.params import Section
from cohobate.scoring.metrics import AnswerMetric, BitsPerByte, Perplexity
from cohobate.scoring.verifiers import Verifier

if TYPE_CHECKING:
    from cohobate.data.records import Row
    from cohobate.data.tokenized import Encoded
    from cohobate.evaluation.answer_logprobs import AnswerLogprobs


@runtime_checkable
class ModelMetric(Protocol):
    """A metric that is computed from the model's log-probabilities of reference answers."""

    @property
    def type(self) -> str:
        """Name of the metric."""

    def measure(
        self,
        logprobs: "AnswerLogprobs",
        rows: Sequence["Row"],
        texts: Sequence["Encoded"],
        task: Verifier,
    ) -> float | None:
        """Return the figure on `rows`, encoded as `texts`; None where the task has none."""


class LabelAccuracy(Section):
    """Share of rows whose own label has the highest probability of all labels.

    It is independent of what the model would generate. Labels are compared by their first token;
    where two labels share it there is no figure.
    """

    type: Literal["label_accuracy"]

    def measure(
        self,
        logprobs: "AnswerLogprobs",
        rows: Sequence["Row"],
        texts: Sequence["Encoded"],
        task: Verifier,
    ) -> float | None:
        """Return the share; None where the task has no closed set of labels."""
        if task.type != "label" or any(row.is_raw_text for row in rows):
            return None
        # all labels of the sample: the closed set, as far as it occurs
        labels = {row.answer: text.completion_ids[0] for row, text in zip(rows, texts, strict=True)}
        ids = sorted(set(labels.values()))
        if len(ids) < len(labels):
            return None
        best = logprobs.first_log_probs(texts, ids).argmax(-1).tolist()
        right = [bool(ids[n] == labels[row.answer]) for n, row in zip(best, rows, strict=True)]
        return sum(right) / len(right)


Metric = Annotated[
    AnswerMetric | LabelAccuracy | Perplexity | BitsPerByte, Field(discriminator="type")
]
