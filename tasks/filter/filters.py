"""The filters by their types in params.yaml; the larger ones have files of their own.

To add one: a class with `type` and `verdict`, and its name in `AnyFilter` at the bottom.
"""

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from cohobate.data.contamination import SIMILARITY, WORDS
from cohobate.data.messages import prompt_text
from cohobate.data.records import Response
from cohobate.data.text_comparison import words_of
from tasks.filter.agreement import AgreementFilter, VerifierFilter
from tasks.filter.balance import ClassBalanceFilter, ConfidenceFilter, RandomSampleFilter
from tasks.filter.base_filter import KEEP, Context, Drop, Filter, Rows, Verdict
from tasks.filter.duplicates import ExactDuplicateFilter, NearDuplicateFilter
from tasks.filter.educational import EducationalValueFilter
from tasks.filter.ifd import IfdFilter
from tasks.filter.model_scores import JudgeFilter, RewardFilter
from tasks.filter.semantic import DiversityFilter, SemanticDuplicateFilter
from tasks.filter.text_rules import (
    BoilerplateFilter,
    JsonSchemaFilter,
    LanguageFilter,
    RepetitionFilter,
)


class ContaminationFilter(Filter):
    """Drop rows that give away a prompt of an evaluation split. Always on, and first."""

    type: Literal["contaminated"] = "contaminated"
    any_target: ClassVar[bool] = True
    words: int = Field(WORDS, ge=5, le=13)
    """Length of a run of shared words that counts as contamination."""
    similarity: float = Field(SIMILARITY, ge=0.5, le=0.9)
    """Jaccard similarity of word bigrams from which prompts are near-duplicates."""

    def verdicts(self, rows: Rows, context: Context) -> Iterator[Verdict]:
        """Compare prompts, the teacher's too, and long answers and reasoning."""
        for row in rows:
            reason = context.contamination.reason(row.source_text)
            if reason is None and row.teacher_prompt is not None:
                # what the teacher saw of an evaluation prompt can be in its answer
                reason = context.contamination.reason(prompt_text(row.teacher_prompt))
            for text in () if row.is_raw_text else (row.answer, row.reasoning):
                if reason is None and text and len(words_of(text)) >= self.words:
                    reason = context.contamination.reason(text)
            yield Drop(reason) if reason else KEEP


class UnfinishedFilter(Filter):
    """Drop answers that were cut off before the end-of-sequence token."""

    type: Literal["unfinished"]

    def verdict(self, row: Response) -> Verdict:
        """Look at how the answer ended."""
        return KEEP if row.finish == "stop" else Drop("cut off at the length limit")


class LengthFilter(Filter):
    """Drop answers that are too short or too long; outer white space does not count.

    The reasoning before an answer has limits of its own. An answer that calls tools may be empty.
    """

    type: Literal["length"]
    min_characters: int = Field(1, ge=0)
    max_characters: int = Field(20_000, ge=1)
    min_reasoning: int = Field(0, ge=0)
    """Fewest characters of the reasoning; 1 drops answers without any."""
    max_reasoning: int | None = Field(None, ge=1)
    """Most characters of the reasoning."""

    def verdict(self, row: Response) -> Verdict:
        """Count the characters of answer and reasoning."""
        length = len(row.full_answer.strip())
        if length < self.min_characters:
            return Drop(f"shorter than {self.min_characters} characters", length)
        if length > self.max_characters:
            return Drop(f"longer than {self.max_characters} characters", length)
        length = len((row.reasoning or "").strip())
        if length < self.min_reasoning:
            return Drop(f"reasoning shorter than {self.min_reasoning} characters", length)
        if self.max_reasoning is not None and length > self.max_reasoning:
            return Drop(f"reasoning longer than {self.max_reasoning} characters", length)
        return KEEP


class InvalidAnswerFilter(Filter):
    """Drop answers that cannot be right whatever the prompt: no label, no number."""

    type: Literal["inadmissible"]

    def verdicts(self, rows: Rows, context: Context) -> Iterator[Verdict]:
        """Check each answer's form with the task's verifier."""
        for row in rows:
            verifier, labels = context.verifier(row), context.labels.get(row.task, frozenset())
            valid = row.is_raw_text or verifier.admissible(row.full_answer, labels)
            yield KEEP if valid else Drop(f"no valid answer ({verifier.type})")


AnyFilter = Annotated[
    UnfinishedFilter
    | LengthFilter
    | JsonSchemaFilter
    | InvalidAnswerFilter
    | BoilerplateFilter
    | RepetitionFilter
    | LanguageFilter
    | RandomSampleFilter
    | ConfidenceFilter
    | VerifierFilter
    | ExactDuplicateFilter
    | AgreementFilter
    | NearDuplicateFilter
    | SemanticDuplicateFilter
    | EducationalValueFilter
    | IfdFilter
    | JudgeFilter
    | RewardFilter
    | DiversityFilter
    | ClassBalanceFilter,
    Field(discriminator="type"),
]
"""From cheap to expensive, which is the order to list them in."""
