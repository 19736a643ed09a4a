"""Conversations as text: what a model reads, and which parts of it a student learns.

The tokenizer's chat template renders a conversation. What is learnt of it is what a model would
have generated: the text between the prompt of an assistant's turn, rendered as for generation, and
the token that ends the turn. So the prompt has to be the beginning of the whole, to the letter, and
the turn has to contain all that the row says. Many templates break this: they leave reasoning out,
change earlier turns, or want the arguments of calls as text. Then other forms are tried (`_forms`),
among them the training template that TRL has for it. A conversation that no form renders is an
error: nothing is learnt that was not shown to be right.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby, product
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from cohobate.data.messages import Conversation, Message, prompt_text, tool_names, tools_of
from cohobate.data.reasoning import inline
from cohobate.data.records import Row
from cohobate.data.trl_templates import training_template
from cohobate.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_NO_REASONING = "\n"  # between think tags
_RENDERERS = 8  # tokenizers whose renderers are kept


class Rendered(NamedTuple):
    """A conversation as text, in pieces: read, learnt, read, learnt, and so on."""

    pieces: tuple[str, ...]
    """The last piece is learnt; a conversation without an answer is one piece that is read."""
    closed: bool = True
    """Whether the last piece ends with the token by which the template ends a turn."""


@dataclass(frozen=True, slots=True)
class _Form:
    """One way to give conversations to a chat template."""

    template: str | None = None
    """None: the tokenizer's own."""
    reasoning: Literal["field", "text", "always"] = "field"
    """Where a learnt turn has its reasoning: in the field for it, or in the text between think
    tags, which `always` are there (several templates open them in the prompt)."""
    calls_as_text: bool = False
    """Whether the arguments of calls are text, and a turn of calls alone has no content."""


_OWN = _Form()


