"""Files of prompts: handed in, waited for, collected, and what failed handed in again."""

import pytest

from tasks.errors import UserError
from tasks.generate.openai_batch import OpenAIBatch
from tasks.generate.stage import GenerateParams, run
from tasks.models.decoding import Decoding
from tasks.rows.records import GENERATE, Response, read_rows
from tests.loopback_teacher import LoopbackTeacher, answer_to, publish_address, write_prompts

RESPONSES = GENERATE / "main" / "responses.jsonl"
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
    with pytest.raises(UserError, match="1 s are over and batch-0"):
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
