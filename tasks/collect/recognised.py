"""The usual formats, told by their columns: those of TRL, and the input of OpenAI's batch API.

| columns | what becomes of a record |
|---|---|
| `body` with `messages` | a batch request: the conversation is the prompt |
| `messages`, or `conversations` | a conversation; an assistant's last turn is the answer |
| `prompt` and `completion` | prompt and answer, each a text or a conversation |
| `prompt` and `chosen` | a preference: the better answer |
| `chosen` alone | a preference whose prompt is in it |
| `prompt`, or `text` | a prompt without an answer |
"""

from collections.abc import Mapping
from typing import Any

from tasks.collect.examples import MAX_CHARACTERS, NoExampleError, text_of
from tasks.collect.template import Prompt, conversation
from tasks.params import Section


class Recognised(Section):
    """Takes a record for what its columns say it is."""

    @property
    def answer_columns(self) -> frozenset[str]:
        """Columns that give an answer away."""
        return frozenset({"completion", "chosen", "messages", "conversations"})

    def render(self, columns: Mapping[str, Any]) -> tuple[Prompt, str | None]:
        """Return the prompt and the answer of a record; None where it has no answer.

        Raises:
            NoExampleError: the columns are of no known format, or hold something else.
        """
        present = {name: value for name, value in columns.items() if value is not None}
        for name in ("messages", "conversations"):
            if name in present:
                return conversation(_turns(present[name], name))
        if isinstance(present.get("body"), dict):
            return conversation(_turns(present["body"].get("messages"), "body.messages"))
        answers = [name for name in ("completion", "chosen") if name in present]
        if "prompt" in present:
            return self._asked(present, answers[0] if answers else None)
        if answers == ["chosen"]:
            return conversation(_turns(present["chosen"], "chosen"))
        if "text" in present:
            return _text(present, "text"), None
        found = ", ".join(sorted(columns))[:200]
        raise NoExampleError(f"no known format (columns: {found}); give collect.template")

    def _asked(self, columns: Mapping[str, Any], answer: str | None) -> tuple[Prompt, str | None]:
        if isinstance(columns["prompt"], list):
            replied = columns[answer] if answer else []
            return conversation([*columns["prompt"], *_turns(replied, str(answer))])
        return _text(columns, "prompt"), _text(columns, answer) if answer else None


def _turns(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list):
        raise NoExampleError(f"column {name!r} holds no list of turns")
    return value


def _text(columns: Mapping[str, Any], name: str) -> str:
    text = text_of(columns, name)
    if not text.strip():
        raise NoExampleError(f"column {name!r} is empty")
    if len(text) > MAX_CHARACTERS:
        raise NoExampleError(f"longer than {MAX_CHARACTERS} characters")
    return text
