"""The filters: each keeps a response, or refuses it with a reason.

A reason is one of a few fixed texts: they are counted.

To add one: a class with `type` and `keep`, and its name in `AnyFilter` at the bottom. The larger
ones have files of their own beside this one.
"""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from cohobate.data.contamination import SIMILARITY, WORDS
from cohobate.data.records import Response, prompt_text
from cohobate.data.text_comparison import words_of
from tasks.filter.agreement import Agreement, Verified
from tasks.filter.balance import ClassBalance, Confidence, Sample
from tasks.filter.duplicates import ExactDuplicates, NearDuplicates
from tasks.filter.instruction_following import InstructionFollowing
from tasks.filter.model_scores import Judged, Rewarded
from tasks.filter.semantic import Diversity, SemanticDuplicates
from tasks.filter.text_rules import Boilerplate, Language, Repetition, Schema
from tasks.filter.verdicts import KEPT, Context, Filter, Keep, Refused, Rows, Verdict


class Contaminated(Filter):
    """Refuse what gives away a prompt of dev or test. Always on, and first."""

    type: Literal["contaminated"] = "contaminated"
    any_target: ClassVar[bool] = True
    words: int = Field(WORDS, ge=5, le=13)
    """Length of a run of words in common that counts."""
    similarity: float = Field(SIMILARITY, ge=0.5, le=0.9)
    """Jaccard similarity of word bigrams from which prompts are near-duplicates."""

    def over(self, rows: Rows, context: Context) -> Keep:
        """Return what compares prompts, and long answers, with the evaluation prompts."""

        def keep(row: Response) -> Verdict:
            reason = context.evaluation.reason(prompt_text(row.prompt))
            if reason is None and len(words_of(row.answer or "")) >= self.words:
                reason = context.evaluation.reason(row.answer or "")
            return Refused(reason) if reason else KEPT

        return keep


class Unfinished(Filter):
    """Refuse answers that the teacher did not end itself."""

    type: Literal["unfinished"]

    def keep(self, row: Response) -> Verdict:
        """Judge how the answer ended."""
        return KEPT if row.finish == "stop" else Refused("cut off at the length limit")


class Length(Filter):
    """Refuse answers that are too short or too long, without their outer white space."""

    type: Literal["length"]
    min_characters: int = Field(1, ge=0)
    max_characters: int = Field(20_000, ge=1)

    def keep(self, row: Response) -> Verdict:
        """Judge the answer's length."""
        length = len((row.answer or "").strip())
        if length < self.min_characters:
            return Refused(f"shorter than {self.min_characters} characters", length)
        if length > self.max_characters:
            return Refused(f"longer than {self.max_characters} characters", length)
        return KEPT


class Inadmissible(Filter):
    """Refuse what the task's verifier would take from nobody: no label, no number."""

    type: Literal["inadmissible"]

    def over(self, rows: Rows, context: Context) -> Keep:
        """Return what asks the verifier."""
        verifier, labels = context.task.verifier, context.labels
        refused = Refused(f"no admissible answer ({verifier.type})")
        return lambda row: KEPT if verifier.admissible(row.answer or "", labels) else refused


AnyFilter = Annotated[
    Unfinished
    | Length
    | Schema
    | Inadmissible
    | Boilerplate
    | Repetition
    | Language
    | Sample
    | Confidence
    | Verified
    | ExactDuplicates
    | Agreement
    | NearDuplicates
    | SemanticDuplicates
    | InstructionFollowing
    | Judged
    | Rewarded
    | Diversity
    | ClassBalance,
    Field(discriminator="type"),
]
"""From cheap to dear, which is the order to put them in."""
