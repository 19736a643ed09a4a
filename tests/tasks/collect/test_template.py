import pytest
from pydantic import ValidationError

from cohobate.data.messages import Message
from tasks.collect.row_content import RowContent
from tasks.collect.source_records import MAX_CHARACTERS, UnusableRecordError
from tasks.collect.template import PromptTemplate

TURNS = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]


def test_columns_are_filled_in_and_stay_as_they_are():
    template = PromptTemplate(prompt="{{x}} {context}\nQ: {question}\nA:", answer=" {label}!")
    columns = {"context": "{question} {0}", "question": "Why?", "label": 3, "other": None}
    text = "{x} {question} {0}\nQ: Why?\nA:"
    assert template.render(columns) == RowContent(text, " 3!")


@pytest.mark.parametrize(
    "columns", [{"text": "a"}, {"text": "a", "answer": None}, {"text": "a", "answer": " "}]
)
def test_a_record_without_an_answer_is_unlabelled(columns):
    assert PromptTemplate(prompt="{text}").render(columns) == RowContent("a")


def test_a_chat_template_makes_turns():
    template = PromptTemplate(prompt="{text}", answer="{answer}", chat=True, system="Be brief.")
    turns = (Message(role="system", content="Be brief."), Message(role="user", content="Hello"))
    assert template.render({"text": "Hello", "answer": "Hi"}) == RowContent(turns, "Hi")


def test_a_column_can_hold_a_conversation():
    template, tools = PromptTemplate(prompt="{messages}"), '[{"name": "f"}]'
    hello = Message(role="user", content="Hello")
    assert template.render({"messages": TURNS}) == RowContent((hello,), "Hi")
    assert template.render({"messages": TURNS[:1]}) == RowContent((hello,))
    offered = template.render({"messages": TURNS, "tools": tools}).prompt
    assert offered == (hello.model_copy(update={"tools": tools}),)


def test_a_column_of_tools_that_is_filled_in_is_text():
    template = PromptTemplate(prompt="What are {tools} for?", chat=True)
    (turn,) = template.render({"tools": "hammers"}).prompt
    assert (turn.content, turn.tools) == ("What are hammers for?", None)


@pytest.mark.parametrize("chat", [False, True])
def test_reasoning_in_an_answer_is_kept_apart(chat):
    template = PromptTemplate(prompt="{text}", chat=chat)
    content = template.render({"text": "a", "answer": "<think>hm</think>\n\nb"})
    assert (content.answer, content.reasoning) == ("b", "hm")


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({}, "no column 'text' (there are: )"),
        ({"texts": "a", "b": 1}, "no column 'text' (there are: b, texts)"),
        ({"text": None}, "a column of the prompt is empty"),
        ({"text": " \n"}, "a column of the prompt is empty"),
        ({"text": {"a": 1}}, "column 'text' holds an object where text is needed"),
        ({"text": float("nan")}, "column 'text' holds NaN where text is needed"),
        ({"text": "\ud800"}, "half a surrogate pair, which UTF-8 cannot hold"),
        ({"text": "a", "answer": ["b"]}, "column 'answer' holds a list where text is needed"),
        ({"text": "a" * (MAX_CHARACTERS + 1)}, f"longer than {MAX_CHARACTERS} characters"),
        ({"text": [{"role": "robot", "content": "a"}]}, "turn 1 is by 'robot'"),
        ({"text": [{"role": "user", "content": 3}]}, "'content' of turn 1 is a number"),
        ({"text": [["Hello"]]}, "turn 1 is a list"),
        ({"text": []}, "the conversation does not end with"),
        ({"text": TURNS[1:]}, "the conversation does not end with"),
        ({"text": [{"role": "user", "content": "\udfff"}]}, "half a surrogate pair"),
    ],
)
def test_what_is_no_example_says_why(columns, reason):
    with pytest.raises(UnusableRecordError) as refused:
        PromptTemplate(prompt="{text}").render(columns)
    assert str(refused.value).startswith(reason)


ALPACA = """Below is an instruction.

### Instruction:
{instruction}

### Input:
{input}

### Response:
"""


@pytest.mark.parametrize(
    ("prompt", "without"),
    [
        ("{instruction}\n{input}\nAnswer:", "Do it.\nAnswer:"),
        ("{instruction}\n\n{input}\n\nAnswer:", "Do it.\n\nAnswer:"),
        ("{instruction} {input}\nAnswer:", "Do it.\nAnswer:"),
        ("{instruction}\nInput: {input}\nAnswer:", "Do it.\nAnswer:"),
        ("{input}\n{instruction}\nAnswer:", "Do it.\nAnswer:"),
        ("{instruction}\n{input}", "Do it."),
        (ALPACA, ALPACA.replace("### Input:\n{input}\n\n", "").format(instruction="Do it.")),
    ],
)
@pytest.mark.parametrize("empty", [{"input": ""}, {"input": None}, {"input": " "}, {}], ids=repr)
def test_an_empty_input_leaves_its_line_out_and_keeps_the_row(prompt, without, empty):
    template = PromptTemplate(prompt=prompt, answer="{output}")
    columns = {"instruction": "Do it.", "output": "done"}
    assert template.render(columns | empty) == RowContent(without, "done")
    full = columns | {"input": "a\nb"}
    text = prompt.format(instruction="Do it.", input="a\nb")
    assert template.render(full) == RowContent(text, "done")


def test_only_optional_columns_may_be_empty_and_never_all():
    template = PromptTemplate(prompt="{instruction}\n{input}", optional=("input", "instruction"))
    with pytest.raises(UnusableRecordError, match="a column of the prompt is empty"):
        template.render({"instruction": "", "input": ""})
    with pytest.raises(UnusableRecordError, match="a column of the prompt is empty"):
        PromptTemplate(prompt="Q: {input}\nA:").render({"input": ""})
    with pytest.raises(UnusableRecordError, match="no column 'context'"):
        PromptTemplate(prompt="{instruction}\n{context}").render({"instruction": "Do it."})


@pytest.mark.parametrize("prompt", ["{text!r}", "{text:>10}", "{}", "{text"])
def test_a_malformed_template_is_refused(prompt):
    with pytest.raises(ValidationError):
        PromptTemplate(prompt=prompt)


def test_a_pair_without_its_other_half_is_set_aside_by_name():
    template = PromptTemplate(prompt="{query}", answer="{document}", pairs=True)
    whole = template.render({"query": "a", "document": "b"})
    assert (whole.prompt, whole.answer) == ("a", "b")
    for columns, missing in [
        ({"query": "a"}, "document"),
        ({"query": "a", "document": " "}, "document"),
        ({"query": None, "document": "b"}, "query"),
    ]:
        with pytest.raises(UnusableRecordError, match=f"other half: {missing} is empty"):
            template.render(columns)
