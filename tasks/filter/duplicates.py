"""Filters on rows that say the same again: to the letter, or nearly."""

from array import array
from collections import defaultdict
from itertools import count
from typing import Literal

from pydantic import Field

from cohobate.data.records import Response, prompt_text
from cohobate.data.text_comparison import differ_by_case, differ_by_signs, words_of
from tasks.filter.near_duplicates import shared_bands
from tasks.filter.verdicts import KEPT, Context, Filter, Keep, Refused, Rows, Verdict

_NEAR = "near-duplicate of an earlier prompt"


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
    """Refuse prompts that are nearly one kept before, the language of the task left aside.

    Prompts that differ by signs alone, such as `72 × 6` and `72 ÷ 6`, are no duplicates, nor are
    those that differ by capitals within a word, such as `5 mW` and `5 MW`.
    """

    type: Literal["near_duplicates"]
    similarity: float = Field(0.8, ge=0.5, lt=1)
    """Jaccard similarity of word bigrams from which two prompts are near-duplicates."""
    permutations: int = Field(128, ge=32, le=1024)
    """Length of the MinHash sketches that find the pairs to compare."""

    def over(self, rows: Rows, context: Context) -> Keep:
        """Return what compares a prompt with those kept that share a band of their sketches."""

        def pairs(row: Response) -> set[str]:
            return context.evaluation.pairs(prompt_text(row.prompt))

        words = (context.evaluation.content(prompt_text(row.prompt)) for row in rows)
        phrases = context.evaluation.phrases
        shared, groups = shared_bands(words, phrases, self.similarity, self.permutations)
        first = array("q", [-1]) * groups  # kept row of each group; more are rare
        further: defaultdict[int, list[int]] = defaultdict(list)
        verdicts: dict[str, Verdict] = {}  # another answer goes the way of its prompt
        places = count()

        def keep(row: Response) -> Verdict:
            place = next(places)
            if place not in shared:
                return KEPT
            if row.id not in verdicts:
                known = [group for group in shared[place] if first[group] >= 0]
                near = {first[group] for group in known}
                near.update(*(further[group] for group in known if group in further))
                said = pairs(row) if near else set()
                others = (rows[other] for other in sorted(near))
                alike = ((other, _jaccard(said, pairs(other))) for other in others)
                twins = (s for other, s in alike if s >= self.similarity and _same(row, other))
                twin = next(twins, None)
                verdicts[row.id] = KEPT if twin is None else Refused(_NEAR, round(twin, 4))
                for group in shared[place] if twin is None else ():
                    if first[group] < 0:
                        first[group] = place
                    else:
                        further[group].append(place)
            return verdicts[row.id]

        return keep


def _same(row: Response, other: Response) -> bool:
    """Say whether two prompts differ by no sign alone, and by no capital within a word alone."""
    text, twin = prompt_text(row.prompt), prompt_text(other.prompt)
    words, twins = words_of(text), words_of(twin)
    if words == twins:
        return not differ_by_case(text, twin)
    return not differ_by_signs(words, twins)


def _jaccard(some: set[str], others: set[str]) -> float:
    return len(some & others) / max(len(some | others), 1)


def _repeated_ids(rows: Rows) -> frozenset[str]:
    import numpy as np

    ids = np.asarray(array("Q", (int(row.id, 16) for row in rows)))
    ids.sort()  # in place: ids are all that is held of the rows
    return frozenset(f"{value:016x}" for value in ids[1:][ids[1:] == ids[:-1]].tolist())
