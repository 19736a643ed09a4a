"""Files of prompts: handed in, waited for, collected, and what failed handed in again."""

import json
import shutil

import pytest

from cohobate.backends.ledger_storage import LEDGER
from cohobate.backends.openai_batch import OpenAIBatch
from cohobate.backends.settings import GenerateParams
from cohobate.data.records import GENERATE, REPORTS, Response, read_rows
from cohobate.errors import UserError
from cohobate.generation.requests import Decoding
from tasks.generate.stage import run
from tests.loopback_teacher import LoopbackTeacher, answer_to, publish_address, write_prompts

RESPONSES = GENERATE / "main" / "responses.jsonl"
SPENT = REPORTS / "spent" / "main.json"
PRICE = {"input": 1000.0, "output": 2000.0}  # 0.01 USD an answer at half the price


def params(**backend):
    quick = {"type": "openai-batch", "poll_seconds": 0.01}
    return GenerateParams(backend=OpenAIBatch(**(quick | backend)), decoding=Decoding(max_tokens=8))


@pytest.fixture
def service(project):
    write_prompts(30)
    with LoopbackTeacher(share=0.0) as service:
        publish_address(service.url)
        yield service


def answered():
    return {r.prompt: r.answer for r in read_rows(RESPONSES, Response)}


def test_files_are_answered_and_what_failed_is_handed_in_again(service):
    service.share, service.times = 0.4, 1
    run("main", params(file_rows=16))
    assert answered() == {p: answer_to(p) for p in service.answered}
    assert len(service.batches) == 3 and max(service.answered.values()) == 1
    assert 30 < service.sent < 60


@pytest.mark.parametrize("fate", ["expired", "cancelled"])
def test_what_an_ended_batch_holds_is_kept(service, fate):
    service.share, service.times, service.batch_fate = 0.5, 1, fate
    run("main", params())
    assert len(answered()) == 30 and max(service.answered.values()) == 1


def test_a_batch_that_was_left_behind_is_collected_not_bought_again(service):
    service.polls_until_done = 10**6
    with pytest.raises(UserError, match="limit of 1 s is reached, and batch-0"):
        run("main", params(run_seconds=1))
    assert not RESPONSES.exists()
    service.polls_until_done = 1
    run("main", params())
    assert len(service.batches) == 1 and len(answered()) == 30


def test_what_always_fails_is_given_up_and_not_kept(service):
    service.share = 0.2
    with pytest.raises(UserError, match=r"prompts were not answered; the first: 500: .*try again"):
        run("main", params(attempts=2))
    assert len(service.batches) == 2 and set(service.tries.values()) == {1, 2}


def test_the_cap_bounds_what_is_handed_in(service):
    for _ in range(2):
        with pytest.raises(UserError, match="cap is reached"):
            run("main", params(price=PRICE, cap=0.2))
    assert 0.01 * len(service.answered) <= 0.2 < 0.01 * len(service.answered) + 0.03
    run("main", params(price=PRICE, cap=1))
    assert max(service.answered.values()) == 1 and len(answered()) == 30


def test_a_refused_file_is_an_error(service):
    service.batch_fate = "failed"
    with pytest.raises(UserError, match="refuses the batch batch-0"):
        run("main", params())


def lines_altered(service, alter, *, first=True):
    """Have the service write other lines than it meant to, in its first batch or in all."""
    real = service.finish

    def finish(done):
        real(done)
        if not first or done["id"] == "batch-0":
            name = done["output_file_id"]
            lines = [json.loads(line) for line in service.files[name].splitlines()]
            altered = [new for line in lines for new in alter(line)]
            service.files[name] = "".join(json.dumps(line) + "\n" for line in altered).encode()

    service.finish = finish


@pytest.mark.parametrize(
    "alter",
    [
        lambda line: [line | {"response": None, "error": {"code": "batch_expired"}}],
        lambda line: [line | {"response": None}],
        lambda line: [line | {"response": {"status_code": 200, "body": None}}],
        lambda line: [],
    ],
)
def test_a_line_without_a_reply_is_handed_in_again(service, alter):
    lines_altered(service, alter)
    run("main", params(price=PRICE))
    assert len(answered()) == 30 and set(service.tries.values()) == {2}


def test_a_body_as_text_and_an_answer_that_comes_twice_are_read_and_counted(service):
    def twice(line):
        body = line["response"]["body"]
        return [line, line | {"response": {"status_code": 200, "body": json.dumps(body)}}]

    lines_altered(service, twice)
    run("main", params(price=PRICE))
    assert len(answered()) == 30 and service.sent == 30
    assert json.loads(SPENT.read_text())["after"] == pytest.approx(2 * 30 * 0.01)


def test_a_line_that_speaks_of_the_account_ends_the_run(service):
    used_up = {"error": {"message": "You exceeded it", "code": "insufficient_quota"}}
    reply = {"response": {"status_code": 429, "body": used_up}}
    lines_altered(service, lambda line: [line | (reply if "1" in str(line) else {})], first=False)
    with pytest.raises(UserError, match="quota is used up"):
        run("main", params())
    assert len(service.batches) == 1


def test_what_a_batch_left_behind_refused_is_neither_bought_nor_counted_again(service):
    silent = {"choices": [{"finish_reason": "stop", "message": {"content": ""}}]}
    reply = {"response": {"status_code": 200, "body": silent}}
    lines_altered(service, lambda line: [line | reply], first=False)
    for _ in range(2):
        with pytest.raises(UserError, match="30 prompts were not answered"):
            run("main", params(price=PRICE))
        spent = json.loads(SPENT.read_text())["after"]
        assert len(service.batches) == 2
    run("main", params(price=PRICE).model_copy(update={"unanswered": 1.0}))
    assert json.loads(SPENT.read_text())["after"] == spent


def test_a_batch_whose_files_are_gone_is_passed_over(service):
    run("main", params())
    shutil.rmtree(LEDGER)
    service.files.clear()
    run("main", params())
    assert len(answered()) == 30 and len(service.batches) == 2


def test_a_service_without_batches_is_named(service, monkeypatch):
    page = (200, {"content-type": "text/html"}, b"<html>hello</html>")
    monkeypatch.setattr(service, "batch_api", lambda *_: page)
    with pytest.raises(UserError, match="not an object of the batch API"):
        run("main", params())
