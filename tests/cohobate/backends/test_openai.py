"""A teacher behind an endpoint: every fault gets its verdict, nothing is bought twice or leaks."""

import json
import shutil
import time

import pytest

from cohobate.backends.ledger_storage import LEDGER
from cohobate.backends.openai import OpenAI
from cohobate.backends.prices import Price
from cohobate.backends.settings import GenerateParams
from cohobate.data.messages import Message
from cohobate.data.records import GENERATE, UNLABELLED, Response, Row, read_rows, write_rows
from cohobate.errors import UserError
from cohobate.generation.requests import Decoding
from tasks.generate.stage import run
from tests.loopback_teacher import (
    FAULTS,
    KEY,
    LoopbackTeacher,
    answer_to,
    publish_address,
    write_prompts,
)

RESPONSES = GENERATE / "main" / "responses.jsonl"
STOPPING = {"429 long": "asks to wait 86400 s", "quota": "quota", "401": "refuses the API key"}
QUICK = {"type": "openai", "backoff": 0.05}
SLOW = ("slow-loris", "timeout")


def params(rows=None, **backend):
    how = backend.pop("decoding", Decoding(max_tokens=8))
    return GenerateParams(backend=OpenAI(**(QUICK | backend)), decoding=how, rows=rows)


def texts():
    return {r.prompt: r.answer for r in read_rows(RESPONSES, Response)}


def ledger_text():
    return "".join(path.read_text() for path in LEDGER.glob("*"))


@pytest.fixture
def prompts(project):
    return write_prompts(50)


@pytest.fixture
def clean(prompts):
    """What a service that never fails leads to."""
    with LoopbackTeacher() as service:
        publish_address(service.url)
        run("main", params())
        content = RESPONSES.read_bytes()
        assert service.sent == 50
    shutil.rmtree(LEDGER)
    RESPONSES.unlink()
    return content


@pytest.mark.parametrize("fault", [f for f in FAULTS if f not in STOPPING])
def test_a_passing_fault_is_outlived_and_changes_nothing(fault, clean):
    start = time.monotonic()
    share = 0.15 if fault == "429 date" else 0.4  # each costs a second
    with LoopbackTeacher(fault, share=share, times=1) as service:
        publish_address(service.url)
        run("main", params(request_seconds=1 if fault in SLOW else 20))
        assert service.struck >= 5 and service.sent == 50 + service.struck
        assert max(service.answered.values()) == 1
    assert RESPONSES.read_bytes() == clean
    assert time.monotonic() - start < 30


@pytest.mark.parametrize(("fault", "verdict"), STOPPING.items())
def test_what_waiting_cannot_fix_stops_at_the_first_call(fault, verdict, prompts):
    with LoopbackTeacher(fault) as service:
        publish_address(service.url)
        with pytest.raises(UserError, match=verdict) as stopped:
            run("main", params())
        assert service.sent == 1
    assert stopped.value.fix and ledger_text() == "" and not RESPONSES.exists()


@pytest.mark.parametrize("fault", ["500", "timeout", "empty"])
def test_a_service_that_is_down_is_given_up_and_nothing_kept(fault, prompts):
    with LoopbackTeacher(fault) as service:
        publish_address(service.url)
        start = time.monotonic()
        with pytest.raises(UserError, match="5 prompts in a row got no answer"):
            run("main", params(attempts=2, request_seconds=0.2))
        assert service.sent == 10 and time.monotonic() - start < 20
    assert "answer" not in ledger_text()


def test_a_run_ends_at_its_deadline_and_keeps_what_it_has(prompts, clean):
    with LoopbackTeacher("timeout", share=0.3, times=1) as service:
        publish_address(service.url)
        start = time.monotonic()
        with pytest.raises(UserError, match="limit of 1 s is reached"):
            run("main", params(request_seconds=20, run_seconds=1))
        assert time.monotonic() - start < 10  # the service would have taken 30 s
        before = service.sent
        run("main", params(request_seconds=1))
        assert max(service.answered.values()) == 1 and service.sent > before
    assert RESPONSES.read_bytes() == clean


def test_requests_in_flight_grow_from_one_and_shrink_under_pressure(prompts):
    with LoopbackTeacher(seconds=0.1) as service:
        publish_address(service.url)
        run("main", params(limits={"at_once": 8}))
        assert service.most_in_flight == 8
    shutil.rmtree(LEDGER)
    with LoopbackTeacher("429 seconds", share=0.5, times=1, seconds=0.02) as service:
        publish_address(service.url)
        run("main", params(limits={"at_once": 64}))
        assert service.most_in_flight < 16


def test_a_rate_is_kept(project):
    write_prompts(15)
    with LoopbackTeacher() as service:
        publish_address(service.url)
        start = time.monotonic()
        run("main", params(limits={"requests_per_minute": 1200}))
        assert time.monotonic() - start >= 14 * 0.05
        start = time.monotonic()
        run("main", params(limits={"tokens_per_minute": 60_000}, logprobs=True))
        assert time.monotonic() - start >= 14 * (8 + 10) / 1000  # answer and prompt, at least


def test_the_cap_holds_over_restarts(prompts):
    price = {"input": 1000.0, "output": 2000.0}  # 0.02 USD an answer, at most 0.052
    with LoopbackTeacher(seconds=0.005) as service:
        publish_address(service.url)
        for _ in range(3):
            with pytest.raises(UserError, match=r"cap is reached: 0\.\d+ of 0\.5000 USD") as stop:
                run("main", params(price=price, cap=0.5))
        assert 20 <= len(service.answered) <= 25
        assert f"{50 - len(service.answered)} prompts have no answer" in stop.value.what
        run("main", params(price=price, cap=5))
        assert max(service.answered.values()) == 1 and len(texts()) == 50


