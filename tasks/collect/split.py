"""Label-scarce splits without leakage: few labelled rows, many unlabelled, separate dev and test.

Rows are drawn in the order of a hash of the seed and their first key. So a split does not depend on
the order of the file, and changes little when records are added. Test is drawn first, then dev,
then the training side. A row that shares a key with a part drawn before (the same document, a sense
of the same word), or contains one of its prompts, is not drawn into a later part. Where there are
several sources, all of this holds across them: test is drawn of every source, then dev of every
source, and so on.
"""

import hashlib
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from pydantic import Field

from cohobate.data.contamination import Contamination, index_by_task
from cohobate.data.records import Row
from cohobate.params import Section
from tasks.collect.source_records import SourceRecord

_MARKS = {"": 0, "train": 0, "dev": 1, "test": 2, "ood": 3}
_NO_ANSWER = 0


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def _answer_hash(row: Row) -> int:
    if row.answer is None:
        return _NO_ANSWER
    calls = [f"\n{call.name} {call.arguments}" for call in row.tool_calls or ()]
    # | 1: no answer has the hash 0, which stands for none
    return _hash("".join([row.answer, *calls])) | 1


class SplitIndex:
    """Index of the rows for drawing a split: about forty bytes a row; the rows stay on disk."""

    def __init__(self, *splits: "Split") -> None:
        """Make an empty index for the splits of the sources, one each."""
        self._splits = [(split.seed, frozenset(split.ood_groups)) for split in splits]
        self._marked: set[tuple[int, int]] = set()  # source and part
        self.sources = array("H")
        self.prompts, self.answers = array("Q"), array("Q")  # hashes
        self.ranks, self.marks = array("Q"), array("B")
        self.raw_text = bytearray()
        """For each row, whether it is raw text: it is never unlabelled."""
        self._keys, self._key_ends = array("Q"), array("Q")

    def add(self, source_record: SourceRecord, row: Row, source: int = 0) -> None:
        """Add a row of the source with this number."""
        (seed, ood_groups), keys = self._splits[source], source_record.keys or (row.id,)
        self.sources.append(source)
        self.prompts.append(int(row.id, 16))
        self.answers.append(_answer_hash(row))
        self.ranks.append(_hash(f"{seed} {keys[0]}"))
        part = "ood" if source_record.group in ood_groups else source_record.part
        self.marks.append(_MARKS[part])
        self._marked.add((source, _MARKS[part]))
        self.raw_text.append(row.is_raw_text)
        self._keys.extend(map(_hash, keys))
        self._key_ends.append(len(self._keys))

    def __len__(self) -> int:
        return len(self.prompts)

    def has(self, part: str, source: int = 0) -> bool:
        """Return whether the source itself assigns rows to this part."""
        return (source, _MARKS[part]) in self._marked

    def count(self, source: int) -> int:
        """Return the number of rows of a source."""
        return self.sources.count(source)

    def keys(self, row: int) -> "array[int]":
        """Return the hashes of the keys of a row."""
        return self._keys[self._key_ends[row - 1] if row else 0 : self._key_ends[row]]

    def in_drawing_order(self) -> "array[int]":
        """Return all rows in the order in which they are drawn."""
        import numpy as np

        return array("Q", np.argsort(np.asarray(self.ranks), kind="stable").tobytes())

    def repeated(self) -> Iterator[list[int]]:
        """Yield the rows of each prompt that occurs more than once."""
        import numpy as np

        prompts = np.asarray(self.prompts)
        order = np.argsort(prompts, kind="stable")
        # sorted by prompt, equal ones are neighbours: a group ends where the hash changes
        bounds = np.flatnonzero(np.diff(prompts[order])) + 1
        starts = np.concatenate(([0], bounds))
        ends = np.concatenate((bounds, [len(order)]))
        for at in np.flatnonzero(ends - starts > 1):
            yield order[starts[at] : ends[at]].tolist()


@dataclass
class SplitParts:
    """The drawn parts, as row numbers of the index."""

    labelled: list[int] = field(default_factory=list)
    unlabelled: list[int] = field(default_factory=list)
    dev: list[int] = field(default_factory=list)
    test: list[int] = field(default_factory=list)
    ood: list[int] = field(default_factory=list)
    unusable: list[tuple[int, str]] = field(default_factory=list)
    """Rows that cannot be used, with the reason."""
    withheld_of: Counter[int] = field(default_factory=Counter)
    """By source, the number of rows left out because they share a key with a part drawn before."""

    @property
    def withheld(self) -> int:
        """The number of such rows of all sources."""
        return self.withheld_of.total()


class Split(Section):
    """Sizes of the parts. Training rows beyond `labelled` lose their answers."""

    seed: int = 0
    labelled: int = Field(1000, ge=1)
    """Training rows that keep their answer."""
    unlabelled: int = Field(8000, ge=0)
    """Training rows for the teacher to answer, as far as there are any. 0: none, for rounds on raw
    text or on reference answers alone (`generate.reference_answers`)."""
    batch: int = Field(0, ge=0)
    """Which batch of unlabelled rows: 0 is the first, 1 the one after it, and so on. After its last
    whole one a source begins again, with its first."""
    dev: int = Field(500, ge=1)
    test: int = Field(2500, ge=1)
    ood: int = Field(0, ge=0)
    """Rows out of distribution, for testing alone: those of `ood_groups`, and those that the source
    itself marks as `ood`."""
    ood_groups: tuple[str, ...] = ()
    """Groups that are kept out of all other parts, also where `ood` is 0."""

    def draw(self, pool: SplitIndex, text_of: Callable[[int], str], parts: SplitParts) -> None:
        """Draw `parts`; a part can be smaller than configured.

        Args:
            pool: index of the rows.
            text_of: returns the text by which a row is compared.
            parts: is filled.
        """
        draw_parts([self], pool, text_of, parts)


