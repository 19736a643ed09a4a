"""What preflight finds out about a chat template before anything is spent."""

import pytest

from cohobate.data.messages import Message, ToolCall
from cohobate.data.records import Row
from cohobate.errors import UserError
from cohobate.models.template_facts import check_content, content_kinds, template_facts
from tests.cohobate.data.test_rendering import TEMPLATES, TOOLS, tokenizer_of

TOOL_KINDS = ["tools", "calls of tools"]


@pytest.mark.parametrize(
    ("name", "end", "refused"),
    [
        ("qwen3", "<|im_end|>", []),
        ("qwen2_5", "<|im_end|>", []),
        ("gemma3", "<end_of_turn>", TOOL_KINDS),
        ("smollm2", "<|im_end|>", TOOL_KINDS),
        ("no markers", None, TOOL_KINDS),
    ],
)
def test_facts_of_templates(name: str, end: str | None, refused: list[str]) -> None:
    facts = template_facts(tokenizer_of(TEMPLATES[name]))
    assert (facts.end_of_turn, facts.refused) == (end, refused)


def test_what_can_surprise_is_said() -> None:
    tokenizer = tokenizer_of(TEMPLATES["gemma3"])
    (note,) = template_facts(tokenizer).notes("<eos>", "<bos>")
    assert "<end_of_turn>" in note and "<eos>" in note
    assert template_facts(tokenizer).notes("<end_of_turn>", "<bos>") == []


def test_content_that_a_template_leaves_out_is_refused_by_row() -> None:
    question = (Message(role="user", content="The weather?", tools=TOOLS),)
    call = ToolCall(name="weather", arguments="{}")
    row = Row(id="the-row", prompt=question, answer="", tool_calls=(call,), reasoning="Hm.")
    assert content_kinds(row) == {"tools", "calls of tools", "reasoning"}
    assert content_kinds(row, prompt_only=True) == {"tools"}
    with pytest.raises(UserError, match=r"(?s)the student does not render tools.*the-row"):
        check_content(row, ["tools"], "the student", prompt_only=False)
    check_content(row, ["calls of tools"], "the teacher main", prompt_only=True)
