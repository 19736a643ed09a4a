"""Odd replies: answers are kept, money is counted, refusals are remembered, and errors say what is.

What the service counts (requests, and what it charges for each) is compared with the ledger.
"""

import json

import pytest

from cohobate.backends.endpoint import identity
from cohobate.backends.ledger import Ledger
from cohobate.backends.ledger_storage import LEDGER, storage_for
from cohobate.backends.openai import OpenAI
from cohobate.backends.openai_batch import OpenAIBatch
from cohobate.backends.prices import Price
from cohobate.backends.requests import TeacherRequest
from cohobate.backends.settings import GenerateParams
from cohobate.data.records import GENERATE, Response, read_rows
from cohobate.errors import UserError
from cohobate.generation.requests import Decoding
from tasks.generate.stage import run
from tests.loopback_teacher import KEY, LoopbackTeacher, answer_to, publish_address, write_prompts
from tests.odd_replies import BUSY, ODD, STOPPING, OddReply, altered, failing

RESPONSES = GENERATE / "main" / "responses.jsonl"
FAILED = GENERATE / "main" / "failed.jsonl"
HOW = Decoding(max_tokens=8)
PRICE = {"input": 1000.0, "output": 2000.0}
USAGE_COST = 0.02  # US dollars: 10 and 5 tokens
COUNT = 4
FATES = {"kept": (1, 0), "refused": (1, 0), "twice": (2, 0), "failed": (2, 2)}


def params(**more):
    quick = {"type": "openai", "backoff": 0.05, "price": PRICE, "cap": 5.0}
    backend = OpenAI(**(quick | more.pop("backend", {})))
    return GenerateParams(backend=backend, **({"decoding": HOW, "unanswered": 1.0} | more))


def batch(**more):
    backend = OpenAIBatch(type="openai-batch", poll_seconds=0.01, price=PRICE, cap=5.0, **more)
    return GenerateParams(backend=backend, decoding=HOW, unanswered=1.0)


def spent():
    with Ledger(storage_for(identity("main"))) as ledger:
        return ledger.spent


def charged(odd: OddReply, prompts, share=1.0):
    """US dollars of one reply to each prompt."""
    price = Price(**PRICE)
    most = sum(price.upper_bound(TeacherRequest("", prompt, ""), HOW) for prompt in prompts)
    return {"none": 0.0, "usage": USAGE_COST * len(prompts), "most": most}[odd.cost] * share


def check_fate(odd: OddReply, prompts):
    rows = list(read_rows(RESPONSES, Response))
    failures = [json.loads(line) for line in FAILED.read_text().splitlines()]
    if odd.fate == "kept":
        assert {row.prompt: row.answer for row in rows} == {p: answer_to(p) for p in prompts}
        assert {row.reasoning for row in rows} == {odd.reasoning}
        assert failures == []
    else:
        assert rows == [] and len(failures) == len(prompts)
        assert all(odd.reason in failure["reason"] for failure in failures)
        assert odd.cost != "usage" or all(failure["reply"] for failure in failures)


@pytest.mark.parametrize("name", ODD)
def test_requests_and_money_are_those_that_the_service_counts(name, project):
    odd, prompts = ODD[name], write_prompts(COUNT)
    requests, again = FATES[odd.fate]
    with LoopbackTeacher(odd=odd.make) as service:
        publish_address(service.url)
        run("main", params())
        assert service.sent == requests * COUNT
        check_fate(odd, prompts)
        assert spent() == pytest.approx(requests * charged(odd, prompts))
        run("main", params())  # as a person runs it again
        assert service.sent == (requests + again) * COUNT
    assert spent() == pytest.approx((requests + again) * charged(odd, prompts))
    summary = json.loads((GENERATE / "main" / "summary.json").read_text())
    if odd.fate == "kept":
        assert summary["cost_usd"] == pytest.approx(spent())


@pytest.mark.parametrize("name", [name for name, odd in ODD.items() if odd.in_files])
def test_lines_of_a_batch_are_read_in_the_same_way(name, project):
    odd, prompts = ODD[name], write_prompts(COUNT)
    requests, _ = FATES[odd.fate]
    with LoopbackTeacher(odd=odd.make) as service:
        publish_address(service.url)
        for _ in range(2):
            run("main", batch())
            assert service.sent == requests * COUNT and len(service.batches) == requests
            check_fate(odd, prompts)
            assert spent() == pytest.approx(requests * charged(odd, prompts, 0.5))


