"""The filters: each keeps a response, or refuses it with a reason.

A reason is one of a few fixed texts: they are counted.

To add one: a class with `type` and `keep`, and its name in `AnyFilter` at the bottom.
"""

from array import array
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Collection
from itertools import count
from typing import Annotated, Literal

from pydantic import Field, model_validator

from tasks.contamination import SIMILARITY, WORDS, words_of
from tasks.errors import UserError
from tasks.filter.near_duplicates import shared_bands
from tasks.filter.verdicts import KEPT, Context, Filter, Keep, Refused, Rows, Verdict
from tasks.records import Response, prompt_text


class Contaminated(Filter):
    """Refuse what gives away a prompt of dev or test. Always on, and first."""

    type: Literal["contaminated"] = "contaminated"
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
            return Refused(f"shorter than {self.min_characters} characters")
        if length > self.max_characters:
            return Refused(f"longer than {self.max_characters} characters")
        return KEPT


class Inadmissible(Filter):
    """Refuse what the task's verifier would take from nobody: no label, no number."""

    type: Literal["inadmissible"]

    def over(self, rows: Rows, context: Context) -> Keep:
        """Return what asks the verifier."""
        verifier, labels = context.task.verifier, context.labels
        refused = Refused(f"no admissible answer ({verifier.type})")
        return lambda row: KEPT if verifier.admissible(row.answer or "", labels) else refused


class Repetition(Filter):
    """Refuse answers that say the same again and again (Rae et al. 2021, appendix A.1.1)."""

    type: Literal["repetition"]
    words: int = Field(3, ge=1)
    """Length of the runs of words that are counted."""
    max_share: float = Field(0.3, ge=0, lt=1)
    """Largest share of runs that were there before."""

    def keep(self, row: Response) -> Verdict:
        """Judge the share of repeated runs."""
        said = words_of(row.answer or "")
        runs = [tuple(said[i : i + self.words]) for i in range(len(said) - self.words + 1)]
        again = len(runs) - len(set(runs))
        return KEPT if again <= self.max_share * len(runs) else Refused("repeats itself")


class Confidence(Filter):
    """Refuse answers of which the teacher itself was least sure, by mean log-probability.

    Rows without a log-probability (a teacher behind an API) cannot be judged, and are kept.
    """

    type: Literal["confidence"]
    min_logprob: float | None = Field(None, le=0)
    """Lowest mean log-probability, in nats a token."""
    drop_lowest: float | None = Field(None, gt=0, lt=1)
    """Or: share of the rows that reach this filter to refuse, those with the lowest."""

    @model_validator(mode="after")
    def _one_threshold(self) -> "Confidence":
        if (self.min_logprob is None) == (self.drop_lowest is None):
            raise ValueError("give either min_logprob or drop_lowest")
        return self

    def over(self, rows: Rows, context: Context) -> Keep:
        """Return what compares with the threshold; rows that equal it stay."""
        threshold = self.min_logprob
        if self.drop_lowest is not None:
            known = sorted(array("d", (r.logprob for r in rows if r.logprob is not None)))
            threshold = known[int(self.drop_lowest * len(known))] if known else None
        refused = Refused("the teacher was not sure")

        def keep(row: Response) -> Verdict:
            unknown = threshold is None or row.logprob is None
            return KEPT if unknown or row.logprob >= threshold else refused  # type: ignore[operator]

        return keep


class ExactDuplicates(Filter):
    """Refuse an answer that was given to the same prompt before, and answers that contradict."""

    type: Literal["exact_duplicates"]
    contradictions: Literal["refuse", "keep"] = "refuse"
    """What to do with different answers to the same prompt, from several samples or teachers."""

    def over(self, rows: Rows, context: Context) -> Keep:
        """Return what remembers the answers to prompts that occur more than once."""
        repeated = _repeated_ids(rows)
        answers: dict[str, set[str]] = {id: set() for id in repeated}
        if repeated and self.contradictions == "refuse":
            for row in rows:
                if row.id in repeated:
                    answers[row.id].add(context.answer(row))
        contradicted = {id for id, given in answers.items() if len(given) > 1}
        seen: set[tuple[str, str]] = set()

        def keep(row: Response) -> Verdict:
            if row.id not in repeated:
                return KEPT
            if row.id in contradicted:
                return Refused("another answer to the same prompt")
            before = (row.id, context.answer(row)) in seen
            seen.add((row.id, context.answer(row)))
            return Refused("the same answer to the same prompt") if before else KEPT

        return keep


