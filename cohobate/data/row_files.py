"""Rows of JSON-lines files, walked as often as needed and never held in memory."""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Generic, TypeVar

from pydantic import BaseModel

R = TypeVar("R", bound=BaseModel)


class RowView(Generic[R]):
    """Some rows of some files, in some order: eight bytes a row, read from disk on every walk.

    What a filter refuses, or an order rearranges, is the positions (`only`); the files stay as
    they are.
    """

    def __init__(self, paths: Sequence[Path], kind: type[R], places: "array[int]") -> None:
        self._paths, self._kind = paths, kind
        self._places = places  # offset in the files laid end to end
        sizes = [path.stat().st_size for path in paths]
        self._starts = [sum(sizes[:number]) for number in range(len(sizes))]

    @classmethod
    def of(cls, paths: Sequence[Path], kind: type[R]) -> "RowView[R]":
        """View all rows of `paths`, file after file."""
        # one pass over the bytes; no row is parsed
        places, place = array("Q"), 0
        for path in paths:
            with path.open("rb") as lines:
                for line in lines:
                    places.append(place)
                    place += len(line)
        return cls(paths, kind, places)

    def only(self, positions: Iterable[int]) -> "RowView[R]":
        """View the rows at `positions` of this view, in that order; a position may come twice."""
        places = array("Q", (self._places[position] for position in positions))
        return RowView(self._paths, self._kind, places)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, position: int) -> R:
        return next(iter(self.only([position])))

    def __iter__(self) -> Iterator[R]:
        with ExitStack() as opened:
            files = [opened.enter_context(path.open("rb")) for path in self._paths]
            number = 0
            for place in self._places:
                # `number` becomes the file that holds `place`; mostly it is that of the row before
                while place < self._starts[number]:
                    number -= 1
                while number + 1 < len(files) and place >= self._starts[number + 1]:
                    number += 1
                files[number].seek(place - self._starts[number])
                yield self._kind.model_validate_json(files[number].readline())
