"""How good the answers are. A model's score is the mean over the test rows.

Most metrics look at one answer and score it from 0 to 1 (cohobate/scoring/metrics.py). Some need
the model itself, to read the reference answers of a sample of rows (`measure`): they are reported,
and decide nothing.

To add one of these: a class with `measure`, and its name in `Metric` at the bottom.
"""

from collections.abc import Sequence
from math import exp
from typing import TYPE_CHECKING, Annotated, Literal, Protocol, runtime_checkable

from pydantic import Field

from cohobate.params import Section
from cohobate.scoring.metrics import AnswerMetric
from cohobate.scoring.verifiers import Verifier

if TYPE_CHECKING:
    from cohobate.data.records import Row
    from cohobate.data.tokenized import Encoded
    from cohobate.evaluation.answer_logprobs import Reader


@runtime_checkable
class ReadingMetric(Protocol):
    """Has the model read reference answers."""

    @property
    def type(self) -> str:
        """Name of the metric."""

    def measure(
        self, reader: "Reader", rows: Sequence["Row"], texts: Sequence["Encoded"], task: Verifier
    ) -> float | None:
        """Return a figure of the model on some rows; None where there is none for this task."""


class LabelAccuracy(Section):
    """Share of rows whose own label the model finds the likeliest, of all labels: what it knows,
    whether or not it would say so.

    Labels are told apart by their first token; where two begin alike there is no figure.
    """

    type: Literal["label_accuracy"]

    def measure(
        self, reader: "Reader", rows: Sequence["Row"], texts: Sequence["Encoded"], task: Verifier
    ) -> float | None:
        """Return the share; None where the task has no closed set of labels."""
        if task.type != "label":
            return None
        labels = {row.answer: text.completion_ids[0] for row, text in zip(rows, texts, strict=True)}
        ids = sorted(set(labels.values()))
        if len(ids) < len(labels):
            return None
        best = reader.first_log_probs(texts, ids).argmax(-1).tolist()
        right = [bool(ids[n] == labels[row.answer]) for n, row in zip(best, rows, strict=True)]
        return sum(right) / len(right)


class Perplexity(Section):
    """exp of the mean surprise at the tokens of the reference answer, its end included. 1 is
    certainty; models with different tokenizers are not comparable."""

    type: Literal["perplexity"]

    def measure(
        self, reader: "Reader", rows: Sequence["Row"], texts: Sequence["Encoded"], task: Verifier
    ) -> float | None:
        """Return the perplexity, no more than a million."""
        mean = float(reader.answer_log_probs(texts).mean())
        return min(exp(min(-mean, 20.0)), 1e6)


Metric = Annotated[AnswerMetric | LabelAccuracy | Perplexity, Field(discriminator="type")]
