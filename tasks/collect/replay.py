"""Replayed prompts: hard ones of an earlier round, in place of as many new prompts.

`iterate_rounds` takes the file from `hard_examples` and sets its path here. The prompts are of the
training side: dev and test are drawn before, from the same seed.
"""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from pydantic import Field

from cohobate.data.records import Row, read_rows
from cohobate.errors import UserError
from cohobate.packaged import NO_ROWS
from cohobate.params import Section


class Replay(Section):
    """Which prompts are replayed."""

    path: str = NO_ROWS
    """Rows, hardest first. While `rows` is 0 it is not read."""
    rows: int = Field(0, ge=0)
    """Largest number of rows; 0: none."""

    def prompts(self) -> Iterator[Row]:
        """Yield the rows.

        Raises:
            UserError: there is no such file, or the path names none.
        """
        if self.rows and self.path == NO_ROWS:
            raise UserError(
                "collect.replay.rows asks for rows, and its path names none",
                where="params.yaml, section collect.replay",
                fix="cohobate run --set collect.replay.path=data/hard_examples/hardest.jsonl",
            )
        if self.rows and not Path(self.path).exists():
            raise UserError("no rows to replay", where=self.path, fix="dvc checkout")
        if self.rows:
            yield from islice(read_rows(Path(self.path), Row), self.rows)