@pytest.mark.parametrize("name", STOPPING)
def test_a_request_that_cannot_succeed_stops_the_run_at_the_first(name, project):
    reply, words, next_step = STOPPING[name]
    write_prompts(COUNT)
    with LoopbackTeacher(odd=lambda _: reply) as service:
        publish_address(service.url.removesuffix("/v1") if name == "no /v1" else service.url)
        with pytest.raises(UserError) as stopped:
            run("main", params())
        assert service.sent == 1
    assert words in stopped.value.what and next_step in stopped.value.fix
    assert spent() == 0.0


@pytest.mark.parametrize("name", BUSY)
def test_a_service_that_has_too_much_to_do_is_asked_again_more_slowly(name, project):
    prompts = write_prompts(12)
    with LoopbackTeacher(odd=lambda _: BUSY[name], times=1, share=0.4, seconds=0.01) as service:
        publish_address(service.url)
        run("main", params(unanswered=0.0))
        assert service.sent == 12 + service.struck and service.struck >= 2
        assert service.most_in_flight < 8
    assert spent() == pytest.approx(USAGE_COST * len(prompts))


def test_a_403_without_a_reason_is_the_prompts_fault_once_others_are_answered(project):
    write_prompts(20)
    forbidden = failing(403, {"message": "Forbidden"})
    with LoopbackTeacher(odd=forbidden, share=0.3) as service:
        publish_address(service.url)
        service.share, first = 0.0, params(rows=1)
        run("main", first)
        service.share = 0.3
        run("main", params())
        sent, refused = service.sent, service.struck
        assert sent == 20 and refused >= 3
        run("main", params())
        assert service.sent <= sent + 1  # the last one asked may be asked again


def test_refusals_are_not_failures_in_a_row(project):
    """Nine of ten prompts are refused for good: the runs end, and the second sends nothing."""
    write_prompts(60)
    with LoopbackTeacher(odd=ODD["400 content filter"].make, share=0.9) as service:
        publish_address(service.url)
        for _ in range(2):
            run("main", params())
            assert service.sent == 60
        with pytest.raises(UserError, match="prompts were not answered") as left:
            run("main", params(unanswered=0.5))
        assert "generate.refused=ask_again" in left.value.fix
        run("main", params(refused="ask_again"))
        assert service.sent == 60 + service.struck / 2


def test_in_a_row_is_by_the_order_of_asking(project):
    """Prompts that are tried again end last, one after the other; others were asked between."""
    write_prompts(40)
    with LoopbackTeacher("500", share=0.3, seconds=0.01) as service:
        publish_address(service.url)
        run("main", params(backend={"attempts": 3, "backoff": 0.3, "limits": {"at_once": 40}}))
        assert len(service.answered) + service.struck / 3 == 40


def test_a_limit_that_is_too_low_for_all_is_told_after_five(project):
    write_prompts(20)
    with LoopbackTeacher(odd=ODD["reasoning up to the limit"].make) as service:
        publish_address(service.url)
        with pytest.raises(UserError, match=r"5 prompts in a row .* raise generate") as stopped:
            run("main", params())
        assert service.sent == 5 and "--set generate.decoding.max_tokens=" in stopped.value.fix
    assert spent() == pytest.approx(5 * USAGE_COST)


def test_a_reply_that_takes_too_long_is_counted_and_tried_once_more(project):
    prompts = write_prompts(2)
    with LoopbackTeacher(seconds=1.2) as service:
        publish_address(service.url)
        with pytest.raises(UserError, match=r"within 0.6 s: raise generate\S+request_sec") as late:
            run("main", params(backend={"request_seconds": 0.6}, unanswered=0.0))
        assert service.sent == 4
        assert "--set generate.backend.request_seconds=" in late.value.fix
        assert spent() == pytest.approx(2 * charged(ODD["no usage"], prompts))
        run("main", params(backend={"request_seconds": 30}, unanswered=0.0))
        assert service.sent == 6


def test_what_is_cut_off_at_the_deadline_is_counted(project):
    prompts = write_prompts(1)
    with LoopbackTeacher(seconds=2) as service:
        publish_address(service.url)
        with pytest.raises(UserError, match="limit of 0 s is reached"):
            run("main", params(backend={"run_seconds": 0.3}))
    assert spent() == pytest.approx(charged(ODD["no usage"], prompts))


