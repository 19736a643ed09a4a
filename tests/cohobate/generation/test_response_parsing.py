"""Calls of tools that a local model generates are read as its chat template writes them."""

from pathlib import Path

import pytest
import trl

from cohobate.data.messages import Message, ToolCall
from cohobate.generation.decoding import to_answer
from cohobate.generation.requests import Completion, Request
from cohobate.models.chat_templates import TemplateSettings
from tests.tiny_models import SPECIAL

TEMPLATES = Path(trl.__file__).parent / "chat_templates"
TOOLS = (
    '[{"type": "function", "function": {"name": "weather", "description": "of a city", '
    '"parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}}]'
)
PROMPT = (Message(role="user", content="How is it in Oslo?", tools=TOOLS),)
OSLO = (ToolCall(name="weather", arguments='{"city": "Oslo"}'),)
QWEN = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
LLAMA = '{"name": "weather", "parameters": {"city": "Oslo"}}'


@pytest.fixture
def answer_of(make_tokenizer):
    def answer(family, text, prompt=PROMPT, settings=None, finish="stop"):
        end = {"qwen3": "<|im_end|>", "llama3_1": "<|eot_id|>"}.get(family, "<|end|>")
        marks = ["<|im_start|>", "<|start_header_id|>", "<|end_header_id|>"]
        template = (TEMPLATES / f"{family}.jinja").read_text()
        tokenizer = make_tokenizer(
            special=[*SPECIAL, end, *marks], vocabulary=320, eos_token=end, chat_template=template
        )
        (settings or TemplateSettings()).write_into(tokenizer)
        head = {"qwen3": "<|im_start|>assistant\n"}.get(
            family, "<|start_header_id|>assistant<|end_header_id|>\n\n"
        )
        ids = [*tokenizer.encode(text), *([tokenizer.eos_token_id] if finish == "stop" else [])]
        request = Request.of(prompt, tokenizer.encode(f"How is it?{head}"), "0")
        result = to_answer(tokenizer, Completion(ids, finish, -0.5, []), request)
        assert tokenizer.response_template is None  # it would be saved with the student
        return result

    return answer


@pytest.mark.parametrize(("family", "text"), [("qwen3", QWEN), ("llama3_1", LLAMA)])
def test_calls_are_read_as_the_template_writes_them(answer_of, family, text):
    answer = answer_of(family, text)
    assert (answer.text, answer.tool_calls, answer.finish) == ("", OSLO, "stop")
    assert answer.logprob == -0.5


def test_text_and_reasoning_stand_beside_the_calls(answer_of):
    answer = answer_of("qwen3", f"<think>\nHm.\n</think>\n\nLet me see.\n{QWEN}")
    assert (answer.text, answer.reasoning, answer.tool_calls) == ("Let me see.", "Hm.", OSLO)
    assert answer.full_text == f"Let me see.\n{QWEN}"


def test_settings_of_the_template_do_not_hide_whose_it_is(answer_of):
    settings = TemplateSettings(enable_thinking=False)
    assert answer_of("qwen3", QWEN, settings=settings).tool_calls == OSLO


@pytest.mark.parametrize(
    ("family", "text", "prompt", "finish"),
    [
        ("qwen3", QWEN, "How is it in Oslo?", "stop"),  # no tool is offered
        ("qwen3", QWEN, PROMPT, "length"),
        ("qwen3", '<tool_call>\n{"name": "weather", "argum\n</tool_call>', PROMPT, "stop"),
        ("gemma3", QWEN, PROMPT, "stop"),  # a template of which TRL knows no calls
        ("qwen3", "It rains.", PROMPT, "stop"),
    ],
)
def test_other_text_stays_text(answer_of, family, text, prompt, finish):
    answer = answer_of(family, text, prompt, finish=finish)
    assert (answer.text, answer.tool_calls) == (text, None)
