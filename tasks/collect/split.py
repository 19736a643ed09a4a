"""Label-scarce splits without leakage: few labelled rows, many unlabelled, dev and test apart.

Examples are drawn in the order of a hash of the seed and their first key, so a split does not
depend on the order of the file, and changes little when examples are added. Test is drawn first,
then dev, then the training side; what shares a key with a part drawn before (the same document, a
sense of the same word), or gives away one of its prompts, is drawn into no later part.
"""

import hashlib
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice

from pydantic import Field

from cohobate.data.contamination import Contamination
from cohobate.data.records import Row
from cohobate.params import Section
from tasks.collect.examples import Example

_MARKS = {"": 0, "train": 0, "dev": 1, "test": 2, "ood": 3}
_NO_ANSWER = 0


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


class Pool:
    """What a split must know of each row, some forty bytes; the rows themselves stay on disk."""

    def __init__(self, split: "Split") -> None:
        self._seed, self._ood_groups = split.seed, frozenset(split.ood_groups)
        self.prompts, self.answers = array("Q"), array("Q")  # hashes
        self.ranks, self.marks = array("Q"), array("B")
        self._keys, self._key_ends = array("Q"), array("Q")

    def add(self, example: Example, row: Row) -> None:
        """Take note of one more row."""
        keys = example.keys or (row.id,)
        self.prompts.append(int(row.id, 16))
        self.answers.append(_NO_ANSWER if row.answer is None else _hash(row.answer) | 1)
        self.ranks.append(_hash(f"{self._seed} {keys[0]}"))
        part = "ood" if example.group in self._ood_groups else example.part
        self.marks.append(_MARKS[part])
        self._keys.extend(map(_hash, keys))
        self._key_ends.append(len(self._keys))

    def __len__(self) -> int:
        return len(self.prompts)

    def has(self, part: str) -> bool:
        """Say whether the source itself puts rows in this part."""
        return _MARKS[part] in self.marks

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
        bounds = np.flatnonzero(np.diff(prompts[order])) + 1
        starts = np.concatenate(([0], bounds))
        ends = np.concatenate((bounds, [len(order)]))
        for at in np.flatnonzero(ends - starts > 1):
            yield order[starts[at] : ends[at]].tolist()


@dataclass
class Parts:
    """What was drawn, as row numbers of the pool."""

    labelled: list[int] = field(default_factory=list)
    unlabelled: list[int] = field(default_factory=list)
    dev: list[int] = field(default_factory=list)
    test: list[int] = field(default_factory=list)
    ood: list[int] = field(default_factory=list)
    refused: list[tuple[int, str]] = field(default_factory=list)
    """Rows that cannot be used, and why."""
    withheld: int = 0
    """Rows met that share a key with a part drawn before."""


class Split(Section):
    """Sizes of the parts. Answers beyond the labelled rows are taken away: they are unlabelled."""

    seed: int = 0
    labelled: int = Field(1000, ge=1)
    """Training rows that keep their answer."""
    unlabelled: int = Field(8000, ge=1)
    """Training rows for the teacher to answer; fewer where there are no more."""
    batch: int = Field(0, ge=0)
    """Which batch of unlabelled rows: 0 is the first, 1 takes those that come after, and so on."""
    dev: int = Field(500, ge=1)
    test: int = Field(2500, ge=1)
    ood: int = Field(0, ge=0)
    """Rows of another distribution, to test on alone: those of `ood_groups`, and those that the
    source itself calls `ood`."""
    ood_groups: tuple[str, ...] = ()
    """Groups of which no row is in any other part, whether `ood` asks for rows or not."""

    def draw(self, pool: Pool, prompt_of: Callable[[int], str], parts: Parts) -> None:
        """Draw `parts`; one may come out smaller than asked.

        Args:
            pool: what is known of the rows.
            prompt_of: gives the text of a row's prompt.
            parts: is filled.
        """
        _Draw(pool, prompt_of, parts).draw(self)


class _Draw:
    """One walk after the other over the rows in drawing order."""

    def __init__(self, pool: Pool, prompt_of: Callable[[int], str], parts: Parts) -> None:
        self._pool, self._prompt_of, self._parts = pool, prompt_of, parts
        self._gone = bytearray(len(pool))
        self._blocked: set[int] = set()
        self._evaluation: list[str] = []

    def draw(self, split: Split) -> None:
        parts, answers = self._parts, self._pool.answers
        self._refuse_repeated()
        order = self._pool.in_drawing_order()
        drawings = [("test", split.test, parts.test), ("dev", split.dev, parts.dev)]
        for part, size, drawn in [*drawings, ("ood", split.ood, parts.ood)]:
            own = part == "ood" or self._pool.has(part)
            mark = _MARKS[part] if own else 0  # else drawn from the rest
            answered = (row for row in self._marked(order, mark) if answers[row])
            drawn.extend(self._take(answered, size))
            self._close(drawn)
        answered = (row for row in self._marked(order, 0) if answers[row])
        parts.labelled += self._take(answered, split.labelled)
        before = split.batch * split.unlabelled
        others = self._take(self._marked(order, 0), before + split.unlabelled)
        parts.unlabelled += islice(others, before, None)

    def _marked(self, order: Iterable[int], mark: int) -> Iterator[int]:
        return (row for row in order if self._pool.marks[row] == mark)

    def _refuse_repeated(self) -> None:
        for rows in self._pool.repeated():
            answers = {self._pool.answers[row] for row in rows} - {_NO_ANSWER}
            # an evaluation part keeps its copy; then a copy with an answer; then the first
            rows.sort(key=lambda row: (-self._pool.marks[row], not self._pool.answers[row], row))
            if len(answers) > 1:
                self._refuse(rows, "the same prompt with another answer")
            else:
                self._refuse(rows[1:], "the same prompt again")

    def _refuse(self, rows: Iterable[int], reason: str) -> None:
        for row in rows:
            self._gone[row] = True
            self._parts.refused.append((row, reason))

    def _take(self, rows: Iterable[int], size: int) -> Iterator[int]:
        contamination = Contamination(self._evaluation)
        for row in rows:
            if size == 0:
                return
            if self._gone[row]:
                continue
            self._gone[row] = True
            if not self._blocked.isdisjoint(self._pool.keys(row)):
                self._parts.withheld += 1
            elif reason := contamination.reason(self._prompt_of(row)):
                self._parts.refused.append((row, reason))
            else:
                size -= 1
                yield row

    def _close(self, rows: list[int]) -> None:
        """Let nothing that is close to `rows` into a later part."""
        for row in rows:
            self._blocked.update(self._pool.keys(row))
            self._evaluation.append(self._prompt_of(row))
