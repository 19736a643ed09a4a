"""Replies that call tools: answers where the prompt offers them, kept in ledger and rows."""

import json

import pytest

from cohobate.backends.ledger import Ledger, _entries, _line
from cohobate.backends.ledger_storage import LEDGER, FileStorage
from cohobate.backends.openai import OpenAI
from cohobate.backends.prices import likely_tokens, most_tokens
from cohobate.backends.settings import GenerateParams
from cohobate.backends.templates import Conversation, Step
from cohobate.data.messages import Message, ToolCall
from cohobate.data.records import GENERATE, UNLABELLED, Response, Row, read_rows, row_id, write_rows
from cohobate.errors import UserError
from cohobate.generation.requests import Answer, Decoding
from tasks.generate.stage import run
from tests.loopback_teacher import LoopbackTeacher, publish_address
from tests.odd_replies import altered

TOOLS = '[{"type":"function","function":{"name":"weather","parameters":{"type":"object"}}}]'
PROMPT = (
    Message(role="system", content="Be brief.", tools=TOOLS),
    Message(role="user", content="How is it in Oslo?"),
)
ARGUMENTS = '{"city":  "Oslo"}'
OSLO = ToolCall(name="weather", arguments=ARGUMENTS, id="call_1")
SENT = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "weather", "arguments": ARGUMENTS},
}
CALLS = {"finish_reason": "tool_calls"}


def called(**function):
    call = SENT | {"function": SENT["function"] | function}
    return altered(choice=CALLS, message={"content": None, "tool_calls": [call]})


def stream(good):
    parts = [
        {"tool_calls": [{"index": 0, "id": "call_1", "function": {"name": "weather"}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": ARGUMENTS[:5]}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": ARGUMENTS[5:]}}]},
    ]
    events = [{"choices": [{"index": 0, "delta": delta}]} for delta in parts]
    events.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]})
    body = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"
    return 200, {"content-type": "text/event-stream"}, body.encode()


@pytest.fixture
def rows_of(project):
    """The rows, and the number of requests, of a service that replies so."""

    def rows(odd, prompt=PROMPT, **more):
        write_rows(UNLABELLED, [Row(id=row_id(prompt), prompt=prompt)])
        backend = OpenAI(type="openai", backoff=0.05)
        params = GenerateParams(backend=backend, decoding=Decoding(max_tokens=8), **more)
        with LoopbackTeacher(odd=odd) as service:
            publish_address(service.url)
            for _ in range(2):
                run("main", params)
            return [*read_rows(GENERATE / "main/responses.jsonl", Response)], service

    return rows


@pytest.mark.parametrize("odd", [called(), stream])
def test_a_call_of_an_offered_tool_is_the_answer(rows_of, odd):
    (row,), service = rows_of(odd)
    assert (row.answer, row.tool_calls, row.finish) == ("", (OSLO,), "stop")
    assert service.sent == 1  # the second run has it from the ledger
    assert service.bodies[0]["tools"] == json.loads(TOOLS)
    (line,) = (json.loads(line) for path in LEDGER.iterdir() for line in path.open())
    call = {"name": "weather", "arguments": ARGUMENTS, "id": "call_1"}
    assert line["tool_calls"] == [call]


def test_the_field_of_older_services_is_read(rows_of):
    old = {"content": "Let me see.", "function_call": SENT["function"]}
    (row,), _ = rows_of(altered(choice={"finish_reason": "function_call"}, message=old))
    assert (row.answer, row.tool_calls) == (
        "Let me see.",
        (ToolCall(name="weather", arguments=ARGUMENTS),),
    )


def test_a_call_where_no_tool_is_offered_is_refused(rows_of):
    rows, service = rows_of(called(), "How is it in Oslo?", unanswered=1.0)
    assert rows == [] and service.sent == 1
    failed = (GENERATE / "main/failed.jsonl").read_text()
    assert "calls a tool instead of answering" in failed


