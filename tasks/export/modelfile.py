"""Ollama's Modelfile beside a GGUF file: its template, stop tokens and parameters.

Ollama's templates are Go's, chat templates are Jinja's. A chat template that lays turns one behind
the other is written as Go's by its pieces, which are found by rendering conversations and verified
on others. Of all else the model completes text.
"""

from collections.abc import Sequence
from itertools import product
from typing import TYPE_CHECKING, Any, NamedTuple

from cohobate.data.rendering import special_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MODELFILE = "Modelfile"
_MARKS = {"system": "⟦s⟧", "user": "⟦u⟧", "assistant": "⟦a⟧"}
"""Contents that no template has in it."""
_CONTEXT = 8192
"""Most tokens of prompt and answer that Ollama keeps room for."""


class ChatPieces(NamedTuple):
    """The pieces of a chat template that lays turns one behind the other."""

    start: str
    """Before the first turn, whoever has it."""
    default: str
    """Before the first turn where that is not the system's, such as a default system message."""
    turns: dict[str, tuple[str, str]]
    """Text before and behind a turn, by its role; a template may take no system message."""
    answer: str
    """Behind the last turn, where an answer begins."""

    def render(self, turns: Sequence[tuple[str, str]]) -> str:
        """Return roles and contents as text, up to where the answer begins."""
        first = "" if turns[0][0] == "system" else self.default
        body = (self.turns[role][0] + text + self.turns[role][1] for role, text in turns)
        return self.start + first + "".join(body) + self.answer

    def as_go(self) -> str:
        """Return them as a Go template over Ollama's `.Messages`."""
        text = _literal(self.start)
        if self.default:
            condition = '{{ if ne (index .Messages 0).Role "system" }}'
            text += condition + _literal(self.default) + "{{ end }}"
        text += "{{ range .Messages }}"
        for number, (role, (before, after)) in enumerate(self.turns.items()):
            word = "else if" if number else "if"
            text += f'{{{{ {word} eq .Role "{role}" }}}}'
            text += f"{_literal(before)}{{{{ .Content }}}}{_literal(after)}"
        return text + "{{ end }}{{ end }}" + _literal(self.answer)


def modelfile(
    tokenizer: "PreTrainedTokenizerBase",
    gguf: str,
    *,
    chats: bool,
    prefix: str = "",
    context: int | None = None,
) -> tuple[str, str]:
    """Return a Modelfile, and a sentence on what its template does.

    Args:
        tokenizer: the model's, with its chat template.
        gguf: name of the GGUF file beside it.
        chats: whether the model learnt conversations; else it completes text.
        prefix: text that it learnt to read before each prompt.
        context: tokens that the model can read, if known.
    """
    pieces = chat_pieces(tokenizer) if chats else None
    stops = []
    if pieces:
        template, note = pieces.as_go(), "The template is the model's own chat template."
        behind = (pieces.turns["assistant"][1] + pieces.turns["user"][0]).lstrip()
        ends = [token for token in special_tokens(tokenizer) if behind.startswith(token)]
        stops = sorted(ends, key=len)[-1:]
        if "system" not in pieces.turns:
            note += " It has no system message: Ollama leaves one out."
    else:
        template = _literal(prefix) + "{{ .Prompt }}"
        note = "The prompt is completed as it is given: the model learnt no chat template."
        if chats:
            note = (
                "The model's chat template cannot be written as Ollama's: the prompt is completed "
                "as it is given, so it must be the conversation as the template renders it."
            )
    if tokenizer.eos_token:
        stops.append(str(tokenizer.eos_token))
    lines = [
        f"FROM ./{gguf}",
        f'TEMPLATE """{template}"""',
        *(f'PARAMETER stop "{stop}"' for stop in dict.fromkeys(stops)),
        # as it was evaluated: the likeliest token, and no penalty
        "PARAMETER temperature 0",
        "PARAMETER repeat_penalty 1.0",
        f"PARAMETER num_ctx {min(context or _CONTEXT, _CONTEXT)}",
    ]
    return "\n".join(lines) + "\n", note


