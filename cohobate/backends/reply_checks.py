"""Which replies count as an answer, and why others do not."""

from collections.abc import Sequence

from cohobate.backends.api_errors import RefusedError, RetryableError
from cohobate.backends.replies import Choice, tool_calls
from cohobate.data.messages import Prompt, ToolCall, tools_of
from cohobate.data.reasoning import split

_WORDS = 300  # characters of a model's refusal that are shown
_RAISE = "raise generate.decoding.max_tokens"  # read by `api_errors.fix_in_reason`


def limit_in_reasoning(limit: int) -> str:
    """Return why there is no answer where the reasoning reached the limit of the length."""
    return f"the limit of {limit} tokens went into reasoning: {_RAISE}"


def check_choice(
    choice: Choice, prompt: Prompt, limit: int, cost: float, sent: str
) -> Sequence[ToolCall]:
    """Return the calls of tools of a choice, if any; raise where it contains no answer.

    Args:
        choice: the choice of the reply.
        prompt: what was sent: calls count where it offers tools.
        limit: most tokens of an answer.
        cost: US dollars that the reply cost.
        sent: the reply as text.

    Raises:
        RetryableError: another attempt may give an answer.
        RefusedError: another attempt would give none either.
    """
    # first: a filtered or refused reply may have a text all the same
    if choice.finish == "filter":
        raise RefusedError("the service filtered the answer", cost, sent)
    if choice.content.refusal:
        raise RefusedError(f"the model refused: {choice.content.refusal[:_WORDS]}", cost, sent)
    if choice.content.calls and tools_of(prompt):
        return _checked_calls(choice, limit, cost, sent)
    answer, reasoning = split(choice.content.text)
    if answer.strip():
        return ()
    if choice.finish == "tool":
        raise RefusedError("the reply calls a tool instead of answering", cost, sent)
    if choice.finish == "length":
        # sampled anew it would most likely be as long, and is charged for as long
        raise RefusedError(limit_in_reasoning(limit), cost, sent)
    behind = " after its reasoning" if reasoning or choice.content.reasoning else ""
    raise RetryableError(f"the reply contains no text{behind}", cost=cost, reply=sent, whole=True)


def _checked_calls(choice: Choice, limit: int, cost: float, sent: str) -> Sequence[ToolCall]:
    try:
        return tool_calls(choice.content)
    except ValueError as error:
        if choice.finish == "length":
            reason = f"the limit of {limit} tokens was reached within a call of a tool: {_RAISE}"
            raise RefusedError(reason, cost, sent) from None
        reason = f"the reply has a malformed call of a tool: {error}"
        raise RetryableError(reason, cost=cost, reply=sent, whole=True) from None