class ConversationRenderer:
    """Renders conversations with the chat template of one tokenizer."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        if not tokenizer.chat_template:
            raise UserError(
                "a prompt is a conversation, and the tokenizer has no chat template",
                fix="use an instruct model, or give the prompts as text",
            )
        self._tokenizer = tokenizer
        self._form = _OWN
        # as params.yaml asks (cohobate/models/chat_templates.py)
        self._drops_system = "rejectattr('role', 'equalto', 'system')" in str(
            tokenizer.chat_template
        )
        self._special = _any_of(special_tokens(tokenizer))
        # the first special tokens behind which there are only others: some templates put one more
        # behind the last turn of all
        one = self._special.pattern
        self._end = re.compile(rf"(?:{one})*(?P<last>{one})(?=\s*(?:(?:{one})\s*)*\Z)")

    def prompts(self, conversations: Sequence[Conversation]) -> list[str]:
        """Return conversations as text, each up to where the assistant's next turn begins.

        Raises:
            UserError: the template refuses a conversation.
        """
        try:
            return self._texts(conversations, _OWN, generate=True)
        except UserError:
            with suppress(UserError):
                return self._texts(conversations, _Form(calls_as_text=True), generate=True)
            raise

    def render_all(self, rows: Sequence[Row]) -> list[Rendered]:
        """Return rows whose prompts are conversations as text, in pieces.

        Raises:
            UserError: the template refuses a conversation, or no form of it can be learnt.
        """
        rendered: list[Rendered | None] = [None] * len(rows)
        with suppress(UserError):  # raised again below, if no other form renders the row either
            rendered = self._render(rows, self._form)
        return [one or self._try_forms(row) for row, one in zip(rows, rendered, strict=True)]

    def _try_forms(self, row: Row) -> Rendered:
        """Render a row in the first form in which it can be learnt: tried first from then on."""
        refusal = None
        for form in _forms(self._tokenizer):
            try:
                rendered = self._render([row], form)[0]
            except UserError as error:
                refusal = error if form == _OWN else refusal
                continue
            if rendered is not None:
                self._form = form
                return rendered
        raise refusal or UserError(
            f"the answer cannot be learnt as the chat template renders it: {_why_not(row)}",
            where=f"row {row.id}",
            fix="drop what it does not render, such as generate.reasoning=drop, or use the chat "
            "template of a model that was trained on such conversations",
        )

    def _render(self, rows: Sequence[Row], form: _Form) -> list[Rendered | None]:
        """Render rows in one form; None where it cannot be learnt."""
        learnt = [_learnt_turns(row) for row in rows]
        whole = [_whole(row, turns, form) for row, turns in zip(rows, learnt, strict=True)]
        pairs = list(zip(whole, learnt, strict=True))
        # as for generation up to each learnt turn, and to the end of each
        starts = self._texts([w[:t] for w, turns in pairs for t in turns], form, generate=True)
        stops = self._texts([w[: t + 1] for w, turns in pairs for t in turns], form)
        questions = iter(self.prompts([w for w, turns in pairs if not turns]))
        rendered: list[Rendered | None] = []
        first = 0
        for row, turns in zip(rows, learnt, strict=True):
            last = first + len(turns)
            if turns:
                learnt_turns = [_turn(row, n) for n in turns]
                rendered.append(self._cut(learnt_turns, starts[first:last], stops[first:last]))
            else:
                rendered.append(Rendered((next(questions),)))
            first = last
        return rendered

    def _cut(
        self, turns: Sequence[Message], starts: Sequence[str], stops: Sequence[str]
    ) -> Rendered | None:
        """Cut a conversation into pieces; None where it cannot be learnt.

        Args:
            turns: the learnt turns.
            starts: the conversation up to each of them, as for generation.
            stops: the conversation to the end of each; the last is the whole.
        """
        pieces: list[str] = []
        position, closed = 0, True
        for turn, start, stop in zip(turns, starts, stops, strict=True):
            end, closed = self._end_of_turn(stop, len(start), stops[-1])
            piece = stops[-1][len(start) : end]
            if not (end and stop.startswith(start) and _contains(piece, turn)):
                return None
            pieces += [start[position:], piece]
            position = end
        return Rendered(tuple(pieces), closed)

    def _end_of_turn(self, text: str, start: int, whole: str) -> tuple[int, bool]:
        """Return where the turn that ends `text` ends, and whether a special token ends it.

        0: nowhere up to which it is the beginning of the whole conversation.
        """
        ending = self._end.search(text, start)
        end = ending.start("last") if ending else len(text.rstrip())
        if not whole.startswith(text[:end]):
            return 0, False
        if not ending:
            return end, False
        # where others follow, the turn may end with another token than at the end of all; a line
        # break behind it belongs to what follows: no model generates it
        token = self._special.match(whole, end)
        return (token.end(), True) if token else (0, False)

    def _texts(
        self, conversations: Iterable[Conversation], form: _Form, generate: bool = False
    ) -> list[str]:
        texts: list[str] = []
        # one call for neighbours with the same tools
        for _, group in groupby(conversations, key=lambda turns: turns[0].tools):
            turns = list(group)
            chats = [[_as_chat(turn, form) for turn in conversation] for conversation in turns]
            group_texts = self._apply(chats, form.template, tools_of(turns[0]), generate)
            for conversation, text in zip(turns, group_texts, strict=True):
                self._check_kept(conversation, text)
            texts += group_texts
        return texts

    def _check_kept(self, conversation: Conversation, text: str) -> None:
        """Refuse a template that leaves a system turn or the tools out in silence."""
        first = conversation[0]
        lost = []
        if first.role == "system" and not self._drops_system and first.content.strip() not in text:
            lost.append(("the system turn", "teachers.<name>.template: {system: into_first_user}"))
        turns_text = prompt_text(conversation)  # a turn can have a tool's name in its text
        if any(text.count(name) <= turns_text.count(name) for name in tool_names(conversation)):
            lost.append(("the tools", "use a model whose chat template takes tools"))
        for part, fix in lost:
            raise UserError(
                f"the chat template leaves {part} out",
                where=f"the conversation that begins {first.content[:60]!r}",
                fix=f"{fix}; or leave such rows out",
            )

    def _apply(
        self, chats: list[list[dict[str, Any]]], template: str | None, tools: Any, generate: bool
    ) -> list[str]:
        try:
            texts: list[str] = self._tokenizer.apply_chat_template(
                chats,
                chat_template=template,
                tools=tools,
                add_generation_prompt=generate,
                tokenize=False,
            )
        except Exception as error:  # a template may raise any exception
            if len(chats) > 1:  # which conversation?
                return [text for c in chats for text in self._apply([c], template, tools, generate)]
            raise _refusal(chats[0], error) from error
        return texts


def renderer_of(tokenizer: "PreTrainedTokenizerBase") -> ConversationRenderer:
    """Return the renderer of a tokenizer with its present chat template.

    Raises:
        UserError: it has none.
    """
    return _renderer_of(tokenizer, str(tokenizer.chat_template))


@lru_cache(_RENDERERS)
def _renderer_of(tokenizer: "PreTrainedTokenizerBase", _template: str) -> ConversationRenderer:
    return ConversationRenderer(tokenizer)


def end_of_turn(tokenizer: "PreTrainedTokenizerBase") -> str | None:
    """Return the special token by which the chat template ends an assistant's turn, if any."""
    row = Row(id="probe", prompt=(Message(role="user", content="A question"),), answer="An answer")
    rendered = renderer_of(tokenizer).render_all([row])[0]
    last = rendered.pieces[-1]
    ending = [token for token in special_tokens(tokenizer) if last.endswith(token)]
    return max(ending, key=len) if rendered.closed else None


