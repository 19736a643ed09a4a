"""From the columns of a record to the prompt and the answer of a row."""

from collections.abc import Mapping
from string import Formatter
from typing import Any

from pydantic import ValidationError, field_validator

from tasks.collect.examples import MAX_CHARACTERS, NoExampleError, storable, text_of
from tasks.params import Section
from tasks.rows.records import Message

Prompt = str | tuple[Message, ...]


class Template(Section):
    """How a record is put to a model. `{name}` stands for a column, `{{` for a brace."""

    prompt: str
    """Text with the columns to fill in. A mere `{name}` also takes a column that holds a
    conversation, a list of `{role, content}`: if it ends with the assistant, that is the answer."""
    answer: str = " {answer}"
    """What should follow the prompt, to the letter: a leading space belongs to it. A record that
    lacks one of its columns is unlabelled."""
    chat: bool = False
    """Put the prompt to the model as a user's turn, through its chat template."""
    system: str | None = None
    """The system's turn before it, if any."""

    @field_validator("prompt", "answer")
    @classmethod
    def _well_formed(cls, template: str) -> str:
        if not columns_in(template):
            raise ValueError("name at least one column, as in {text}")
        return template

    @property
    def answer_columns(self) -> frozenset[str]:
        """Columns that give an answer away."""
        return frozenset(columns_in(self.answer))

    def render(self, columns: Mapping[str, Any]) -> tuple[Prompt, str | None]:
        """Return the prompt and the answer of a record; None where it has no answer.

        Raises:
            NoExampleError: a column is missing or empty, or holds something else than text.
        """
        whole = self.prompt.strip()[1:-1]
        if self.prompt.strip() == f"{{{whole}}}" and isinstance(columns.get(whole), list):
            return conversation(columns[whole])
        text = _filled(self.prompt, columns)
        if text is None:
            raise NoExampleError("a column of the prompt is empty")
        if len(text) > MAX_CHARACTERS:
            raise NoExampleError(f"longer than {MAX_CHARACTERS} characters")
        return self._turns(text), self._answer(columns)

    def _turns(self, text: str) -> Prompt:
        if not self.chat:
            return text
        system = [Message(role="system", content=self.system)] if self.system else []
        return (*system, Message(role="user", content=text))

    def _answer(self, columns: Mapping[str, Any]) -> str | None:
        known = dict.fromkeys(columns_in(self.answer)) | dict(columns)
        return _filled(self.answer, known)


def conversation(turns: list[Any]) -> tuple[Prompt, str | None]:
    """Return the prompt and the answer of a conversation: its last turn, if the assistant's.

    Raises:
        NoExampleError: a turn is none, or the user's is not the last one asked.
    """
    try:
        messages = tuple(Message.model_validate(turn, strict=True) for turn in turns)
    except ValidationError:
        raise NoExampleError("a turn is not {role, content} of system, user or assistant") from None
    content = "".join(storable(message.content) for message in messages)
    if len(content) > MAX_CHARACTERS:
        raise NoExampleError(f"longer than {MAX_CHARACTERS} characters")
    answer = messages[-1].content if messages and messages[-1].role == "assistant" else None
    asked = messages if answer is None else messages[:-1]
    if not asked or asked[-1].role != "user":
        raise NoExampleError("the conversation does not end with the user's turn and an answer")
    return asked, answer or None


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
    """Fill a template in; None when a column of it is empty. What is filled in stays as it is."""
    parts: list[str] = []
    for literal, name, _, _ in Formatter().parse(template):
        parts.append(literal)
        if name:
            value = text_of(columns, name)
            if not value.strip():
                return None
            parts.append(value)
    return "".join(parts)