def chat_pieces(tokenizer: "PreTrainedTokenizerBase") -> ChatPieces | None:
    """Return the pieces of a chat template; None where it does more than lay out turns."""
    # a template that prints the day would be another file on another day
    if not tokenizer.chat_template or "strftime_now" in str(tokenizer.chat_template):
        return None
    for with_system in (True, False):
        try:
            pieces = _pieces(tokenizer, with_system=with_system)
            alike = all(
                pieces.render(turns) == _rendered(tokenizer, turns)
                for turns in _probes(pieces.turns)
            )
        except Exception:  # a template raises errors of its own, and may leave a turn out
            continue
        if alike and '"""' not in pieces.as_go():
            return _without_bos(tokenizer, pieces)
    return None


def _pieces(tokenizer: "PreTrainedTokenizerBase", *, with_system: bool) -> ChatPieces:
    """Return the pieces as a few conversations show them.

    Raises:
        ValueError: a turn's text is not there as it is.
    """
    user, assistant = _MARKS["user"], _MARKS["assistant"]
    opened = _rendered(tokenizer, [("user", user)], answer=False)
    talk = [("user", user), ("assistant", assistant)]
    closed = _rendered(tokenizer, talk, answer=False)
    again = _rendered(tokenizer, [*talk, ("user", user)], answer=False)
    head, after = opened.split(user)
    _, between, _ = again.split(user)
    before_answer, after_answer = between.split(assistant)
    # behind the last answer there may be no more than behind earlier ones, or another token
    end = closed.split(assistant)[1]
    before = after_answer.removeprefix(end)
    if not (after_answer.startswith(end) and head.endswith(before)):
        before = _common_end(head, after_answer)
    turns = {
        "user": (before, after),
        "assistant": (before_answer.removeprefix(after), after_answer.removesuffix(before)),
    }
    answer = _rendered(tokenizer, [("user", user)]).removeprefix(opened)
    start, default = head.removesuffix(before), ""
    if with_system:
        system = _MARKS["system"]
        text = _rendered(tokenizer, [("system", system), ("user", user)], answer=False)
        first, rest = text.split(system)
        begin = _common_start(start, first)
        turns["system"] = (first.removeprefix(begin), rest.split(user)[0].removesuffix(before))
        start, default = begin, start.removeprefix(begin)
    return ChatPieces(start, default, turns, answer)


def _probes(roles: dict[str, Any]) -> list[list[tuple[str, str]]]:
    """Return conversations on which a template must be the same as its pieces."""
    talk = [("user", "Why?"), ("assistant", "So."), ("user", "And then?\n\nWhat?")]
    long = [*talk, ("assistant", "It ends."), ("user", "x")]
    starts: list[list[tuple[str, str]]] = [[]]
    if "system" in roles:
        starts.append([("system", "Be brief.")])
    return [[*start, *rest] for start, rest in product(starts, (talk[:1], talk, long))]


def _rendered(
    tokenizer: "PreTrainedTokenizerBase", turns: Sequence[tuple[str, str]], *, answer: bool = True
) -> str:
    chat = [{"role": role, "content": content} for role, content in turns]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=answer)
    return str(text)


def _without_bos(tokenizer: "PreTrainedTokenizerBase", pieces: ChatPieces) -> ChatPieces:
    bos = tokenizer.bos_token
    if bos and tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id:
        return pieces._replace(start=pieces.start.removeprefix(str(bos)))
    return pieces


def _common_start(one: str, other: str) -> str:
    length = next(
        (n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b),
        min(len(one), len(other)),
    )
    return one[:length]


def _common_end(one: str, other: str) -> str:
    return _common_start(one[::-1], other[::-1])[::-1]


def _literal(text: str) -> str:
    """Return text as a Go template prints it."""
    return text.replace("{{", '{{ "{{" }}')
