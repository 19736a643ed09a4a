"""Data formats that are recognised by their columns: TRL, OpenAI, ShareGPT, Alpaca, UltraChat.

| columns | prompt and answer |
|---|---|
| `messages`, `conversations`, `conversation`, `dialogue`, `dialog`, `chat`, `turns`, `items` or
  `contents` | a conversation; an assistant's last turn is the answer |
| `data`, a list of texts (UltraChat) | the same, user and assistant in turn |
| `body` with `messages` | a batch request: the conversation is the prompt, and the answer is in
  `response` where the reply stands beside the request |
| `input` with `messages`, and `preferred_output` | OpenAI's preference: the better answer |
| `prompt` and `completion` | prompt and answer, each a text or a conversation; not where `label`
  is false (KTO) |
| `prompt` and `response`, `output` or `answer` | a user's turn and the answer |
| `prompt` and `chosen` | a preference: the better answer |
| `chosen` alone | a preference whose prompt is in it |
| `instruction`, `input` or `context`, `output` or `response` (Alpaca, Dolly) | a user's turn: the
  instruction, and the input on a line of its own unless it is empty; `history` goes before it |
| `query`, `tools` and `answers` (xLAM) | a user's turn, answered by calls of tools |
| `question` or `query`, and `answer` or `response` | a user's turn and the answer |
| `prompt`, or `text` | a prompt without an answer |

A column `system` (`system_prompt`, `system_message`, Vertex's `systemInstruction`) is the system's
turn; `tools` (or OpenAI's older `functions`) are the tools that a conversation may call. A text is
made a user's turn where it has either.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

from cohobate.params import Section
from tasks.collect import openai_files
from tasks.collect.conversations import conversation, turns_in
from tasks.collect.row_content import RowContent
from tasks.collect.source_records import EMPTY, MAX_CHARACTERS, UnusableRecordError, text_of
from tasks.collect.tool_calls import schemas

Columns = Mapping[str, Any]
_TURNS = (
    *("messages", "conversations", "conversation", "dialogue", "dialog", "chat"),
    *("turns", "items", "contents"),
)
_SYSTEM = ("system", "system_prompt", "system_message")
_TOOLS = ("tools", "functions")
_TEMPLATE_ARGUMENTS = "chat_template_kwargs"
_MORE_THAN_TEXT = ("image", "images", "video", "videos", "audio", "audios")
_ANSWERS = ("output", "response", "answer", "completion", "chosen")
_BESIDE = ("context", "passage", "choices", "options", "answers")


class RecognisedFormat(NamedTuple):
    """The format of a record, and the function that reads it."""

    name: str
    read: Callable[[], RowContent]


class KnownFormat(Section):
    """Makes prompt and answer of a record by the format of its columns."""

    @property
    def answer_columns(self) -> frozenset[str]:
        """Columns that contain an answer."""
        return frozenset({*_ANSWERS, *_TURNS, "data", "preferred_output"})

    def render(self, columns: Columns) -> RowContent:
        """Return prompt and answer of a record.

        Raises:
            UnusableRecordError: the columns are of no known format, or hold something else.
        """
        return self.recognise(columns).read()

    def recognise(self, columns: Columns) -> RecognisedFormat:
        """Return the format of a record.

        Raises:
            UnusableRecordError: the columns are of no known format.
        """
        present = {name: value for name, value in columns.items() if value is not None}
        for name in _MORE_THAN_TEXT:
            if present.get(name) not in EMPTY:
                raise UnusableRecordError(f"column {name!r} is not supported (it can be empty)")
        if present.get(_TEMPLATE_ARGUMENTS) not in EMPTY:
            raise UnusableRecordError(
                f"column {_TEMPLATE_ARGUMENTS!r} sets the chat template for one row, which is not "
                "supported (teachers.<name>.template sets it for all: remove the column)"
            )
        for recognise in _FORMATS:
            if (match := recognise(present)) is not None:
                return match
        shown = ", ".join(sorted(columns))[:200]
        raise UnusableRecordError(f"unknown format (columns: {shown}); set collect.template")


def tools_in(columns: Columns) -> str | None:
    """Return the tools of a record as a JSON array; None where it has none.

    Raises:
        UnusableRecordError: they are no schemas.
    """
    arrays = (schemas(name, columns.get(name)) for name in _TOOLS)
    return next((tools for tools in arrays if tools), None)


def _chat(columns: Columns) -> RecognisedFormat | None:
    for name in _TURNS:
        turns = turns_in(columns.get(name))
        if turns is None and name in columns and name in _TURNS[:2]:
            turns = _turns(columns[name], name)
        if turns is not None:
            chosen = columns.get("chosen")
            replies = [chosen] if isinstance(chosen, dict) else openai_files.reply(columns)
            return RecognisedFormat(_style(turns), partial(_conversation, columns, turns + replies))
    return None


def _ultrachat(columns: Columns) -> RecognisedFormat | None:
    data = columns.get("data")
    if not isinstance(data, list) or not data or not all(isinstance(turn, str) for turn in data):
        return None
    roles = ("user", "assistant")
    turns = [{"role": roles[n % 2], "content": text} for n, text in enumerate(data)]
    return RecognisedFormat("UltraChat", partial(_conversation, columns, turns))


def _style(turns: list[Any]) -> str:
    """Return whose turns these are, by the keys of the first."""
    first = turns[0] if turns and isinstance(turns[0], dict) else {}
    if first.get("from") is not None or first.get("value") is not None:
        return "ShareGPT"
    if first.get("parts") is not None:
        return "Vertex"
    return "chat" if first.get("role") is not None or not first else "pairs"


def _batch(columns: Columns) -> RecognisedFormat | None:
    if openai_files.is_batch(columns):
        return RecognisedFormat(
            "OpenAI batch", lambda: _conversation(*openai_files.exchange(columns))
        )
    return None


def _openai_preference(columns: Columns) -> RecognisedFormat | None:
    request = columns.get("input")
    if not isinstance(request, dict) or "messages" not in request:
        return None
    preferred = _turns(columns.get("preferred_output") or [], "preferred_output")
    turns = _turns(request["messages"], "input.messages") + preferred
    return RecognisedFormat("OpenAI preference", partial(_conversation, request, turns))


def _prompt(columns: Columns) -> RecognisedFormat | None:
    if "prompt" not in columns:
        return None
    answer = next((name for name in ("completion", "chosen") if name in columns), None)
    if answer is None and any(name in columns for name in _ANSWERS):
        return RecognisedFormat(
            "prompt and response", lambda: _user(columns, _text(columns, "prompt"))
        )
    if answer is None:
        return RecognisedFormat("prompt", partial(_prompted, columns, None))
    name = "prompt and completion" if answer == "completion" else "preference"
    return RecognisedFormat(name, partial(_prompted, columns, answer))


def _prompted(columns: Columns, answer: str | None) -> RowContent:
    if answer == "completion" and columns.get("label") is False:
        raise UnusableRecordError("the completion is labelled as bad (label: false)")
    prompt, reply = columns["prompt"], columns[answer] if answer else None
    of_turns = isinstance(reply, list) or _system_turn(columns) is not None
    chat = of_turns or _system(columns) or tools_in(columns)
    if not isinstance(prompt, list) and chat:
        prompt = [{"role": "user", "content": _text(columns, "prompt")}]
        if isinstance(reply, str):
            reply = [{"role": "assistant", "content": _text(columns, str(answer))}]
    if isinstance(prompt, list):
        replied = _turns(reply, str(answer)) if answer else []
        # some preference sets repeat the prompt in `chosen`
        repeated = replied[: len(prompt)] == prompt
        return _conversation(columns, replied if repeated else prompt + replied)
    text = _text(columns, "prompt")
    return RowContent.of_text(text, _text(columns, answer) if answer else None)


def _instruction(columns: Columns) -> RecognisedFormat | None:
    if "instruction" not in columns:
        return None
    return RecognisedFormat("Alpaca", partial(_instructed, columns))


def _instructed(columns: Columns) -> RowContent:
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
    return _user(columns, "\n".join(parts), history)


def _calls(columns: Columns) -> RecognisedFormat | None:
    if columns.get("tools") in EMPTY or not {"query", "answers"} <= columns.keys():
        return None
    turn = {"role": "tool_calls", "content": columns["answers"]}
    request = [{"role": "user", "content": columns["query"]}]
    return RecognisedFormat("xLAM", partial(_conversation, columns, [*request, turn]))


def _question(columns: Columns) -> RecognisedFormat | None:
    name = next((name for name in ("question", "query") if columns.get(name)), None)
    if name is None or not any(answer in columns for answer in _ANSWERS):
        return None
    if beside := [other for other in _BESIDE if columns.get(other) not in EMPTY]:
        raise UnusableRecordError(f"a question with {beside[0]!r}: set collect.template")
    return RecognisedFormat("question and answer", lambda: _user(columns, _text(columns, name)))


def _chosen(columns: Columns) -> RecognisedFormat | None:
    if "chosen" not in columns:
        return None
    turns = _turns(columns["chosen"], "chosen")
    return RecognisedFormat("preference", partial(_conversation, columns, turns))


def _raw_text(columns: Columns) -> RecognisedFormat | None:
    if "text" not in columns:
        return None
    return RecognisedFormat("text", lambda: RowContent(_text(columns, "text")))


_FORMATS: tuple[Callable[[Columns], RecognisedFormat | None], ...] = (
    *(_batch, _chat, _ultrachat, _openai_preference, _prompt, _instruction, _calls, _question),
    *(_chosen, _raw_text),
)
"""In the order in which they are tried."""


def _conversation(columns: Columns, turns: list[Any]) -> RowContent:
    """Return a conversation, with the system's turn and the tools of other columns."""
    system = _system_turn(columns)
    first = [system] if system else []
    return conversation([*first, *turns], _system(columns), tools_in(columns))


