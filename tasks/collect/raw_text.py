"""Raw text: documents, cut into rows of which every token is learnt."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from pydantic import Field

from cohobate.data.records import Row, row_id
from cohobate.params import Section
from tasks.collect.source_records import SourceRecord, UnusableRecordError, text_of


class RawText(Section):
    """How documents become rows without a prompt: the rows' texts, joined, are the document."""

    column: str = "text"
    """The column with the document."""
    characters: int = Field(3000, ge=1)
    """Largest length of a row's text; 3,000 characters of English are about 700 tokens, and
    `max_tokens` of the phases must allow for them. A document is cut before a blank, or within a
    word that is longer. A model learns no dependency that is longer than a row."""

    @property
    def answer_columns(self) -> frozenset[str]:
        """Columns that give an answer away."""
        return frozenset({self.column})

    def rows(self, record: SourceRecord) -> list[tuple[SourceRecord, Row]]:
        """Return the rows of a document, each with the record under the document's key.

        Raises:
            UnusableRecordError: the document is missing or blank, or is not text.
        """
        text = self._document(record.columns)
        # rows of one document share its key, so that no split separates them
        keyed = replace(record, keys=record.keys or (row_id("", text),))
        pieces = self._pieces(text)
        rows = []
        for number, piece in enumerate(pieces):
            goes_on: Literal[True] | None = True if number + 1 < len(pieces) else None
            row = Row(
                id=row_id("", piece),
                prompt="",
                answer=piece,
                cut=goes_on,
                group=record.group,
                origin="ground_truth",
            )
            rows.append((keyed, row))
        return rows

    def _document(self, columns: Mapping[str, Any]) -> str:
        text = text_of(columns, self.column)
        if not text.strip():
            raise UnusableRecordError(f"column {self.column!r} is empty")
        return text

    def _pieces(self, text: str) -> list[str]:
        pieces, start = [], 0
        while len(text) - start > self.characters:
            end = self._cut(text, start)
            pieces.append(text[start:end])
            start = end
        # blanks alone are nothing to learn: they go to the piece before them
        if pieces and not text[start:].strip():
            pieces[-1] += text[start:]
        else:
            pieces.append(text[start:])
        return pieces

    def _cut(self, text: str, start: int) -> int:
        """Return where the piece that begins at `start` ends."""
        limit = end = start + self.characters
        while end > start and not text[end].isspace():
            end -= 1
        # before a run of blanks: tokenizers put a blank at the beginning of a token
        while end > start and text[end - 1].isspace():
            end -= 1
        return end if end > start else limit
