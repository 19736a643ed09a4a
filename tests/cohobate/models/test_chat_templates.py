"""Chat templates: settings become part of the template, and turns that it refuses are named."""

import pytest

from cohobate.data.messages import Message
from cohobate.data.tokenized import prompt_ids
from cohobate.errors import UserError
from cohobate.models import checkpoints
from cohobate.models.chat_templates import (
    TemplateSettings,
    check_turns,
    default_template,
    refused_turns,
    turn_kinds,
)
from cohobate.params import validated
from tests.tiny_models import CHAT_TEMPLATE, make_tokenizer

STRICT = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('No system turn, please') }}"
    "{% endif %}{% for m in messages %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Turns must alternate, the user first') }}{% endif %}"
    "<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
THINKING = CHAT_TEMPLATE.replace(
    "<|assistant|>{% endif %}",
    "<|assistant|>{% if enable_thinking is defined and enable_thinking is false %}"
    "<think>\n\n</think>\n\n{% endif %}{% endif %}",
)
DATED = "{{ strftime_now('%d %b %Y') }}" + CHAT_TEMPLATE


def rendered(template, settings, *turns):
    tokenizer = make_tokenizer(chat_template=template)
    validated(TemplateSettings, settings, "template").write_into(tokenizer)
    messages = tuple(Message(role=role, content=text) for role, text in turns)
    return tokenizer.decode(prompt_ids(tokenizer, [messages])[0])


@pytest.mark.parametrize(
    ("settings", "turns", "expected"),
    [
        (
            {"system": "into_first_user"},
            [("system", "Be brief."), ("user", "Hi")],
            "<|user|>Be brief.\n\nHi<|end|><|assistant|>",
        ),
        (
            {"system": "into_first_user"},
            [("system", "Be brief.")],
            "<|user|>Be brief.<|end|><|assistant|>",
        ),
        (
            {"system": "drop"},
            [("system", "Be brief."), ("user", "Hi")],
            "<|user|>Hi<|end|><|assistant|>",
        ),
        (
            {"turns": "alternate"},
            [("assistant", "Hello"), ("user", "Hi"), ("user", "there")],
            "<|user|>Hi\n\nthere<|end|><|assistant|>",
        ),
        (
            {"system": "into_first_user", "turns": "alternate"},
            [("system", "S"), ("assistant", "A"), ("user", "U"), ("assistant", "B"), ("user", "V")],
            "<|user|>S<|end|><|assistant|>A<|end|><|user|>U<|end|><|assistant|>B<|end|>"
            "<|user|>V<|end|><|assistant|>",
        ),
    ],
)
def test_turns_that_a_template_refuses_are_folded_or_dropped(settings, turns, expected):
    assert rendered(STRICT, settings, *turns) == expected
    with pytest.raises(UserError, match="the chat template refuses a conversation of the turns"):
        rendered(STRICT, {}, *turns)


def test_a_system_turn_stays_where_the_turns_alternate():
    turns = [("system", "S"), ("assistant", "A"), ("user", "U")]
    text = rendered(CHAT_TEMPLATE, {"turns": "alternate"}, *turns)
    assert text == "<|system|>S<|end|><|user|>U<|end|><|assistant|>"


def test_an_argument_of_the_template_is_set_and_kept_with_the_checkpoint(
    make_model, tokenizer, tmp_path
):
    assert "<think>" not in rendered(THINKING, {}, ("user", "Hi"))
    text = rendered(THINKING, {"enable_thinking": False}, ("user", "Hi"))
    assert text.endswith("<|assistant|><think>\n\n</think>\n\n")
    tokenizer.chat_template = THINKING
    TemplateSettings(enable_thinking=False).write_into(tokenizer)
    checkpoints.save(make_model(tokenizer), tokenizer, tmp_path / "model", {})
    kept = default_template(checkpoints.load_tokenizer(tmp_path / "model"))
    assert kept == "{%- set enable_thinking = false -%}" + THINKING


def test_a_date_is_pinned():
    assert rendered(DATED, {"date": "26 Jul 2024"}, ("user", "Hi")).startswith(
        "26 Jul 2024<|user|>"
    )


def test_a_switch_that_is_not_set_is_noted_and_an_unknown_argument_refused():
    (note,) = TemplateSettings().check("the teacher main", THINKING, "teachers.main.template")
    assert "teachers.main.template: {enable_thinking: false}" in note
    assert not TemplateSettings(enable_thinking=True).check("it", THINKING, "here")
    (note,) = TemplateSettings().check("it", DATED, "here")
    assert "today's date" in note and "{date: 26 Jul 2024}" in note
    with pytest.raises(
        UserError, match="reads no 'enable_thinkin'; did you mean 'enable_thinking'"
    ):
        TemplateSettings(enable_thinkin=False).check("it", THINKING, "here")
    with pytest.raises(UserError, match="has no chat template"):
        TemplateSettings(system="drop").check("it", "", "here")


def test_what_a_template_refuses_is_found_by_trying_it():
    def render(tokenizer):
        return lambda turns: tokenizer.apply_chat_template(turns, tokenize=False)

    assert refused_turns(render(make_tokenizer())) == []
    strict = refused_turns(render(make_tokenizer(chat_template=STRICT)))
    assert strict == [
        "a system turn",
        "an assistant turn before the first user turn",
        "two turns of one role in a row",
        "a system turn after the first",
    ]
    assert turn_kinds(["system", "user", "assistant", "user"]) == {"a system turn"}
    turns = [Message(role="system", content="S"), Message(role="user", content="U")]
    with pytest.raises(UserError, match="the teacher main refuses a system turn") as refused:
        check_turns([("r1", turns)], strict, "the teacher main", "teachers.main")
    assert "row r1" in refused.value.where
    assert "teachers.main.template: {system: into_first_user}" in refused.value.fix
    check_turns([("r1", turns[1:])], strict, "the teacher main", "teachers.main")