class NearDuplicates(Filter):
    """Refuse prompts that are nearly one kept before, the language of the task left aside."""

    type: Literal["near_duplicates"]
    similarity: float = Field(0.8, ge=0.5, lt=1)
    """Jaccard similarity of word bigrams from which two prompts are near-duplicates."""
    permutations: int = Field(128, ge=32, le=1024)
    """Length of the MinHash sketches that find the pairs to compare."""

    def over(self, rows: Rows, context: Context) -> Keep:
        """Return what compares a prompt with those kept that share a band of their sketches."""

        def pairs(row: Response) -> set[str]:
            return context.evaluation.pairs(prompt_text(row.prompt))

        tokens = (list(pairs(row)) or [row.id] for row in rows)
        shared = shared_bands(tokens, self.similarity, self.permutations)
        by_band: defaultdict[int, list[int]] = defaultdict(list)
        verdicts: dict[str, Verdict] = {}  # another answer goes the way of its prompt
        refused = Refused("near-duplicate of an earlier prompt")
        places = count()

        def keep(row: Response) -> Verdict:
            place = next(places)
            if place not in shared:
                return KEPT
            if row.id not in verdicts:
                near = {other for band in shared[place] for other in by_band[band]}
                said = pairs(row)
                twin = any(self._near(said, pairs(rows[other])) for other in sorted(near))
                verdicts[row.id] = refused if twin else KEPT
                for band in () if twin else shared[place]:
                    by_band[band].append(place)
            return verdicts[row.id]

        return keep

    def _near(self, some: set[str], others: set[str]) -> bool:
        return len(some & others) >= self.similarity * len(some | others)


class ClassBalance(Filter):
    """Refuse the surplus of answers that are too common: no answer makes up more than a share."""

    type: Literal["class_balance"]
    max_share: float = Field(gt=0, lt=1)
    """Largest share of one answer among the rows that are kept."""

    def over(self, rows: Rows, context: Context) -> Keep:
        """Return what keeps the first rows of each answer, up to the largest number allowed."""
        most = self._most(Counter(context.answer(row) for row in rows).values())
        kept: Counter[str] = Counter()

        def keep(row: Response) -> Verdict:
            answer = context.answer(row)
            kept[answer] += 1
            return KEPT if kept[answer] <= most else Refused("its answer is too common")

        return keep

    def _most(self, counts: Collection[int]) -> int:
        """Return the largest n with n <= max_share * (sum over answers of min(count, n))."""

        def too_many(n: int) -> bool:
            return n > self.max_share * sum(min(count, n) for count in counts) + 1e-9

        most = bisect_left(range(1, max(counts, default=0) + 1), True, key=too_many)
        if counts and not most:
            raise UserError(
                f"{len(counts)} different answers cannot each stay below {self.max_share:.0%}",
                where="filter.filters: class_balance",
                mend=f"give a max_share of {1 / len(counts):.2f} or more",
            )
        return most


def _repeated_ids(rows: Rows) -> frozenset[str]:
    import numpy as np

    ids = array("Q", (int(row.id, 16) for row in rows))
    values, counts = np.unique(np.asarray(ids), return_counts=True)
    return frozenset(f"{int(value):016x}" for value in values[counts > 1])


AnyFilter = Annotated[
    Unfinished
    | Length
    | Inadmissible
    | Repetition
    | Confidence
    | ExactDuplicates
    | NearDuplicates
    | ClassBalance,
    Field(discriminator="type"),
]
