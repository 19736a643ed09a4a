"""How the records of a source become rows: prompts, conversations, or raw text."""

from typing import Literal

from pydantic import model_validator

from cohobate.data.records import Row
from cohobate.params import Section
from tasks.collect.known_formats import KnownFormat
from tasks.collect.raw_text import RawText
from tasks.collect.source_records import SourceRecord
from tasks.collect.template import PromptTemplate


class RowForm(Section):
    """How a record becomes rows."""

    template: PromptTemplate | None = None
    """How a record becomes a prompt. Without one the columns decide: TRL's formats (`messages`,
    `prompt` and `completion`, `chosen`, `text`), OpenAI's, ShareGPT's `conversations`, Alpaca's
    `instruction`, `input` and `output`, `question` and `answer`."""
    text: RawText | None = None
    """Instead of a template: the records are documents, whose text is learnt at every token, such
    as `{characters: 3000}`."""
    learn: Literal["last", "all"] = "last"
    """Which turns of a conversation are learnt: the assistant's last, or all that it has behind the
    first user's turn. Turns with `weight: 0` (or `train: false`) never are."""
    reasoning: Literal["keep", "drop"] = "keep"
    """What becomes of reasoning, in a key of its own or between tags (`<think>`): it is kept apart
    from the answer and learnt as the chat template renders it, or left out."""

    @model_validator(mode="after")
    def _prompts_or_raw_text(self) -> "RowForm":
        if self.text and self.template:
            raise ValueError("raw text has no template: give either text or template")
        return self

    def rows(self, source_record: SourceRecord) -> list[tuple[SourceRecord, Row]]:
        """Return the rows of a record: one, or the pieces of a document.

        Raises:
            UnusableRecordError: no row can be made of it.
        """
        if self.text:
            return self.text.rows(source_record)
        content = (self.template or KnownFormat()).render(source_record.columns)
        if self.reasoning == "drop":
            content = content.without_reasoning()
        if self.learn == "all":
            content = content.with_earlier_turns_learnt()
        return [(source_record, content.row(source_record.group))]

    @property
    def answer_columns(self) -> frozenset[str]:
        """Columns that give an answer away."""
        return (self.text or self.template or KnownFormat()).answer_columns

    @property
    def is_raw_text(self) -> bool:
        """Whether the rows are raw text, without prompts."""
        return self.text is not None
