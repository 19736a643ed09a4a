"""Templates: what is asked, how replies are taken apart, and the rows that come of them."""

import json
import re

import pytest

from cohobate.backends import templates
from cohobate.backends.openai import OpenAI
from cohobate.backends.settings import GenerateParams
from cohobate.backends.templates import FOLDER, Conversation, RowText, template_of
from cohobate.data.examples import row_key
from cohobate.data.messages import Message, prompt_text
from cohobate.data.records import GENERATE, UNLABELLED, Response, Row, read_rows, row_id, write_rows
from cohobate.errors import UserError
from cohobate.generation.requests import Answer, Decoding
from tasks.generate.stage import run
from tests.loopback_teacher import LoopbackTeacher, publish_address

PROMPTS = [f"How many legs have {n} horses?" for n in range(1, 5)]


def reply_to(turns):
    """What a willing model says: a list, a trace, or a line, as it is asked."""
    prompt = turns[-1]["content"]
    if 'starts with "Answer:"' in prompt:
        horses = int(re.search(r"have (\d+)", prompt)[1])
        return f"{horses} times four.\n\nAnswer: {4 * horses}"
    if count := re.search(r"(three|four|eight) (?:new|different)", prompt):
        lines = {"three": 3, "four": 4, "eight": 8}[count[1]]
        return "\n".join(f"- {hash_of(prompt)} {n}" for n in range(lines)) + "\nThat is all."
    return f"re: {prompt}"


def hash_of(text):
    return row_id(text)[:6]


@pytest.fixture
def responses(project, monkeypatch):
    write_rows(UNLABELLED, [Row(id=row_id(p), prompt=p) for p in PROMPTS])
    requests = []

    def good(service, body, path):
        turns = body["messages"]
        requests.append(turns)
        message = {"role": "assistant", "content": reply_to(turns)}
        return json.dumps({"choices": [{"finish_reason": "stop", "message": message}]}).encode()

    monkeypatch.setattr(LoopbackTeacher, "good", good)

    def of(template, **more):
        how = Decoding(max_tokens=99, temperature=more.pop("temperature", 0))
        with LoopbackTeacher() as service:
            publish_address(service.url)
            run("main", GenerateParams(backend=OpenAI(type="openai"), template=template,
                                       decoding=how, **more))  # fmt: skip
        return list(read_rows(GENERATE / "main" / "responses.jsonl", Response)), requests

    return of


def test_every_template_here_can_be_read_and_says_whose_idea_it_is():
    for path in FOLDER.glob("*.yaml"):
        assert template_of(path.stem).about
    with pytest.raises(UserError, match="did you mean 'rationale'"):
        template_of("rationales")


def test_answer_only_asks_the_prompt_itself(responses):
    rows, requests = responses("answer")
    assert sorted(t[0]["content"] for t in requests) == sorted(PROMPTS)
    assert [(r.prompt, r.answer, r.target) for r in rows] == [
        (p, f"re: {p}", None) for p in PROMPTS
    ]


def test_a_rationale_comes_before_the_answer(responses):
    rows, _ = responses("rationale")
    assert [r.prompt for r in rows] == PROMPTS
    assert rows[1].answer == " 2 times four.\nAnswer: 8"


def test_answer_and_rationale_are_two_targets_of_one_reply(responses):
    rows, requests = responses("step-by-step")
    assert len(requests) == 4 and len(rows) == 8
    first, second = rows[:2]
    assert (first.full_prompt, first.answer) == (f"[label] {PROMPTS[0]}", " 4")
    assert (second.full_prompt, second.answer) == (f"[rationale] {PROMPTS[0]}", " 1 times four.")
    assert (first.target, second.target) == (None, "rationale")
    assert first.id == second.id == row_id(PROMPTS[0]) and first.prompt == PROMPTS[0]
    assert row_key(first) != row_key(second)


def test_reasoning_goes_with_the_answer_and_not_with_the_rationale():
    reply = Answer("So 4.\nAnswer: 4", "stop", None, reasoning="Hm.")
    conversation = Conversation(
        Row(id=row_id("one"), prompt="one"), 0, {"rationale": "So."}, answer=reply
    )
    rationale = RowText(answer="{{ rationale }}", target="rationale")
    row = rationale.response(conversation, "main", "keep")
    assert (row.answer, row.reasoning) == ("So.", None)


def test_a_dialogue_is_one_row_whose_turns_are_all_learnt(responses):
    rows, requests = responses("dialogue")
    sent = [[turn["content"] for turn in turns] for turns in requests if len(turns) == 7]
    assert sorted(sent) == sorted([turn.content for turn in row.prompt] for row in rows)
    for row, prompt in zip(rows, PROMPTS, strict=True):
        asked, replies = row.prompt[::2], row.prompt[1::2]
        assert [turn.content for turn in replies] == [f"re: {turn.content}" for turn in asked[:-1]]
        assert asked[-1].content == prompt and row.answer == f"re: {prompt}"
        # a prompt of its own has an id of its own
        assert row.learn == "all" and row.id == row_id(row.prompt)
        assert len({turn.content for turn in asked[:-1]}) == 3


def test_turns_that_no_row_has_are_not_learnt():
    with pytest.raises(ValueError, match="learn: all is of the assistant's turns in messages"):
        RowText(learn="all")
    with pytest.raises(ValueError, match="either a prompt or messages"):
        RowText(prompt="a", messages=("turns",))