def _system_turn(columns: Columns) -> dict[str, Any] | None:
    """Return the system's turn where its column holds parts: Vertex's, or Anthropic's list."""
    for name in ("systemInstruction", "system_instruction"):
        if isinstance(value := columns.get(name), dict):
            return {**value, "role": "system"}
    parts = next((columns[name] for name in _SYSTEM if isinstance(columns.get(name), list)), None)
    return {"role": "system", "content": parts} if parts else None


def _user(columns: Columns, text: str, history: list[Any] | None = None) -> RowContent:
    """Return a user's turn, and the answer of the first answer column."""
    turns = [*(history or []), {"role": "user", "content": text}]
    answer = next((name for name in _ANSWERS if name in columns), None)
    replied = columns.get(answer or "")
    if isinstance(replied, list) and all(isinstance(turn, dict) for turn in replied):
        return _conversation(columns, [*turns, *replied])
    if answer and (reply := _optional(columns, answer)):
        turns.append({"role": "assistant", "content": reply})
    return _conversation(columns, turns)


def _system(columns: Columns) -> str:
    texts = (name for name in _SYSTEM if not isinstance(columns.get(name), list))
    return next((text for name in texts if (text := _optional(columns, name))), "")


def _turns(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list):
        raise UnusableRecordError(f"column {name!r} is not a list of turns")
    return value


def _optional(columns: Columns, name: str) -> str:
    """Return the text of a column, "" where it is blank or absent."""
    text = text_of(columns, name) if name in columns else ""
    return text if text.strip() else ""


def _text(columns: Columns, name: str) -> str:
    text = text_of(columns, name)
    if not text.strip():
        raise UnusableRecordError(f"column {name!r} is empty")
    if len(text) > MAX_CHARACTERS:
        raise UnusableRecordError(f"longer than {MAX_CHARACTERS} characters")
    return text
