"""Prompt template: makes prompt and answer of the columns of a record."""

import re
from collections.abc import Mapping
from string import Formatter
from typing import Any

from pydantic import ValidationInfo, field_validator

from cohobate.data.messages import Message, Prompt
from cohobate.params import Section
from tasks.collect.conversations import conversation, turns_in
from tasks.collect.known_formats import tools_in
from tasks.collect.row_content import RowContent
from tasks.collect.source_records import MAX_CHARACTERS, UnusableRecordError, text_of


class PromptTemplate(Section):
    """Prompt and answer of a record. `{name}` stands for a column, `{{` for a brace."""

    prompt: str
    """Text with columns to fill in; behind pictures it may have none. A single `{name}` can also be
    a column with a conversation, such as `messages` or ShareGPT's `conversations`: an assistant's
    last turn is the answer, and a column `tools` holds the tools that it may call."""
    answer: str = " {answer}"
    """The answer, exactly as it follows the prompt: a leading space is part of it. A record without
    one of its columns is unlabelled."""
    optional: tuple[str, ...] = ("input",)
    """Columns of the prompt that can be empty or absent: their line is then left out, with a
    heading above it, such as `### Input:`."""
    pairs: bool = False
    """Prompt and answer are a pair, such as a query and its document: a record without one of the
    two is set aside, with the name of what is missing."""
    chat: bool = False
    """Whether the prompt is a user's turn, rendered with the model's chat template."""
    system: str | None = None
    """A system turn before it, if any."""

    @field_validator("prompt", "answer")
    @classmethod
    def _well_formed(cls, template: str, info: ValidationInfo) -> str:
        # behind pictures (`RowForm`) a prompt can be the same text for all records
        if not columns_in(template) and info.field_name == "answer":
            raise ValueError("name at least one column, as in {answer}")
        return template

    @property
    def is_constant(self) -> bool:
        """Whether all records have one prompt."""
        return not columns_in(self.prompt)

    @property
    def answer_columns(self) -> frozenset[str]:
        """Columns that give an answer away."""
        return frozenset(columns_in(self.answer))

    def render(self, columns: Mapping[str, Any]) -> RowContent:
        """Return prompt and answer of a record.

        Raises:
            UnusableRecordError: a column is missing or empty, or holds something else than text.
        """
        whole = self.prompt.strip()[1:-1]
        turns = turns_in(columns.get(whole)) if self.prompt.strip() == f"{{{whole}}}" else None
        if turns is not None:
            return conversation(turns, self.system or "", self._tools(columns))
        text = _filled(self._without_empty(columns), columns)
        if text is None:
            if self.pairs:
                raise _half_missing(self.prompt, columns)
            raise UnusableRecordError("a column of the prompt is empty")
        if len(text) > MAX_CHARACTERS:
            raise UnusableRecordError(f"longer than {MAX_CHARACTERS} characters")
        answer = self._answer(columns)
        if answer is None and self.pairs:
            raise _half_missing(self.answer, columns)
        return RowContent.of_text(self._turns(text, columns), answer)

    def _without_empty(self, columns: Mapping[str, Any]) -> str:
        """Return the prompt without the lines of optional columns that are empty."""
        named = set(columns_in(self.prompt))
        known = dict.fromkeys(self.optional) | dict(columns)
        empty = {name for name in named & {*self.optional} if not text_of(known, name).strip()}
        if not empty or empty == named:
            return self.prompt
        lines = self.prompt.split("\n")
        for number in reversed(range(len(lines))):
            names = set(columns_in(lines[number]))
            if names & empty:
                lines[number] = _cut(lines[number], names & empty)
            if names and names <= empty:
                _leave_out(lines, number)
        return "\n".join(lines)

    def _turns(self, text: str, columns: Mapping[str, Any]) -> Prompt:
        if not self.chat:
            return text
        system = [Message(role="system", content=self.system)] if self.system else []
        first, *others = [*system, Message(role="user", content=text)]
        return (first.model_copy(update={"tools": self._tools(columns)}), *others)

    def _tools(self, columns: Mapping[str, Any]) -> str | None:
        """Return the tools of a record; a column that the template fills in is none."""
        text_columns = {*columns_in(self.prompt), *columns_in(self.answer)}
        return tools_in(
            {name: value for name, value in columns.items() if name not in text_columns}
        )

    def _answer(self, columns: Mapping[str, Any]) -> str | None:
        known = dict.fromkeys(columns_in(self.answer)) | dict(columns)
        return _filled(self.answer, known)


def _half_missing(template: str, columns: Mapping[str, Any]) -> UnusableRecordError:
    """Return the error of a pair of which one half is missing; `template` is that half's."""
    known = dict.fromkeys(columns_in(template)) | dict(columns)
    empty = [name for name in columns_in(template) if not text_of(known, name).strip()]
    return UnusableRecordError(f"a pair without its other half: {', '.join(empty)} is empty")


def _cut(line: str, names: set[str]) -> str:
    """Return a template line without `names` and the blanks before them."""
    for name in names:
        line = re.sub(rf"[ \t]*\{{{re.escape(name)}\}}", "", line)
    return line


def _leave_out(lines: list[str], number: int) -> None:
    """Delete a line with its heading, and one of two blank lines that would then be adjacent."""
    first = number
    above = lines[number - 1].strip() if number else ""
    if above.endswith(":") and not columns_in(above):
        first -= 1
    blank_after = number + 1 < len(lines) and not lines[number + 1].strip()
    blank_before = first == 0 or not lines[first - 1].strip()
    del lines[first : number + 1 + (blank_before and blank_after)]


def columns_in(template: str) -> list[str]:
    """Return the columns that a template names.

    Raises:
        ValueError: a brace is not closed, or a name carries a format.
    """
    names = []
    for _, name, form, conversion in Formatter().parse(template):
        if form or conversion or name == "":
            raise ValueError("write {name} for a column, and {{ and }} for braces")
        names += [name] if name else []
    return names


def _filled(template: str, columns: Mapping[str, Any]) -> str | None:
    """Fill in a template; None when one of its columns is empty."""
    parts: list[str] = []
    for literal, name, _, _ in Formatter().parse(template):
        parts.append(literal)
        if name:
            value = text_of(columns, name)
            if not value.strip():
                return None
            parts.append(value)
    return "".join(parts)
