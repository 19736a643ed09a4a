"""How the records of a source become rows: prompts, conversations, or raw text."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import model_validator

from cohobate.data.messages import Prompt
from cohobate.data.records import Row
from cohobate.params import Section
from tasks.collect.known_formats import KnownFormat
from tasks.collect.raw_text import RawText
from tasks.collect.row_content import RowContent
from tasks.collect.source_records import SourceRecord
from tasks.collect.teacher_prompt import TeacherPrompt, own_prompt_of_teacher
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
    teacher_prompt: TeacherPrompt | None = None
    """What the teacher reads in place of the prompt, such as `{text: "{prompt}\\nReference:
    {solution}"}`, or `{system: "A long instruction"}` for conversations; the student reads the
    prompt. Without it a column `teacher_prompt` (text or turns) is that, where there is one."""
    images: str | None = None
    """Column with the pictures before the prompt of a student that sees: paths beside the data
    file (`cats/1.png`, `pictures.zip/1.png`), bytes as data sets of the hub have them, or a list
    of these. The teacher of text reads a caption: `teacher_prompt`."""
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
        if self.template and self.template.is_constant and not self.images:
            raise ValueError("template.prompt: name at least one column, as in {text}")
        if self.text and self.images:
            raise ValueError("raw text has no pictures: images are for prompts")
        if self.text and self.teacher_prompt:
            raise ValueError("raw text has no prompt that a teacher_prompt could replace")
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
        own = self._teacher_prompt(content, source_record.columns)
        row = content.row(source_record.group)
        return [(source_record, row.model_copy(update={"teacher_prompt": own}) if own else row)]

    def _teacher_prompt(self, content: RowContent, columns: Mapping[str, Any]) -> Prompt | None:
        if self.teacher_prompt:
            return self.teacher_prompt.render(content.prompt, columns)
        own = own_prompt_of_teacher(content, columns)
        return None if own == content.prompt else own

    @property
    def answer_columns(self) -> frozenset[str]:
        """Columns that give an answer away."""
        return (self.text or self.template or KnownFormat()).answer_columns

    @property
    def is_raw_text(self) -> bool:
        """Whether the rows are raw text, without prompts."""
        return self.text is not None
