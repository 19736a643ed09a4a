"""Data formats that are recognised by their columns: TRL, OpenAI, ShareGPT, Alpaca, UltraChat.

| columns | prompt and answer |
|---|---|
| `messages`, `conversations`, `conversation`, `dialogue`, `dialog`, `chat`, `turns`, `items` or
  `contents` | a conversation; an assistant's last turn is the answer |
| `data`, a list of texts (UltraChat) | the same, user and assistant in turn |
| `body` with `messages` | a batch request: the conversation is the prompt |
| `input` with `messages`, and `preferred_output` | OpenAI's preference: the better answer |
| `prompt` and `completion` | prompt and answer, each a text or a conversation; not where `label`
  is false (KTO) |
| `prompt` and `response`, `output` or `answer` | a user's turn and the answer |
| `prompt` and `chosen` | a preference: the better answer |
| `chosen` alone | a preference whose prompt is in it |
| `instruction`, `input` or `context`, `output` or `response` (Alpaca, Dolly) | a user's turn: the
  instruction, and the input on a line of its own unless it is empty; `history` goes before it |
| `question` or `query`, and `answer` or `response` | a user's turn and the answer |
| `prompt`, or `text` | a prompt without an answer |

A column `system` (`system_prompt`, `system_message`, Vertex's `systemInstruction`) is the system's
turn.
"""

from collections.abc import Mapping
from typing import Any

from cohobate.data.messages import Prompt
from cohobate.params import Section
from tasks.collect.conversations import conversation, turns_in
from tasks.collect.source_records import MAX_CHARACTERS, UnusableRecordError, text_of

_TURNS = (
    *("messages", "conversations", "conversation", "dialogue", "dialog", "chat"),
    *("turns", "items", "contents"),
)
_SYSTEM = ("system", "system_prompt", "system_message")
_MORE_THAN_TEXT = ("tools", "functions", "image", "images", "video", "videos", "audio", "audios")
_EMPTY: tuple[Any, ...] = (None, "", [], {}, "[]", "{}", "null")
_ANSWERS = ("output", "response", "answer", "completion", "chosen")
_BESIDE = ("context", "passage", "choices", "options", "answers")