def test_money_for_replies_without_an_answer_counts(project):
    write_prompts(4)
    with LoopbackTeacher("empty") as service:
        publish_address(service.url)
        for _ in range(2):
            with pytest.raises(UserError, match="4 prompts were not answered"):
                run("main", params(price={"input": 1000, "output": 2000}, attempts=3))
    entries = [json.loads(line) for line in ledger_text().splitlines()]
    assert entries and all("key" not in entry for entry in entries)
    paid = sum(entry["cost"] for entry in entries)
    assert paid == pytest.approx(0.02 * service.struck / 2, abs=0.02)


def test_a_prompt_that_is_refused_is_listed_and_can_be_allowed_for(project, monkeypatch):
    write_prompts(10)
    real = LoopbackTeacher.good

    def filtered(service, request, path):
        reply = json.loads(real(service, request, path))
        if "3?" in request["messages"][0]["content"]:
            reply["choices"][0]["finish_reason"] = "content_filter"
        return json.dumps(reply).encode()

    monkeypatch.setattr(LoopbackTeacher, "good", filtered)
    with LoopbackTeacher() as service:
        publish_address(service.url)
        with pytest.raises(UserError, match="1 prompts were not answered; the first: th"):
            run("main", params())
        run("main", params().model_copy(update={"unanswered": 0.1}))
        assert service.sent == 10  # what was refused is remembered
    failed = json.loads((GENERATE / "main" / "failed.jsonl").read_text())
    assert failed["reason"] == "the service filtered the answer" and len(texts()) == 9


def test_the_key_is_sent_and_never_shown(prompts, monkeypatch):
    monkeypatch.setenv("TEACHER_KEY", KEY)
    with LoopbackTeacher("401", share=0.3) as service:
        publish_address(service.url, key="TEACHER_KEY")
        with pytest.raises(UserError) as stopped:
            run("main", params())
        assert {h["authorization"] for h in service.headers} == {f"Bearer {KEY}"}
        assert KEY not in str(stopped.value) and "***" in str(stopped.value)
        assert "TEACHER_KEY" in stopped.value.fix
    assert KEY not in ledger_text()
    monkeypatch.delenv("TEACHER_KEY")
    with pytest.raises(UserError, match="TEACHER_KEY is not set"):
        run("main", params())


def test_an_address_with_a_query_is_a_deployment_of_azure(project, monkeypatch):
    monkeypatch.setenv("TEACHER_KEY", KEY)
    write_prompts(1)
    with LoopbackTeacher() as service:
        address = service.url.replace("/v1", "/openai/deployments/mine?api-version=2024-10-21")
        publish_address(address, key="TEACHER_KEY")
        run("main", params())
        (path,) = service.paths
        assert path == "/openai/deployments/mine/chat/completions?api-version=2024-10-21"
        assert service.headers[0]["api-key"] == KEY
    with LoopbackTeacher() as service:
        publish_address(service.url, key="TEACHER_KEY")
        run("main", params())
        assert service.paths == ["/v1/chat/completions"] and "api-key" not in service.headers[0]


def test_log_probabilities_are_kept_where_the_service_gives_them(project):
    write_prompts(3)
    with LoopbackTeacher() as service:
        publish_address(service.url)
        run("main", params(logprobs=True, top_logprobs=1))
        assert all(body["logprobs"] for body in service.bodies)
    assert {r.logprob for r in read_rows(RESPONSES, Response)} == {-0.25}
    entry = json.loads(ledger_text().splitlines()[0])
    assert entry["tokens"][0] == ["answer", -0.25, {"answer": -0.25}]
    assert entry["bought"] == [10, 5, 0.0]


def test_text_is_continued_and_samples_are_drawn_apart(project):
    prompts = write_prompts(3)
    with LoopbackTeacher() as service:
        publish_address(service.url)
        how = Decoding(max_tokens=8, temperature=0.7, top_p=0.9)
        sampled = params(api="completions", decoding=how, extra={"user": "tests"})
        run("main", sampled.model_copy(update={"samples": 2}))
        assert len({body["seed"] for body in service.bodies}) == 6
        settings = {(b["temperature"], b["top_p"], b["user"]) for b in service.bodies}
        assert settings == {(0.7, 0.9, "tests")}
        assert service.bodies[0]["prompt"] in prompts
        chat = Row(id="0" * 16, prompt=(Message(role="user", content="hi"),))
        write_rows(UNLABELLED, [chat])
        with pytest.raises(UserError, match="api must be chat"):
            run("main", params(api="completions"))
        run("main", params())
        assert texts() == {chat.prompt: answer_to("hi")}


def test_prices_and_caps_make_sense_together():
    assert Price(input=2, output=8).of(1_000_000, 500_000, 0.5) == pytest.approx(3.0)
    with pytest.raises(ValueError, match="a cap needs the price"):
        OpenAI(type="openai", cap=1)


def test_a_backend_that_does_not_fit_the_teacher_is_refused(prompts):
    publish_address("http://127.0.0.1:9/v1")
    with pytest.raises(UserError, match="behind an endpoint"):
        run("main", GenerateParams())
