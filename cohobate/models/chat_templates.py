"""Chat templates: settings written into the template itself, and the turns that one refuses.

What a template is set to (`enable_thinking: false`, a system turn folded into the user's) becomes
the first lines of its own text. So generation, capture, training, evaluation and whoever uses the
exported student render a conversation alike, and no stage hands settings on.
"""

import json
import re
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ConfigDict, Field

from cohobate.data.messages import Message
from cohobate.errors import UserError
from cohobate.params import Section, nearest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Argument = bool | int | float | str
_FOLDED = """
{%- if messages and messages[0]['role'] == 'system' -%}
{%- if messages | length > 1 and messages[1]['role'] == 'user' -%}
{%- set messages = [{'role': 'user', 'content': messages[0]['content'] ~ '\\n\\n' ~ \
messages[1]['content']}] + messages[2:] -%}
{%- else -%}
{%- set messages = [{'role': 'user', 'content': messages[0]['content']}] + messages[1:] -%}
{%- endif -%}{%- endif -%}
"""
_NO_SYSTEM = """
{%- set messages = messages | rejectattr('role', 'equalto', 'system') | list -%}
"""
_ALTERNATING = """
{%- set joined = namespace(turns=[]) -%}
{%- for turn in messages -%}
{%- if joined.turns and joined.turns[-1]['role'] == turn['role'] -%}
{%- set joined.turns = joined.turns[:-1] + [{'role': turn['role'], 'content': \
joined.turns[-1]['content'] ~ '\\n\\n' ~ turn['content']}] -%}
{%- elif turn['role'] != 'assistant' or \
(joined.turns | rejectattr('role', 'equalto', 'system') | list) -%}
{%- set joined.turns = joined.turns + [turn] -%}
{%- endif -%}{%- endfor -%}
{%- set messages = joined.turns -%}
"""
_SWITCHES = re.compile(r"\b(enable_thinking|thinking|reasoning_effort|thinking_budget)\b")
"""Arguments by which templates turn a model's thinking on and off."""
FOLD = "template: {system: into_first_user}, or {system: drop}"
ALTERNATE = "template: {turns: alternate} drops what precedes the user and joins like turns"


class TemplateSettings(Section):
    """Settings of a chat template; any other key is an argument that the template itself reads."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Argument] = Field(init=False)

    system: Literal["keep", "into_first_user", "drop"] = "keep"
    """What becomes of a system turn, which some templates refuse: it stays, opens the first user
    turn, or is left out."""
    turns: Literal["keep", "alternate"] = "keep"
    """alternate: what an assistant says before the first user turn is left out, and turns of one
    role in a row become one; some templates take no others."""
    date: str = ""
    """What a template that asks for today's date is given, in its own words (`26 Jul 2024`)."""

    @property
    def arguments(self) -> dict[str, Argument]:
        """What the template itself reads, such as `enable_thinking`."""
        return dict(self.__pydantic_extra__ or {})

    @property
    def lines(self) -> str:
        """The lines that a template begins with."""
        parts = [f"{{%- set {name} = {json.dumps(v)} -%}}" for name, v in self.arguments.items()]
        if self.date:
            parts.append(f"{{%- macro strftime_now(form) -%}}{self.date}{{%- endmacro -%}}")
        parts += {"into_first_user": [_FOLDED], "drop": [_NO_SYSTEM]}.get(self.system, [])
        parts += [_ALTERNATING] if self.turns == "alternate" else []
        return "".join(line.strip("\n") for line in parts)

    def write_into(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        """Let a tokenizer's chat template begin with the settings."""
        template: Any = tokenizer.chat_template
        if not self.lines or not template:
            return
        if isinstance(template, dict):
            tokenizer.chat_template = {n: self.lines + text for n, text in template.items()}
        else:
            tokenizer.chat_template = self.lines + template

    def check(self, name: str, template: str, where: str) -> list[str]:
        """Refuse settings that a template does not read; return notes on what it does unset.

        Args:
            name: whose template it is.
            template: its text, without the settings.
            where: the section of params.yaml that holds the settings.

        Raises:
            UserError: no template, or an argument that it never reads.
        """
        if self != TemplateSettings() and not template:
            raise UserError(f"{name} has no chat template", where=where, fix="leave template out")
        words = set(re.findall(r"[A-Za-z_]\w*", template))
        keys = words | TemplateSettings.model_fields.keys()
        for argument in sorted(self.arguments.keys() - words):
            raise UserError(
                f"the chat template of {name} reads no {argument!r}{nearest(argument, keys)}",
                where=where,
                fix="beside system, turns and date a key must occur in the template",
            )
        notes = []
        if (switch := _SWITCHES.search(template)) and not _SWITCHES.search(
            " ".join(self.arguments)
        ):
            example = "low" if switch[1] == "reasoning_effort" else "false"
            notes.append(
                f"{name}: its chat template has a switch for thinking that is not set: "
                f"{where}: {{{switch[1]}: {example}}}, or true"
            )
        if "strftime_now" in template and not self.date and "date_string" not in self.arguments:
            notes.append(
                f"{name}: its chat template writes today's date into each prompt, so that the same "
                f"inputs give other outputs tomorrow: {where}: {{date: 26 Jul 2024}}"
            )
        return notes


PLAIN = TemplateSettings()
"""A template as it came."""


def default_template(tokenizer: Any) -> str:
    """Return a tokenizer's chat template, of several the default one; empty: it has none."""
    template = tokenizer.chat_template or ""
    return template.get("default", "") if isinstance(template, dict) else template


def turn_kinds(roles: Sequence[str]) -> set[str]:
    """Return what of a conversation's turns a template may refuse, in words."""
    kinds = {"a system turn"} if roles[:1] == ["system"] else set()
    rest = roles[1:] if kinds else roles
    if rest[:1] == ["assistant"]:
        kinds.add("an assistant turn before the first user turn")
    if "system" in rest:
        kinds.add("a system turn after the first")
    if any(a == b for a, b in pairwise(rest)):
        kinds.add("two turns of one role in a row")
    return kinds


_PROBES = (
    ["system", "user"],
    ["assistant", "user"],
    ["user", "user"],
    ["user", "assistant", "system", "user"],
)


def refused_turns(render: Callable[[list[dict[str, str]]], str]) -> list[str]:
    """Return what kinds of turns a template refuses; a template is tried on each."""
    refused = []
    for roles in _PROBES:
        try:
            render([{"role": role, "content": f"turn {n}"} for n, role in enumerate(roles)])
        except Exception:  # a template raises what it pleases
            refused += sorted(turn_kinds(roles))
    return refused


def check_turns(
    prompts: Iterable[tuple[str, Sequence[Message]]], refused: Sequence[str], model: str, where: str
) -> None:
    """Refuse a conversation with turns that a template refuses.

    Args:
        prompts: ids and conversations.
        refused: what `refused_turns` returns.
        model: name of the model that the template belongs to.
        where: the section of params.yaml that holds the template's settings.

    Raises:
        UserError: names the first such row.
    """
    for row, turns in prompts:
        if both := sorted(turn_kinds([turn.role for turn in turns]) & set(refused)):
            setting = FOLD if both[0] == "a system turn" else ALTERNATE
            raise UserError(
                f"the chat template of {model} refuses {both[0]}",
                where=f"row {row}, as are all of its kind",
                fix=f"{where}.{setting}; or leave such rows out of the source",
            )