def test_arguments_that_are_no_object_are_bought_twice_at_most(rows_of):
    rows, service = rows_of(called(arguments='{"city": '), unanswered=1.0)
    assert rows == [] and service.sent == 2
    assert "malformed call of a tool" in (GENERATE / "main/failed.jsonl").read_text()


def test_a_call_that_is_cut_off_is_bought_once_and_names_the_limit(rows_of):
    message = {"content": None, "tool_calls": [SENT | {"function": {"name": "weather"}}]}
    message["tool_calls"][0]["function"]["arguments"] = '{"city": '
    with pytest.raises(UserError, match="within a call of a tool: raise") as stopped:
        rows_of(altered(choice={"finish_reason": "length"}, message=message))
    assert "--set generate.decoding.max_tokens=" in stopped.value.fix


def test_the_line_of_an_answer_without_calls_is_what_it_was(tmp_path):
    plain, call = Answer("x", "length", None), Answer("", "stop", None, tool_calls=(OSLO,))
    (entry,) = _entries("k", plain)
    assert "tool_calls" not in entry
    lines = [_line(entry | {"left": 0}) for a in (plain, call) for entry in _entries(a.text, a)]
    (tmp_path / "l.jsonl").write_bytes(b"".join(lines))
    with Ledger(FileStorage(tmp_path / "l.jsonl")) as ledger:
        assert [ledger["x"], ledger[""]] == [plain, call]


def test_a_step_with_turns_of_its_own_keeps_the_tools_and_the_calls():
    turns = (
        *PROMPT,
        Message(role="assistant", content="", tool_calls=(OSLO,)),
        Message(role="tool", content="rain", tool_call_id="call_1"),
        Message(role="tool", content="wind", tool_call_id="call_2"),
    )
    step = Step(messages=(Message(role="system", content="Think."), "turns"))
    prompt = step.prompt_for(Conversation(Row(id=row_id(turns), prompt=turns), 0), ())
    assert [turn.role for turn in prompt] == ["system", "user", "assistant", "tool", "tool"]
    assert prompt[0].content == "Think.\n\nBe brief." and prompt[0].tools == TOOLS
    assert prompt[1:] == turns[1:]


def test_the_earlier_turns_of_a_row_stay_learnt(rows_of, project):
    turns = (*PROMPT, Message(role="assistant", content="Rain."), Message(role="user", content="?"))
    write_rows(UNLABELLED, [Row(id=row_id(turns), prompt=turns, learn="all")])
    params = GenerateParams(backend=OpenAI(type="openai"), decoding=Decoding(max_tokens=8))
    with LoopbackTeacher() as service:
        publish_address(service.url)
        run("main", params)
    (row,) = read_rows(GENERATE / "main/responses.jsonl", Response)
    assert row.learn == "all" and row.prompt == turns


def test_tools_and_calls_count_in_what_a_prompt_can_cost():
    bare = (PROMPT[0].model_copy(update={"tools": None}), PROMPT[1])
    assert most_tokens(PROMPT) == most_tokens(bare) + len(TOOLS)
    assert likely_tokens(PROMPT) > likely_tokens(bare)


def test_arguments_of_the_chat_template_reach_the_service(rows_of, project):
    write_rows(UNLABELLED, [Row(id=row_id("x"), prompt="x")])
    extra = {"chat_template_kwargs": {"enable_thinking": False}, "seed": None, "top_p": None}
    backend = OpenAI(type="openai", extra=extra)
    params = GenerateParams(backend=backend, decoding=Decoding(max_tokens=8, temperature=0.7))
    with LoopbackTeacher() as service:
        publish_address(service.url)
        run("main", params)
    (body,) = service.bodies
    assert body["chat_template_kwargs"] == {"enable_thinking": False}
    assert body["temperature"] == 0.7 and not {"seed", "top_p"} & body.keys()