class SourceSplit(Section):
    """Sizes of the parts of one of several sources; those of `collect.split` where not given."""

    labelled: int | None = Field(None, ge=0)
    unlabelled: int | None = Field(None, ge=0)
    dev: int | None = Field(None, ge=0)
    test: int | None = Field(None, ge=0)
    ood: int | None = Field(None, ge=0)
    ood_groups: tuple[str, ...] | None = None

    def completed(self, split: Split) -> Split:
        """Return `split` with what is given here."""
        return split.model_copy(update=self.model_dump(exclude_none=True))


def draw_parts(
    splits: Sequence[Split],
    pool: SplitIndex,
    text_of: Callable[[int], str],
    parts: SplitParts,
) -> None:
    """Draw the parts of several sources; the rows of a part are those of all sources, mixed.

    Args:
        splits: one for each source.
        pool: index of the rows.
        text_of: returns the text by which a row is compared.
        parts: is filled.
    """
    _Draw(pool, text_of, parts).draw(splits)


class _Draw:
    """Draws the parts one after the other from the rows in drawing order."""

    def __init__(self, pool: SplitIndex, text_of: Callable[[int], str], parts: SplitParts) -> None:
        self._pool, self._text_of, self._parts = pool, text_of, parts
        self._used = bytearray(len(pool))
        self._blocked: set[int] = set()
        self._evaluation: list[tuple[str, str]] = []  # source and prompt

    def draw(self, splits: Sequence[Split]) -> None:
        parts, answers = self._parts, self._pool.answers
        self._drop_repeated()
        order = self._pool.in_drawing_order()
        for part in ("test", "dev", "ood"):
            drawn: list[int] = getattr(parts, part)
            # parts that are drawn by now; a part is not compared with itself
            contamination = index_by_task(self._evaluation)
            for source, split in enumerate(splits):
                # rows out of distribution are never drawn from the rest
                own = part == "ood" or self._pool.has(part, source)
                mark = _MARKS[part] if own else 0  # else drawn from the rest
                answered = (row for row in self._marked(order, mark, source) if answers[row])
                drawn.extend(self._take(answered, getattr(split, part), contamination))
            self._close(drawn)
        contamination = index_by_task(self._evaluation)
        for source, split in enumerate(splits):
            answered = (row for row in self._marked(order, 0, source) if answers[row])
            parts.labelled += self._take(answered, split.labelled, contamination)
            rest = self._marked(order, 0, source)
            prompts = (row for row in rest if not self._pool.raw_text[row])
            # earlier batches are drawn again and dropped, so that no row is in two batches
            size = split.unlabelled
            rows = [*self._take(prompts, (split.batch + 1) * size, contamination)]
            begin = size * (split.batch % max(1, len(rows) // size)) if size else 0
            parts.unlabelled += rows[begin : begin + size]
        if len(splits) > 1:
            # what reads the first rows of a file alone reads rows of every source
            for rows in (parts.labelled, parts.unlabelled, parts.dev, parts.test, parts.ood):
                rows.sort(key=lambda row: (self._pool.ranks[row], row))

    def _marked(self, order: Iterable[int], mark: int, source: int) -> Iterator[int]:
        marks, sources = self._pool.marks, self._pool.sources
        return (row for row in order if marks[row] == mark and sources[row] == source)

    def _drop_repeated(self) -> None:
        for rows in self._pool.repeated():
            answers = {self._pool.answers[row] for row in rows} - {_NO_ANSWER}
            # an evaluation part keeps its copy; then a copy with an answer; then the first
            rows.sort(key=lambda row: (-self._pool.marks[row], not self._pool.answers[row], row))
            if self._pool.raw_text[rows[0]]:
                self._drop(rows[1:], "duplicate text")
            elif len(answers) > 1:
                self._drop(rows, "duplicate prompt with another answer")
            else:
                self._drop(rows[1:], "duplicate prompt")

    def _drop(self, rows: Iterable[int], reason: str) -> None:
        for row in rows:
            self._used[row] = True
            self._parts.unusable.append((row, reason))

    def _take(self, rows: Iterable[int], size: int, contamination: Contamination) -> Iterator[int]:
        for row in rows:
            if size == 0:
                return
            if self._used[row]:
                continue
            self._used[row] = True
            if not self._blocked.isdisjoint(self._pool.keys(row)):
                self._parts.withheld_of[self._pool.sources[row]] += 1
            elif reason := contamination.reason(self._text_of(row)):
                self._parts.unusable.append((row, reason))
            else:
                size -= 1
                yield row

    def _close(self, rows: list[int]) -> None:
        """Keep rows that share a key or a prompt with `rows` out of later parts."""
        for row in rows:
            self._blocked.update(self._pool.keys(row))
            self._evaluation.append((str(self._pool.sources[row]), self._text_of(row)))
