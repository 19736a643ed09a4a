"""Prompts of an earlier round that come again, because the student is still far from the teacher.

`iterate_rounds` writes the file (`tasks/hard_examples`) and names it here; it takes the place of as
many new prompts. The rows are the training side's own: dev and test are drawn before, from the same
seed.
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
    """What comes again."""

    path: str = NO_ROWS
    """Rows, hardest first. While `rows` is 0 it is not read."""
    rows: int = Field(0, ge=0)
    """So many of them, at most."""

    def prompts(self) -> Iterator[Row]:
        """Yield the rows.

        Raises:
            UserError: there is no such file.
        """
        if self.rows and not Path(self.path).exists():
            raise UserError("no rows to replay here", where=self.path, fix="dvc checkout")
        if self.rows:
            yield from islice(read_rows(Path(self.path), Row), self.rows)
