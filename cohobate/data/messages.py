"""Turns of conversations: messages, the tools that they may call, and the calls.

JSON that others wrote (the schemas of tools, the arguments of a call) is kept as text, to the
letter: the order of its keys is part of what a chat template renders.
"""

import json
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict

Role = Literal["system", "user", "assistant", "tool"]


class ToolCall(BaseModel):
    """A call of a tool by an assistant."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    arguments: str
    """A JSON object as text."""
    id: str | None = None

    def as_chat(self) -> dict[str, Any]:
        """Return the call as chat templates read it, with the arguments as an object."""
        call = {"name": self.name, "arguments": json.loads(self.arguments)}
        return {"type": "function", "function": call} | ({"id": self.id} if self.id else {})

    def as_request(self) -> dict[str, Any]:
        """Return the call as OpenAI's chat API reads it, with the arguments as text."""
        call = {"name": self.name, "arguments": self.arguments}
        return {"type": "function", "id": self.id or "call_0", "function": call}


class Message(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    role: Role
    content: str
    reasoning: str | None = None
    """What an assistant wrote before `content`, where it is kept apart."""
    tool_calls: tuple[ToolCall, ...] | None = None
    """Calls by an assistant."""
    tool_call_id: str | None = None
    """The call that a tool's turn answers."""
    name: str | None = None
    """Name of the tool that speaks, or of the participant."""
    tools: str | None = None
    """Tools that may be called in the conversation: a JSON array of schemas as text. On the first
    message, so that they go wherever the prompt goes."""
    learn: Literal[False] | None = None
    """False: this assistant turn is never learnt (OpenAI's `weight: 0`)."""

    def content_key(self) -> dict[str, Any]:
        """Return what identifies the message: all but whether it is learnt."""
        return self.model_dump(exclude_none=True, exclude={"learn"})

    def as_chat(self) -> dict[str, Any]:
        """Return the message as chat templates read it."""
        chat: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.reasoning:
            chat["reasoning_content"] = self.reasoning
        if self.tool_calls:
            chat["tool_calls"] = [call.as_chat() for call in self.tool_calls]
        if self.tool_call_id:
            chat["tool_call_id"] = self.tool_call_id
        if self.name:
            chat["name"] = self.name
        return chat

    def as_request(self) -> dict[str, Any]:
        """Return the message as OpenAI's chat API reads it; reasoning is not sent back."""
        chat = self.as_chat()
        chat.pop("reasoning_content", None)
        if self.tool_calls:
            chat["tool_calls"] = [call.as_request() for call in self.tool_calls]
        return chat


class ImagePrompt(str):
    """A text prompt behind pictures: plain text to all that reads text alone."""

    images: tuple[str, ...]
    """Names of the pictures (cohobate/data/images.py)."""

    def __new__(cls, text: str, images: tuple[str, ...]) -> Self:
        """Return the prompt."""
        prompt = super().__new__(cls, text)
        prompt.images = images
        return prompt

    def __getnewargs__(self) -> tuple[str, tuple[str, ...]]:  # type: ignore[override]
        """Return what `__new__` takes, for copies in other processes."""
        return str(self), self.images

    def __eq__(self, other: object) -> bool:
        """Compare pictures too: the same question about two of them is two prompts."""
        return str.__eq__(self, other) and self.images == images_of(other)  # type: ignore[arg-type]

    def __ne__(self, other: object) -> bool:
        """Say whether text or pictures differ."""
        return not self == other

    def __hash__(self) -> int:
        """Hash text and pictures."""
        return hash((str(self), self.images))


Conversation = tuple[Message, ...]
Prompt = str | Conversation
"""Text to be continued as it stands, or a conversation for the model's chat template."""


def images_of(prompt: object) -> tuple[str, ...]:
    """Return the names of the pictures before a prompt."""
    return prompt.images if isinstance(prompt, ImagePrompt) else ()


def tools_of(prompt: Prompt) -> list[dict[str, Any]] | None:
    """Return the schemas of the tools that a prompt offers; None where it offers none."""
    if isinstance(prompt, str) or not prompt or prompt[0].tools is None:
        return None
    tools: list[dict[str, Any]] = json.loads(prompt[0].tools)
    return tools or None


def tool_names(prompt: Prompt) -> list[str]:
    """Return the names of the tools that a prompt offers."""
    schemas = [tool.get("function", tool) for tool in tools_of(prompt) or ()]
    return [str(schema["name"]) for schema in schemas if "name" in schema]


def prompt_key(prompt: Prompt) -> Any:
    """Return what identifies a prompt, as JSON values: part of ids and of the ledger's keys."""
    return prompt if isinstance(prompt, str) else [turn.content_key() for turn in prompt]


def prompt_text(prompt: Prompt) -> str:
    """Return all that a prompt says, its turns one below the other."""
    return prompt if isinstance(prompt, str) else "\n".join(turn.content for turn in prompt)


def with_prefix(prompt: Prompt, prefix: str | None) -> Prompt:
    """Return a prompt with text before it; in a conversation, before its last user turn."""
    if not prefix:
        return prompt
    if isinstance(prompt, str):
        return prefix + prompt
    # no user turn: the first turn
    last = max((n for n, turn in enumerate(prompt) if turn.role == "user"), default=0)
    turn = prompt[last].model_copy(update={"content": prefix + prompt[last].content})
    return (*prompt[:last], turn, *prompt[last + 1 :])


def body_fields(prompt: Prompt) -> dict[str, Any]:
    """Return `messages`, and `tools` where there are any, of a request to a chat API."""
    if isinstance(prompt, str):
        return {"messages": [{"role": "user", "content": prompt}]}
    fields = {"messages": [turn.as_request() for turn in prompt], "tools": tools_of(prompt)}
    return {name: value for name, value in fields.items() if value}
