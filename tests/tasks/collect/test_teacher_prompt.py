"""Prompts that only the teacher reads: a column of any format, and a template."""

import json
from typing import Any

import pytest
from pydantic import ValidationError

from cohobate.data.messages import Message
from tasks.collect.row_form import RowForm
from tasks.collect.source_records import SourceRecord, UnusableRecordError

USER = {"role": "user", "content": "Why?"}
X = (Message(role="user", content="x"),)
ASKED, BRIEF = Message(role="user", content="Why?"), Message(role="system", content="Be brief.")
TURNS = [BRIEF.as_chat(), USER]


def own_prompt(columns: dict[str, Any], **form: Any) -> Any:
    ((_, row),) = RowForm.model_validate(form).rows(SourceRecord(1, columns))
    return row.teacher_prompt


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"prompt": "a", "teacher_prompt": "x a"}, "x a"),
        ({"prompt": "a", "completion": "b", "teacher_prompt": "x a"}, "x a"),
        ({"text": "a", "teacher_prompt": "x a"}, "x a"),
        ({"text": "a", "teacher_prompt": None}, None),
        ({"text": "a", "teacher_prompt": " "}, None),
        ({"text": "a", "teacher_prompt": "a"}, None),
        # a text beside a conversation is a turn
        ({"messages": [USER], "teacher_prompt": "x"}, X),
        ({"question": "q", "answer": "b", "teacher_prompt": "x"}, X),
        ({"messages": [USER], "teacher_prompt": TURNS}, (BRIEF, ASKED)),
        ({"messages": [USER], "teacher_prompt": json.dumps(TURNS)}, (BRIEF, ASKED)),
    ],
)  # fmt: skip
def test_a_column_of_that_name_is_read_in_every_format(columns, expected) -> None:
    assert own_prompt(columns) == expected


def test_tools_go_with_it() -> None:
    tools = '[{"name": "f"}]'
    (turn,) = own_prompt({"messages": [USER], "tools": tools, "teacher_prompt": "x"})
    assert turn.tools == tools
    first, second = own_prompt(
        {"messages": [USER], "tools": tools}, teacher_prompt={"system": "Be brief."}
    )
    assert (first.tools, second.tools) == (tools, None)


def test_a_template_makes_it() -> None:
    template = {"prompt": "Q: {q}\nA:"}
    columns = {"q": "Why?", "answer": "so", "solution": "because"}
    form = {"template": template, "teacher_prompt": {"text": "{prompt}\nSee: {solution}"}}
    assert own_prompt(columns, **form) == "Q: Why?\nA:\nSee: because"
    ((_, row),) = RowForm.model_validate(form).rows(SourceRecord(1, columns))
    assert (row.prompt, row.answer) == ("Q: Why?\nA:", " so")


def test_a_template_of_conversations() -> None:
    chat = {"messages": [USER, {"role": "assistant", "content": "So."}, USER]}
    turns = own_prompt(chat, teacher_prompt={"text": "{prompt} Think.", "system": "Be brief."})
    assert [turn.content for turn in turns] == ["Be brief.", "Why?", "So.", "Why? Think."]
    given = {"messages": [BRIEF.as_chat(), USER]}
    assert own_prompt(given, teacher_prompt={"system": "Long."})[0].content == "Long.\n\nBe brief."


@pytest.mark.parametrize(
    ("columns", "form", "reason"),
    [
        ({"text": "a"}, {"teacher_prompt": {"text": "{prompt} {b}"}}, "no column 'b'"),
        ({"text": "a", "b": None}, {"teacher_prompt": {"text": "{prompt} {b}"}}, "is empty: 'b'"),
        ({"text": "a"}, {"teacher_prompt": {"system": "x"}}, "the prompt is a text"),
        ({"text": "a", "teacher_prompt": {"x": 1}}, {}, "holds an object where text is needed"),
        (
            {"text": "a", "teacher_prompt": [USER, {"role": "assistant", "content": "b"}]},
            {},
            "ends with an assistant's turn",
        ),
    ],
)
def test_records_that_have_none_are_set_aside_with_the_reason(columns, form, reason) -> None:
    with pytest.raises(UnusableRecordError, match=reason):
        own_prompt(columns, **form)


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ({"teacher_prompt": {"text": "{prompt}"}}, "would read the student's prompt"),
        ({"teacher_prompt": {"text": "hello"}}, "name the prompt or a column"),
        ({"text": {"characters": 99}, "teacher_prompt": {"text": "{prompt}!"}}, "raw text"),
    ],
)
def test_mistakes_in_params_are_explained(form, message) -> None:
    with pytest.raises(ValidationError, match=message):
        RowForm.model_validate(form)
