"""The filter on the educational value of a text, as a language model sees it."""

from array import array
from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from cohobate.data.records import Response
from cohobate.models.number_formats import Precision
from tasks.filter.base_filter import KEEP, Context, Drop, Filter, Rows, Verdict


class EducationalValueFilter(Filter):
    """Drop texts that a model does not find worth learning from.

    The score is log p(yes) - log p(no) behind the text and a question about it, in nats: a
    classifier without training examples (Zhang et al. 2024, "Autonomous Data Selection with
    Zero-shot Generative Classifiers for Mathematical Texts", section 2). GPT-4's labels of phi-1
    (Gunasekar et al. 2023, section 2.1) and the marks of FineWeb-Edu (Penedo et al. 2024) answer
    the same question. The text of a row is its prompt and its answer, or raw text.
    """

    type: Literal["educational"]
    question: str = "Is this text of educational value for a student who learns basic concepts?"
    """What is asked of each text; the answer is yes or no."""
    min_score: float | None = None
    """Lowest score, in nats. A model may lean to one of the answers, whatever the text."""
    keep_share: float = Field(1.0, gt=0, le=1)
    """Share of the other rows to keep, those with the highest scores."""
    precision: Precision = "auto"
    threads: int = Field(2, ge=1)
    """Batches in parallel on a CPU; the scores do not depend on it."""

    def verdicts(self, rows: Rows, context: Context) -> Iterator[Verdict]:
        """Score all rows with the model that `filter.scorer` names, then compare."""
        from cohobate.generation.likelihood import Likelihood

        scorer = Likelihood.of(context.scorer(), self.precision, self.threads)
        scored = scorer.log_odds((self._prompt(row) for row in rows), " yes", " no")
        scores = array("d", (round(score, 4) for score in scored))
        enough = [s for s in scores if self.min_score is None or s >= self.min_score]
        enough.sort(reverse=True)
        lowest = enough[max(1, round(self.keep_share * len(enough))) - 1] if enough else 0.0
        for score in scores:
            if self.min_score is not None and score < self.min_score:
                yield Drop("low educational value", score)
            else:
                yield KEEP if score >= lowest else Drop("not selected (educational value)", score)

    def _prompt(self, row: Response) -> str:
        text = row.full_answer if row.is_raw_text else f"{row.source_text}{row.full_answer}"
        return f"{text}\n\n{self.question} Answer yes or no.\nAnswer:"
