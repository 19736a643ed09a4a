"""What rounds cost reaches their records, and ends them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cohobate.backends import cost_log
from cohobate.backends.openai import OpenAI
from cohobate.backends.settings import GenerateParams
from cohobate.errors import UserError
from cohobate.generation.requests import Decoding
from flows import round_cost, stage_seconds
from flows.placement import StageResult
from flows.round_history import RoundRecord
from flows.round_settings import Stop
from flows.stop_rules import reason_to_stop
from tasks.generate.stage import run
from tests.flows.test_round_history import record
from tests.loopback_teacher import LoopbackTeacher, publish_address, write_prompts

ANSWER = 0.02
"""US dollars: ten tokens asked, five answered."""
PRICE = {"input": 1000.0, "output": 2000.0}


@pytest.fixture
def service(project: Path) -> Iterator[LoopbackTeacher]:
    with LoopbackTeacher() as service:
        publish_address(service.url)
        yield service


def buy(prompts: int, **backend: Any) -> None:
    write_prompts(prompts)
    teacher = OpenAI(type="openai", backoff=0.05, price=PRICE, **backend)
    run("main", GenerateParams(backend=teacher, decoding=Decoding(max_tokens=8)))


def concluded(last: RoundRecord | None) -> RoundRecord:
    """End a round, and open the next one's worktree: nothing of this one's notes is in it."""
    ended = record(last.number + 1 if last else 1, **round_cost.totals(Path(), last))
    for note in cost_log.COST_LOG.glob("*"):
        note.unlink()
    return ended


def test_rounds_end_once_the_ledger_holds_what_was_allowed(service: LoopbackTeacher) -> None:
    stop, rounds = Stop(money=1.5), []
    for prompts in (25, 50, 80, 200):
        if why := reason_to_stop(stop, rounds):
            break
        buy(prompts)  # the first ones again: they cost nothing
        rounds.append(concluded(rounds[-1] if rounds else None))
    assert [each.money for each in rounds] == pytest.approx([25 * ANSWER, 25 * ANSWER, 30 * ANSWER])
    assert why == "1.60 USD are spent on answers; the limit is 1.5"
    assert service.sent == 80


def test_what_a_killed_attempt_had_bought_counts_to_the_round(
    service: LoopbackTeacher,
) -> None:
    with pytest.raises(UserError, match="cap is reached"):
        buy(50, cap=0.5)
    bought = service.sent
    assert bought > 0
    buy(50)
    assert service.sent == 50
    assert concluded(None).money == pytest.approx(50 * ANSWER)


def test_what_was_bought_before_the_first_round_is_not_its_own(service: LoopbackTeacher) -> None:
    buy(20)
    for note in cost_log.COST_LOG.glob("*"):
        note.unlink()
    buy(30)
    assert concluded(None).money == pytest.approx(10 * ANSWER)


def test_a_round_that_asked_nobody_keeps_what_is_known_of_the_ledger(
    service: LoopbackTeacher,
) -> None:
    buy(10)
    first = concluded(None)
    idle = concluded(first)
    assert (idle.money, idle.ledgers) == (0.0, first.ledgers)
    buy(15)
    assert concluded(idle).money == pytest.approx(5 * ANSWER)


def test_the_stages_of_a_killed_attempt_count_to_the_hours(project: Path) -> None:
    for address, outcome, seconds in (
        ("train@kd", "ran", 1800.0),
        ("train@kd", "unchanged", 0.1),
        ("evaluate", "ran", 2000.0),
    ):
        result = StageResult(outcome, seconds, seconds, 0, 1)
        stage_seconds.record(project, address, result)
    ended = record(1, **round_cost.totals(project, None))
    assert ended.seconds == 3800.0
    assert reason_to_stop(Stop(hours=1), [ended]) == "1.1 hours are spent; the limit is 1"