def test_a_prefix_stands_before_the_last_user_turn(responses):
    turns = (Message(role="system", content="Be brief."), Message(role="user", content=PROMPTS[0]))
    write_rows(UNLABELLED, [Row(id=row_id(turns), prompt=turns)])
    rows, _ = responses("step-by-step")
    assert [turn.content for turn in rows[1].full_prompt] == [
        "Be brief.",
        f"[rationale] {PROMPTS[0]}",
    ]


def test_reasoning_has_a_name_in_templates(responses, monkeypatch, tmp_path):
    text = "about: a test\nsteps: [{name: first}, {name: second, text: '{{ reasoning }}+'}]\n"
    text += "rows: [{answer: '{{ first_reasoning }}, {{ reasoning }}: {{ second }}'}]\n"
    (tmp_path / "thoughts.yaml").write_text(text)
    monkeypatch.setattr(templates, "FOLDER", tmp_path)
    monkeypatch.setitem(
        globals(), "reply_to", lambda turns: f"<think>{turns[-1]['content'][-2:]}</think>x"
    )
    rows, _ = responses("thoughts")
    assert [row.answer for row in rows] == ["s?, ?+: x"] * 4
    assert [row.reasoning for row in rows] == ["?+"] * 4


def test_a_reply_without_the_form_is_set_aside(responses, monkeypatch):
    monkeypatch.setitem(globals(), "reply_to", lambda turns: "Four, I think")
    rows, _ = responses("rationale")
    failed = [json.loads(line) for line in (GENERATE / "main" / "failed.jsonl").open()]
    assert rows == [] and [f["reply"] for f in failed] == ["Four, I think"] * 4
    assert "pattern" in failed[0]["reason"]


def test_explanations_are_asked_for_in_many_ways_and_the_student_hears_which(responses):
    rows, requests = responses("explanation", samples=4, temperature=1.0)
    systems = {turns[0]["content"] for turns in requests}
    assert 2 <= len(systems) <= 5 and all(t[0]["role"] == "system" for t in requests)
    for row in rows:
        assert row.prompt[0].content in systems and row.prompt[1].content in PROMPTS
        assert row.id == row_id(row.prompt[1].content)  # the same question, whoever asks
    again, _ = responses("explanation", samples=4, temperature=1.0)
    assert [r.prompt for r in again] == [r.prompt for r in rows]


def test_a_draft_is_criticised_and_revised(responses):
    rows, requests = responses("critique")
    assert len(requests) == 12
    roles = [[t["role"] for t in turns] for turns in requests]
    assert roles.count(["user"]) == 4 and roles.count(["user", "assistant", "user"]) == 8
    last = next(t for t in requests if "A reviewer says" in t[-1]["content"])
    assert last[1]["content"] == f"re: {last[0]['content']}" and "What is" not in rows[0].answer
    assert [r.prompt for r in rows] == PROMPTS and "A reviewer says" in rows[0].answer


def test_new_tasks_are_made_up_from_seeds(responses):
    rows, requests = responses("self-instruct")
    assert len(rows) == 12 == len({r.prompt for r in rows})
    seeds = [t[0]["content"] for t in requests if "three new tasks" in t[0]["content"]]
    assert len(seeds) == 4 and all(text.count("horses?") >= 4 for text in seeds)
    assert all(r.answer == f"re: {r.prompt}" and r.id == row_id(r.prompt) for r in rows)


def test_a_passage_and_its_exercise_are_raw_text(responses):
    rows, requests = responses("textbook")
    assert len(requests) == 8 and len({row.id for row in rows}) == 4
    for row, prompt in zip(rows, PROMPTS, strict=True):
        assert row.is_raw_text and row.id == row_id("", row.answer)
        assert prompt in row.answer and row.answer.count("\nExercise: ") == 1
        assert row.answer.endswith(("?", "."))


def test_topics_become_tasks_without_any_data(responses):
    UNLABELLED.unlink()
    rows, _ = responses("topic-tree", rows=2)
    assert len(rows) == 2 * 8 * 4
    assert all(r.answer == f"re: {prompt_text(r.prompt)}" for r in rows)


def test_conversations_keep_their_turns(responses):
    turns = (Message(role="system", content="Be brief."), Message(role="user", content=PROMPTS[0]))
    write_rows(UNLABELLED, [Row(id=row_id(turns), prompt=turns)])
    rows, requests = responses("critique")
    assert [t["role"] for t in requests[0]] == ["system", "user"]
    assert rows[0].prompt == turns and rows[0].id == row_id(turns)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("about: x\nrows: [{answer: '{{ verdict }}'}]", "'verdict' is undefined"),
        ("about: x\nsteps: [{pattern: '('}]", "not a regular expression"),
        ("about: x\nsteps: [{}, {}]", "two steps have the same name"),
        ("about: x\nrows: [{target: rationale}]", "the first is the prompt's answer"),
        ("about: x\nrows: [{}, {}]", "the first is the prompt's answer"),
        ("about: x\nstep: []", "did you mean 'steps'"),
        ("about: x\nrows: [{answer: '{{ prompt.__class__.mro() }}'}]", "unsafe|undefined"),
    ],
)
def test_a_template_that_makes_no_sense_is_refused(responses, monkeypatch, tmp_path, text, message):
    (tmp_path / "mine.yaml").write_text(text)
    monkeypatch.setattr(templates, "FOLDER", tmp_path)
    with pytest.raises(UserError, match=message):
        responses("mine")
