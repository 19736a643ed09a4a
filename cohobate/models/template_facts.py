"""What a chat template does with conversations, found by rendering a few."""

from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from cohobate.data.messages import Message, ToolCall, tool_names
from cohobate.data.records import Row
from cohobate.data.rendering import end_of_turn, renderer_of
from cohobate.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_USER = Message(role="user", content="A question")
_TOOLS = """[{"type": "function", "function": {"name": "probe", "description": "a probe",
"parameters": {"type": "object", "properties": {}}}}]"""
_CALL = ToolCall(name="probe", arguments="{}", id="call_0")
_PROBES = {
    "earlier turns": Row(
        id="probe",
        prompt=(_USER, Message(role="assistant", content="An answer"), _USER),
        answer="Another",
        learn="all",
    ),
    "reasoning": Row(id="probe", prompt=(_USER,), answer="An answer", reasoning="A thought"),
    "tools": Row(id="probe", prompt=(_USER.model_copy(update={"tools": _TOOLS}),), answer="A"),
    "calls of tools": Row(
        id="probe",
        prompt=(_USER.model_copy(update={"tools": _TOOLS}),),
        answer="",
        tool_calls=(_CALL,),
    ),
}
_FIXES = {
    "earlier turns": "cohobate run --set collect.learn=last",
    "reasoning": "cohobate run --set collect.reasoning=drop --set generate.reasoning=drop",
    "tools": "use a model whose chat template takes tools, or leave such rows out",
    "calls of tools": "use a model whose chat template takes tools, or leave such rows out",
}


class TemplateFacts(NamedTuple):
    """What a chat template does with conversations."""

    end_of_turn: str | None
    """The special token that ends an assistant's turn."""
    begins_with_bos: bool
    """Whether a conversation begins with the token with which the tokenizer begins a text."""
    refused: list[str]
    """Content of rows that it does not render so that it can be learnt, as `content_kinds` names
    it."""

    def notes(self, eos: str, bos: str | None) -> list[str]:
        """Return what of this can surprise, in words."""
        notes = []
        if self.end_of_turn is None:
            notes.append(f"no special token ends a turn: {eos} is put behind each answer")
        elif self.end_of_turn != eos:
            notes.append(f"turns end with {self.end_of_turn}, text with {eos}: either ends answers")
        if not self.begins_with_bos:
            notes.append(f"conversations begin without {bos}, text with it")
        return notes


def template_facts(tokenizer: "PreTrainedTokenizerBase") -> TemplateFacts:
    """Return what the chat template of a tokenizer does; it must have one."""
    renderer = renderer_of(tokenizer)
    first = tokenizer("a")["input_ids"][0]
    bos = tokenizer.bos_token if first == tokenizer.bos_token_id else ""
    with suppress(UserError):
        bos = "" if renderer.prompts([(_USER,)])[0].startswith(bos) else bos
    end, refused = None, []
    with suppress(UserError):
        end = end_of_turn(tokenizer)
    for kind, row in _PROBES.items():
        # TRL's templates, which are tried last, take seconds to import
        if "tools" in kind and "tool" not in str(tokenizer.chat_template):
            refused.append(kind)
            continue
        try:
            renderer.render_all([row])
        except UserError:
            refused.append(kind)
    return TemplateFacts(end, not bos, refused)


def content_kinds(row: Row, *, prompt_only: bool = False) -> set[str]:
    """Return what of a row, or of its prompt only, a chat template may not render."""
    if isinstance(row.prompt, str):
        return set()
    kinds = {"tools"} if tool_names(row.prompt) else set()
    if prompt_only:
        return kinds
    turns = row.prompt if row.learn == "all" else ()
    kinds |= {"earlier turns"} if any(turn.role == "assistant" for turn in turns) else set()
    if row.tool_calls or any(turn.tool_calls for turn in turns):
        kinds.add("calls of tools")
    return kinds | ({"reasoning"} if row.reasoning else set())


def check_content(row: Row, refused: Sequence[str], model: str, *, prompt_only: bool) -> None:
    """Refuse a row with content that a chat template does not render.

    Args:
        row: a row of any kind.
        refused: `TemplateFacts.refused`.
        model: name of the model that the template belongs to.
        prompt_only: the model reads the prompt alone, to answer it.

    Raises:
        UserError: names the row.
    """
    if kinds := sorted(content_kinds(row, prompt_only=prompt_only) & set(refused)):
        raise UserError(
            f"the chat template of {model} does not render {kinds[0]}, or not in every turn alike",
            where=f"row {row.id}, as are all of its kind",
            fix=_FIXES[kinds[0]],
        )