def special_tokens(tokenizer: "PreTrainedTokenizerBase") -> frozenset[str]:
    """Return the special tokens of a tokenizer, with those that have no name such as `eos`."""
    added = tokenizer.added_tokens_decoder.values()
    return frozenset({*tokenizer.all_special_tokens, *(t.content for t in added if t.special)})


def _any_of(tokens: Iterable[str]) -> re.Pattern[str]:
    longest_first = sorted(tokens, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


def _forms(tokenizer: "PreTrainedTokenizerBase") -> Iterator[_Form]:
    """Yield the ways to render a conversation, in the order in which they are tried."""
    reasoning: tuple[Any, ...] = ("field", "text", "always")
    options = list(product((False, True), reasoning))
    yield from (_Form(None, where, as_text) for as_text, where in options)
    with suppress(Exception):  # TRL has none for it, or the template raises on TRL's probe
        if template := training_template(tokenizer):
            yield from [_Form(template, where, as_text) for as_text, where in options]


def _as_chat(turn: Message, form: _Form) -> dict[str, Any]:
    chat = turn.as_chat()
    if form.calls_as_text and turn.tool_calls:
        chat["tool_calls"] = [call.as_request() for call in turn.tool_calls]
        chat["content"] = turn.content or None
    return chat


def _prompt(row: Row) -> Conversation:
    assert not isinstance(row.full_prompt, str)
    return row.full_prompt


def _turn(row: Row, number: int) -> Message:
    """Return a turn of a row's conversation; its answer is the last."""
    prompt = _prompt(row)
    if number < len(prompt):
        return prompt[number]
    calls, text = row.tool_calls, row.answer or ""
    return Message(role="assistant", content=text, reasoning=row.reasoning, tool_calls=calls)


def _learnt_turns(row: Row) -> list[int]:
    """Return the positions of the turns that are learnt, the answer's last."""
    if row.answer is None:
        return []
    prompt = _prompt(row)
    # what an assistant says unasked has no prompt
    first = next((n for n, turn in enumerate(prompt) if turn.role == "user"), len(prompt))
    earlier = range(first, len(prompt)) if row.learn == "all" else range(0)
    turns = [n for n in earlier if prompt[n].role == "assistant" and prompt[n].learn is not False]
    return [*turns, len(prompt)]


def _whole(row: Row, learnt: Sequence[int], form: _Form) -> Conversation:
    """Return the conversation of a row with its answer, if it has one, in some form."""
    turns = [*_prompt(row), *([] if row.answer is None else [_turn(row, len(_prompt(row)))])]
    if form.reasoning != "field":
        for n in learnt:
            turns[n] = _with_inline_reasoning(turns[n], always=form.reasoning == "always")
    return tuple(turns)


def _with_inline_reasoning(turn: Message, always: bool) -> Message:
    reasoning = turn.reasoning or (_NO_REASONING if always else "")
    content = inline(turn.content, reasoning)
    return turn.model_copy(update={"content": content, "reasoning": None})


def _contains(piece: str, turn: Message) -> bool:
    """Return whether a rendered turn contains the text, the reasoning and the calls of a turn."""
    calls = [call.name for call in turn.tool_calls or ()]
    parts = [turn.content.strip(), (turn.reasoning or "").strip(), *calls]
    return all(part in piece for part in parts)


def _why_not(row: Row) -> str:
    if row.reasoning:
        return "it leaves the reasoning out, or its prompt ends the reasoning"
    if row.tool_calls:
        return "it leaves the calls of tools out"
    return "it changes an assistant's turn, or what precedes it, when the conversation goes on"


def _refusal(chat: list[dict[str, Any]], error: Exception) -> UserError:
    roles = ", ".join(str(turn["role"]) for turn in chat)
    return UserError(
        f"the chat template refuses a conversation of the turns {roles}: {error}",
        where=f"the conversation that begins {str(chat[0]['content'])[:60]!r}",
        fix="teachers.<name>.template: {system: into_first_user} or {turns: alternate}; of a "
        "student of its own tokenizer, init_student.template; or leave such rows out",
    )
