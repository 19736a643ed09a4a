"""Filters on duplicates: exact ones, and near-duplicates by MinHash."""

from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Literal

from pydantic import Field

from cohobate.data.records import Response
from cohobate.data.text_comparison import differ_by_case, differ_by_signs, words_of
from tasks.filter.base_filter import KEEP, Context, Drop, Filter, Rows, Verdict
from tasks.filter.minhash import shared_bands

_NEAR = "near-duplicate of an earlier prompt"


class ExactDuplicateFilter(Filter):
    """Drop repeated answers to the same prompt, and answers that contradict each other."""

    type: Literal["exact_duplicates"]
    contradictions: Literal["refuse", "keep"] = "refuse"
    """What to do with different answers to the same prompt, from several samples or teachers."""

    def verdicts(self, rows: Rows, context: Context) -> Iterator[Verdict]:
        """Compare each answer with the earlier ones to its prompt."""
        repeated = _repeated_ids(rows)
        answers: dict[str, set[str]] = {id: set() for id in repeated}
        if repeated and self.contradictions == "refuse":
            for row in rows:
                if row.id in repeated:
                    answers[row.id].add(context.answer(row))
        contradicted = {id for id, texts in answers.items() if len(texts) > 1}
        seen: set[tuple[str, str]] = set()
        for row in rows:
            if row.id not in repeated:
                yield KEEP
            elif row.id in contradicted:
                yield Drop("contradicts another answer to the same prompt")
            else:
                pair = (row.id, context.answer(row))
                yield Drop("duplicate of an earlier answer") if pair in seen else KEEP
                seen.add(pair)


class NearDuplicateFilter(Filter):
    """Drop near-duplicates of prompts kept before; phrases common to the whole task do not count.

    Prompts that differ by signs alone, such as `72 × 6` and `72 ÷ 6`, are no duplicates, nor are
    those that differ by capitals within a word, such as `5 mW` and `5 MW`.
    """

    type: Literal["near_duplicates"]
    similarity: float = Field(0.8, ge=0.5, lt=1)
    """Jaccard similarity of word bigrams from which two prompts are near-duplicates."""
    permutations: int = Field(128, ge=32, le=1024)
    """Length of the MinHash sketches that find the pairs to compare."""

    def verdicts(self, rows: Rows, context: Context) -> Iterator[Verdict]:
        """Compare each prompt with the kept ones that share a MinHash band with it."""
        words = (context.contamination.content(row.source_text) for row in rows)
        phrases = context.contamination.phrases
        shared, groups = shared_bands(words, phrases, self.similarity, self.permutations)
        kept = _KeptPrompts(groups)
        by_prompt: dict[str, Verdict] = {}  # all answers to a prompt get the verdict on the prompt
        for position, row in enumerate(rows):
            if position not in shared:
                yield KEEP
                continue
            if row.id not in by_prompt:
                candidates = kept.sharing(shared[position])
                similarity = self._similarity_to(row, (rows[n] for n in candidates), context)
                by_prompt[row.id] = KEEP if similarity is None else Drop(_NEAR, similarity)
                if similarity is None:
                    kept.add(position, shared[position])
            yield by_prompt[row.id]

    def _similarity_to(
        self, row: Response, candidates: Iterable[Response], context: Context
    ) -> float | None:
        """Return the similarity to the first candidate that is a near-duplicate; None without."""

        def pairs(of: Response) -> set[str]:
            return context.contamination.pairs(of.source_text)

        own: set[str] | None = None  # most prompts have no candidate: their pairs are not needed
        for candidate in candidates:
            own = pairs(row) if own is None else own
            similarity = _jaccard(own, pairs(candidate))
            if similarity >= self.similarity and _same(row, candidate):
                return round(similarity, 4)
        return None


class _KeptPrompts:
    """Positions of the kept prompts, by the groups of rows that share a MinHash band."""

    def __init__(self, groups: int) -> None:
        # one array entry per group; a second kept prompt of the same group is rare
        self._first = array("q", [-1]) * groups
        self._further: defaultdict[int, list[int]] = defaultdict(list)

    def sharing(self, groups: Iterable[int]) -> list[int]:
        """Return the positions of the kept prompts in any of `groups`, ascending."""
        positions = set()
        for group in groups:
            if self._first[group] >= 0:
                positions.add(self._first[group])
                positions.update(self._further.get(group, ()))
        return sorted(positions)

    def add(self, position: int, groups: Iterable[int]) -> None:
        """Add a kept prompt to its groups."""
        for group in groups:
            if self._first[group] < 0:
                self._first[group] = position
            else:
                self._further[group].append(position)


def _same(row: Response, other: Response) -> bool:
    """Say whether two similar prompts ask the same; a sign or an inner capital can differ."""
    text, other_text = row.source_text, other.source_text
    words, other_words = words_of(text), words_of(other_text)
    if words == other_words:
        return not differ_by_case(text, other_text)
    return not differ_by_signs(words, other_words)


def _jaccard(a: set[str], b: set[str]) -> float:
    return len(a & b) / max(len(a | b), 1)


def _repeated_ids(rows: Rows) -> frozenset[str]:
    import numpy as np

    ids = np.asarray(array("Q", (int(row.id, 16) for row in rows)))
    ids.sort()  # in place: ids are all that is held of the rows
    return frozenset(f"{value:016x}" for value in ids[1:][ids[1:] == ids[:-1]].tolist())