class KnownFormat(Section):
    """Makes prompt and answer of a record by the format of its columns."""

    @property
    def answer_columns(self) -> frozenset[str]:
        """Columns that contain an answer."""
        return frozenset({*_ANSWERS, *_TURNS, "data", "preferred_output"})

    def render(self, columns: Mapping[str, Any]) -> tuple[Prompt, str | None]:
        """Return the prompt and the answer of a record; None where it has no answer.

        Raises:
            UnusableRecordError: the columns are of no known format, or hold something else.
        """
        present = {name: value for name, value in columns.items() if value is not None}
        for name in _MORE_THAN_TEXT:
            if present.get(name) not in _EMPTY:
                raise UnusableRecordError(f"column {name!r} is not supported (it can be empty)")
        system = next((text for name in _SYSTEM if (text := _optional(present, name))), "")
        if (turns := _conversation_of(present)) is not None:
            return conversation([*_vertex_system(present), *turns], system)
        if "prompt" in present:
            return self._prompt(present, system)
        if "instruction" in present:
            return self._instruction(present, system)
        if (question := self._question(columns)) is not None:
            return self._user(present, _text(present, question), system)
        if "chosen" in present:
            return conversation(_turns(present["chosen"], "chosen"), system)
        if "text" in present:
            return _text(present, "text"), None
        raise UnusableRecordError(_no_format(columns))

    def _prompt(self, columns: Mapping[str, Any], system: str) -> tuple[Prompt, str | None]:
        answer = next((name for name in ("completion", "chosen") if name in columns), None)
        if answer is None and any(name in columns for name in _ANSWERS):
            return self._user(columns, _text(columns, "prompt"), system)
        if answer == "completion" and columns.get("label") is False:
            raise UnusableRecordError("the completion is labelled as bad (label: false)")
        prompt, reply = columns["prompt"], columns[answer] if answer else None
        if not isinstance(prompt, list) and (isinstance(reply, list) or system):
            prompt = [{"role": "user", "content": _text(columns, "prompt")}]
            if isinstance(reply, str):
                reply = [{"role": "assistant", "content": _text(columns, str(answer))}]
        if isinstance(prompt, list):
            replied = _turns(reply, str(answer)) if answer else []
            # some preference sets repeat the prompt in `chosen`
            return conversation(
                replied if replied[: len(prompt)] == prompt else prompt + replied, system
            )
        return _text(columns, "prompt"), _text(columns, answer) if answer else None

    def _instruction(self, columns: Mapping[str, Any], system: str) -> tuple[Prompt, str | None]:
        history: list[Any] = []
        for pair in columns.get("history") or []:
            if not isinstance(pair, list) or len(pair) != 2:
                raise UnusableRecordError("column 'history' is not a list of questions and answers")
            history += [
                {"role": "user", "content": pair[0]},
                {"role": "assistant", "content": pair[1]},
            ]
        parts = [_text(columns, "instruction")]
        parts += [text for name in ("input", "context") if (text := _optional(columns, name))]
        return self._user(columns, "\n".join(parts), system, history)

    def _question(self, columns: Mapping[str, Any]) -> str | None:
        """Return the column of the question, if another column has its answer."""
        name = next((name for name in ("question", "query") if columns.get(name)), None)
        if name is None or not any(answer in columns for answer in _ANSWERS):
            return None
        if beside := [other for other in _BESIDE if columns.get(other) not in _EMPTY]:
            raise UnusableRecordError(f"a question with {beside[0]!r}: set collect.template")
        return name

    def _user(
        self,
        columns: Mapping[str, Any],
        text: str,
        system: str,
        history: list[Any] | None = None,
    ) -> tuple[Prompt, str | None]:
        """Return a user's turn, and the answer of the first answer column."""
        turns = [*(history or []), {"role": "user", "content": text}]
        answer = next((name for name in _ANSWERS if name in columns), None)
        replied = columns.get(answer or "")
        if isinstance(replied, list) and all(isinstance(turn, dict) for turn in replied):
            return conversation([*turns, *replied], system)
        if answer and (reply := _optional(columns, answer)):
            turns.append({"role": "assistant", "content": reply})
        return conversation(turns, system)


def _conversation_of(columns: Mapping[str, Any]) -> list[Any] | None:
    for name in _TURNS:
        turns = turns_in(columns.get(name))
        if turns is None and name in columns and name in _TURNS[:2]:
            turns = _turns(columns[name], name)
        if turns is not None:
            chosen = columns.get("chosen")
            return [*turns, chosen] if isinstance(chosen, dict) else turns
    data, body, request = (columns.get(name) for name in ("data", "body", "input"))
    if isinstance(data, list) and data and all(isinstance(turn, str) for turn in data):
        roles = ("user", "assistant")
        return [{"role": roles[n % 2], "content": text} for n, text in enumerate(data)]
    if isinstance(body, dict):
        return _turns(body.get("messages"), "body.messages")
    if isinstance(request, dict) and "messages" in request:
        preferred = columns.get("preferred_output") or []
        return _turns(request["messages"], "input.messages") + _turns(preferred, "preferred_output")
    return None


def _vertex_system(columns: Mapping[str, Any]) -> list[Any]:
    names = ("systemInstruction", "system_instruction")
    system = next((columns[name] for name in names if isinstance(columns.get(name), dict)), None)
    return [{**system, "role": "system"}] if system else []


def _turns(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list):
        raise UnusableRecordError(f"column {name!r} is not a list of turns")
    return value


def _no_format(columns: Mapping[str, Any]) -> str:
    return f"unknown format (columns: {', '.join(sorted(columns))[:200]}); set collect.template"


def _optional(columns: Mapping[str, Any], name: str) -> str:
    """Return the text of a column, "" where it is blank or absent."""
    text = text_of(columns, name) if name in columns else ""
    return text if text.strip() else ""


def _text(columns: Mapping[str, Any], name: str) -> str:
    text = text_of(columns, name)
    if not text.strip():
        raise UnusableRecordError(f"column {name!r} is empty")
    if len(text) > MAX_CHARACTERS:
        raise UnusableRecordError(f"longer than {MAX_CHARACTERS} characters")
    return text