@pytest.mark.parametrize("name", ["no usage", "empty", "not JSON", "reasoning up to the limit"])
def test_the_cap_holds_for_odd_replies(name, project):
    prompts = write_prompts(30)
    most = charged(ODD["no usage"], prompts[:1])
    with LoopbackTeacher(odd=ODD[name].make, seconds=0.005) as service:
        publish_address(service.url)
        for _ in range(3):
            with pytest.raises(UserError):
                run("main", params(backend={"cap": 0.2}, unanswered=0.0))
        assert service.sent * min(USAGE_COST, most) <= 0.2
    assert spent() <= 0.2


def test_a_request_for_several_answers_reserves_the_money_for_all():
    several = OpenAI(type="openai", extra={"n": 3, "max_tokens": 100})
    assert several.billed(HOW).max_tokens == 300
    with pytest.raises(ValueError, match="a cap needs a limit"):
        OpenAI(type="openai", price=PRICE, cap=1, extra={"max_tokens": None})


def test_a_field_that_is_null_is_left_out(project):
    write_prompts(1)
    with LoopbackTeacher() as service:
        publish_address(service.url)
        run("main", params(backend={"extra": {"temperature": None}}))
        assert "temperature" not in service.bodies[0]


def test_the_key_is_cut_out_of_what_is_kept(project, monkeypatch):
    monkeypatch.setenv("TEACHER_KEY", KEY)
    write_prompts(1)
    echo = altered(message={"content": None, "refusal": f"no: {KEY}"})
    with LoopbackTeacher(odd=echo) as service:
        address = service.url.replace("http://", f"http://user:{KEY}@")
        publish_address(address, key="TEACHER_KEY")
        with pytest.raises(UserError) as stopped:
            run("main", params(unanswered=0.0))
    kept = "".join(path.read_text() for path in LEDGER.glob("*"))
    assert KEY not in kept + FAILED.read_text() + str(stopped.value)
    assert "***" in kept


@pytest.mark.parametrize(
    ("reasoning", "field"),
    [("keep", "Hm."), ("drop", None)],
)
@pytest.mark.parametrize("name", ["reasoning_content", "think tags"])
def test_reasoning_is_kept_or_dropped(name, reasoning, field, project):
    (prompt,) = write_prompts(1)
    with LoopbackTeacher(odd=ODD[name].make) as service:
        publish_address(service.url)
        run("main", params())
        run("main", params(reasoning=reasoning))  # out of the ledger: nothing is bought for it
        assert service.sent == 1
    (row,) = read_rows(RESPONSES, Response)
    assert (row.answer, row.reasoning) == (answer_to(prompt), field)


def test_inline_is_refused_with_its_new_name():
    with pytest.raises(ValueError, match="inline is now called keep"):
        GenerateParams(reasoning="inline")


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_a_limit_that_went_into_reasoning_is_bought_once(temperature, project):
    write_prompts(COUNT)
    decoding = Decoding(max_tokens=8, temperature=temperature)
    with LoopbackTeacher(odd=ODD["reasoning up to the limit"].make) as service:
        publish_address(service.url)
        for _ in range(2):
            run("main", params(decoding=decoding))
            assert service.sent == COUNT
        with pytest.raises(UserError, match="8 tokens went into reasoning: raise") as stopped:
            run("main", params(decoding=decoding, unanswered=0.0))
    assert "--set generate.decoding.max_tokens=" in stopped.value.fix
    assert spent() == pytest.approx(COUNT * USAGE_COST)


def test_few_such_replies_are_allowed_for_rather_than_all_bought_anew(project):
    write_prompts(60)
    with LoopbackTeacher(odd=ODD["reasoning up to the limit"].make, share=0.03) as service:
        publish_address(service.url)
        with pytest.raises(UserError) as stopped:
            run("main", params(unanswered=0.0))
        assert 0 < service.struck <= 3
        allowed = float(stopped.value.fix.split("generate.unanswered=")[1].split(";")[0])
        run("main", params(unanswered=allowed))
        assert service.sent == 60


def test_a_garbled_line_of_a_batch_is_counted_and_asked_again_once(project, monkeypatch):
    prompts = write_prompts(COUNT)
    with LoopbackTeacher(share=0.0) as service:
        publish_address(service.url)
        real = service.finish

        def garbling(done):
            real(done)
            if len(service.batches) == 1:
                name = done["output_file_id"]
                service.files[name] = service.files[name][:-40]

        monkeypatch.setattr(service, "finish", garbling)
        run("main", batch())
        assert service.sent == COUNT + 1 and len(list(read_rows(RESPONSES, Response))) == COUNT
    last = prompts[:1]  # the service writes its lines in reverse
    assert spent() == pytest.approx(0.5 * (COUNT * USAGE_COST + charged(ODD["no usage"], last)))
