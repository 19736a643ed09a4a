"""Metrics of a model: those of its answers, and those that need the model itself.

Answer metrics score one answer from 0 to 1 (cohobate/scoring/metrics.py, and
cohobate/evaluation/judged_metrics.py by a judge); a model's score is the mean over the test rows.
Figures of all answers together (cohobate/scoring/answer_figures.py), and model metrics, which use
the log-probabilities of the reference answers on a sample of rows, are reported. Perplexity and
bits per byte can also decide, as the first metric: then they are computed on all test rows.

To add a model metric: a class with `measure`, and its name in `Metric` at the bottom.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal, Protocol

from pydantic import Field

from cohobate.evaluation.deciding_metric import ByTask
from cohobate.evaluation.judged_metrics import Rubric, WinRate
from cohobate.scoring.answer_figures import AnswersFigure
from cohobate.scoring.metrics import AnswerMetric, BitsPerByte, Perplexity, TaskMetric
from cohobate.scoring.verifiers import Label, Task

if TYPE_CHECKING:
    from cohobate.data.records import Row
    from cohobate.data.tokenized import Encoded
    from cohobate.evaluation.answer_logprobs import AnswerLogprobs


class ModelMetric(Protocol):
    """A metric that is computed from the model's log-probabilities of reference answers."""

    @property
    def type(self) -> str:
        """Name of the metric."""

    def scores_task(self, task: str | None) -> bool:
        """Return whether the rows of a task are scored."""

    def measure(
        self,
        logprobs: "AnswerLogprobs",
        rows: Sequence["Row"],
        texts: Sequence["Encoded"],
        task: Task,
    ) -> float | None:
        """Return the figure on `rows`, encoded as `texts`; None where there is none."""


class LabelAccuracy(TaskMetric):
    """Share of rows whose own label has the highest probability of all labels of its task.

    It is independent of what the model would generate. Labels are compared by their first token;
    where two labels of a task share it there is no figure. Tasks without labels do not count.
    """

    type: Literal["label_accuracy"]

    def measure(
        self,
        logprobs: "AnswerLogprobs",
        rows: Sequence["Row"],
        texts: Sequence["Encoded"],
        task: Task,
    ) -> float | None:
        """Return the share; None where no task has a closed set of labels."""
        by_task: defaultdict[str | None, list[tuple[Row, Encoded]]] = defaultdict(list)
        for row, text in zip(rows, texts, strict=True):
            if isinstance(task.verifier_of(row.task), Label):
                if row.is_raw_text:
                    return None
                by_task[row.task].append((row, text))
        right: list[bool] = []
        for pairs in by_task.values():
            # all labels of the sample: the closed set, as far as it occurs
            labels = {row.answer: text.completion_ids[0] for row, text in pairs}
            ids = sorted(set(labels.values()))
            if len(ids) < len(labels):
                return None
            best = logprobs.first_log_probs([text for _, text in pairs], ids).argmax(-1).tolist()
            right += [
                bool(ids[n] == labels[row.answer]) for n, (row, _) in zip(best, pairs, strict=True)
            ]
        return sum(right) / len(right) if right else None


Metric = Annotated[
    AnswerMetric
    | WinRate
    | Rubric
    | ByTask
    | AnswersFigure
    | LabelAccuracy
    | Perplexity
    | BitsPerByte,
    Field(discriminator="type"),
]
