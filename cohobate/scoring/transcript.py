"""A prompt as text for a reader: a judge, or a reward model without a chat template."""

from cohobate.data.messages import Message, Prompt
from cohobate.data.tool_calls import with_calls


def transcript(prompt: Prompt) -> str:
    """Return a prompt as text, its turns under their roles; the text of a single one alone."""
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1 and prompt[0].tools is None:
        return prompt[0].content
    tools = [f"tools: {prompt[0].tools}"] if prompt and prompt[0].tools else []
    return "\n\n".join([*tools, *map(_turn, prompt)])


def _turn(turn: Message) -> str:
    name = f" ({turn.name})" if turn.name else ""
    return f"{turn.role}{name}: {with_calls(turn.content, turn.tool_calls)}"
