"""Prompts that only the teacher reads: a column `teacher_prompt`, or a template for all records."""

from collections.abc import Mapping
from string import Formatter
from typing import Any

from pydantic import field_validator, model_validator

from cohobate.data.messages import Message, Prompt
from cohobate.params import Section
from tasks.collect.conversations import conversation, turns_in
from tasks.collect.row_content import RowContent
from tasks.collect.source_records import EMPTY, MAX_CHARACTERS, UnusableRecordError, text_of
from tasks.collect.template import columns_in

COLUMN = "teacher_prompt"
"""Column with a prompt that the teacher reads in place of the row's own: a text, or turns."""
_OWN = "prompt"


class TeacherPrompt(Section):
    """A template of the prompt that the teacher reads; the student reads the row's own.

    Of a conversation, `text` is the last user's turn.
    """

    text: str = "{prompt}"
    """Text with columns to fill in: `{prompt}` is the row's own prompt (of a conversation its last
    user's turn), other names are columns, such as `{prompt}\\nReference solution: {solution}`."""
    system: str | None = None
    """Of conversations: text of a system turn before them, or before what the system's turn says,
    such as a long instruction that the student is to follow without reading it."""

    @field_validator("text")
    @classmethod
    def _well_formed(cls, text: str) -> str:
        if not columns_in(text):
            raise ValueError("name the prompt or a column, as in {prompt}")
        return text

    @model_validator(mode="after")
    def _differs(self) -> "TeacherPrompt":
        if self.text.strip() == "{prompt}" and not self.system:
            raise ValueError("the teacher would read the student's prompt: give text or system")
        return self

    def render(self, own: Prompt, columns: Mapping[str, Any]) -> Prompt:
        """Return the teacher's prompt of a record.

        Args:
            own: the prompt that the student reads.
            columns: those of the record.

        Raises:
            UnusableRecordError: a column is missing or empty, a text prompt has no system turn, or
                the prompt is too long.
        """
        if isinstance(own, str):
            if self.system:
                raise UnusableRecordError(
                    "teacher_prompt.system is for conversations, and the prompt is a text: give "
                    "teacher_prompt.text"
                )
            return _within(self._filled(own, columns))
        last = max((n for n, turn in enumerate(own) if turn.role == "user"), default=0)
        text = _within(self._filled(own[last].content, columns))
        turns = [*own[:last], own[last].model_copy(update={"content": text}), *own[last + 1 :]]
        return self._with_system(turns) if self.system else tuple(turns)

    def _filled(self, own: str, columns: Mapping[str, Any]) -> str:
        parts: list[str] = []
        for literal, name, _, _ in Formatter().parse(self.text):
            parts.append(literal)
            if name is None:
                continue
            value = own if name == _OWN else text_of(columns, name)
            if not value.strip():
                raise UnusableRecordError(f"a column of teacher_prompt is empty: {name!r}")
            parts.append(value)
        return "".join(parts)

    def _with_system(self, turns: list[Message]) -> Prompt:
        first = turns[0]
        if first.role == "system":
            content = f"{self.system}\n\n{first.content}"
            return (first.model_copy(update={"content": content}), *turns[1:])
        # the schemas of tools are on the first turn
        system = Message(role="system", content=str(self.system), tools=first.tools)
        return (system, first.model_copy(update={"tools": None}), *turns[1:])


def own_prompt_of_teacher(content: RowContent, columns: Mapping[str, Any]) -> Prompt | None:
    """Return what a record's column `teacher_prompt` holds; None where there is none.

    A text beside a conversation is a user's turn, so that both end an answer alike.

    Raises:
        UnusableRecordError: it is neither text nor turns, ends with an answer, or is too long.
    """
    value = columns.get(COLUMN)
    if value in EMPTY or (isinstance(value, str) and not value.strip()):
        return None
    tools = None if isinstance(content.prompt, str) else content.prompt[0].tools
    if (turns := turns_in(value)) is not None:
        read = conversation(turns, tools=tools)
        if read.answer is not None:
            raise UnusableRecordError("column 'teacher_prompt' ends with an assistant's turn")
        return read.prompt
    text = _within(text_of(columns, COLUMN))
    if isinstance(content.prompt, str):
        return text
    return (Message(role="user", content=text, tools=tools),)


def _within(text: str) -> str:
    if len(text) > MAX_CHARACTERS:
        raise UnusableRecordError(f"longer than {MAX_CHARACTERS} characters")
    return text
