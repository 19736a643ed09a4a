"""A teacher behind an endpoint is scored by answers that are bought once; no weights are missed."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cohobate.backends.ledger_storage import LEDGER
from cohobate.backends.openai import OpenAI
from cohobate.backends.prices import Price
from cohobate.backends.settings import GenerateParams
from cohobate.data.records import GENERATE, TEST, Row, row_id, write_json, write_rows
from cohobate.errors import UserError
from cohobate.models import checkpoints
from tasks.evaluate.perturbations import Case
from tasks.evaluate.robustness import ROBUSTNESS, Robustness
from tasks.evaluate.stage import run
from tests.loopback_teacher import LoopbackTeacher, publish_address
from tests.odd_replies import ODD
from tests.tasks.evaluate.simulated_round import LABELS, read
from tests.tasks.evaluate.test_evaluate_stage import PARAMS, TASK

ROBUSTNESS_PARAMS = Robustness(rows=6, perturbations=(Case(type="case"),))
EVALUATE = PARAMS.model_copy(update={"robustness": ROBUSTNESS_PARAMS})
PROMPTS = [f"Definition: a {word} {n}\nCategory:" for n, word in enumerate(LABELS * 2)]


def generate(**backend: Any) -> GenerateParams:
    price = Price(input=100.0, output=400.0)
    return GenerateParams(backend=OpenAI(type="openai", backoff=0.05, price=price, **backend))


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackTeacher]:
    """A teacher that is right about every row but the first, and about none in capitals."""

    def answer_to(prompt: str, seed: int | None = None) -> str:
        at = PROMPTS.index(prompt) if prompt in PROMPTS else 0
        return LABELS[at % 9] if at else "mineral"

    monkeypatch.setattr("tests.loopback_teacher.answer_to", answer_to)
    with LoopbackTeacher() as teacher:
        yield teacher


@pytest.fixture
def round_(
    project: Path, make_model: Callable[..., Any], tokenizer: Any, service: LoopbackTeacher
) -> Path:
    """What is on disk when all phases have been trained on a service's answers."""
    publish_address(service.url)
    for folder, seed in {
        "init_student": 1,
        "train/baseline/seed-1": 2,
        "train/kd/seed-1": 3,
    }.items():
        model = make_model(tokenizer, seed=seed, layers=2)
        checkpoints.save(model, tokenizer, Path("models") / folder, {})
    rows = [Row(id=row_id(p), prompt=p, answer=f" {LABELS[n % 9]}") for n, p in enumerate(PROMPTS)]
    write_rows(TEST, rows)
    summary = {"responses": 50, "prompt_tokens": 500, "completion_tokens": 250}
    write_json(GENERATE / "main/summary.json", summary)
    write_json(Path("reports/stages.json"), {"train@kd": {"seconds": 3.0}})
    return project


def test_its_answers_are_scored_and_the_rest_is_said_not_to_be_known(
    round_: Path, service: LoopbackTeacher
) -> None:
    run(EVALUATE, TASK, [1], generate())
    metrics = read("reports/metrics.json")
    assert metrics["teacher"]["score"] == pytest.approx(17 / 18, abs=1e-6)
    assert metrics["retention"] == pytest.approx(metrics["student"]["score"] / (17 / 18), abs=1e-5)
    assert metrics["robustness"]["case"]["teacher_drop"] > 0.5
    assert {"teacher", "baseline", "student"} == set(read(str(ROBUSTNESS))[0]["score"])
    unknown = ("parameters_ratio", "bytes_ratio", "speedup", "fidelity")
    assert [metrics[name] for name in unknown] == [None] * 4
    assert metrics["forgetting"]["bits_per_byte_teacher"] is None
    assert metrics["forgetting"]["bits_per_byte_after"] > 0
    teacher, *others = read("data/evaluate/arms.json")
    assert teacher["footprint"] is None and all(arm["footprint"] for arm in others)
    assert set(read("reports/timings.json")["models"]) == {"student"}
    page = Path("reports/report.html").read_text()
    assert "The teacher, except for its answers: its weights are not available." in page
    assert service.sent == 18 + 6


def test_reasoning_in_the_text_is_no_part_of_the_answer_that_is_scored(
    round_: Path, service: LoopbackTeacher
) -> None:
    service.odd = ODD["think tags"].make
    run(EVALUATE, TASK, [1], generate())
    assert read("reports/metrics.json")["teacher"]["score"] == pytest.approx(17 / 18, abs=1e-6)


def test_it_costs_what_the_service_counts(round_: Path) -> None:
    run(EVALUATE, TASK, [1], generate())
    assert read("data/evaluate/served.json") == {
        "taught": {"rows": 50, "prompt_tokens": 500, "answer_tokens": 250},
        "request": {"prompt_tokens": 10.0, "answer_tokens": 5.0},
        "price": {"input": 100.0, "output": 400.0},
    }
    cost = read("reports/cost.json")
    assert cost["teacher_tokens_cost"] == pytest.approx((500 * 100 + 250 * 400) / 1e6)
    assert cost["cost_per_million_tokens"]["teacher"] == 400 + 10 / 5 * 100
    assert cost["break_even_tokens"] > 0
    assert ("teacher_cost_per_kept_point" in cost) == bool(
        read("reports/metrics.json")["retention"]
    )
    spent = read("reports/spent/main.json")
    # the round's budget has the test's answers too
    expected = (18 + 6) * (10 * 100 + 5 * 400) / 1e6
    assert spent["after"] - spent["before"] == pytest.approx(expected)


def test_no_answer_is_bought_twice_and_the_bytes_are_the_same(
    round_: Path, service: LoopbackTeacher
) -> None:
    def hashed() -> dict[str, bytes]:
        run(EVALUATE, TASK, [1], generate())
        files = [*Path("data/evaluate").rglob("*.*"), Path("reports/metrics.json")]
        return {str(path): path.read_bytes() for path in files}

    first, sent = hashed(), service.sent
    shutil.rmtree("data/evaluate")
    assert hashed() == first
    assert service.sent == sent


def test_the_cap_holds_for_the_test_too(round_: Path, service: LoopbackTeacher) -> None:
    with pytest.raises(UserError, match="the cost cap is reached") as error:
        run(EVALUATE, TASK, [1], generate(cap=0.05))
    assert "cap" in (error.value.fix or "")
    kept = [line for path in LEDGER.glob("*") for line in path.read_text().splitlines()]
    assert 0 < len(kept) == service.sent < 18
    assert sum(json.loads(line)["bought"][2] for line in kept) <= 0.05
    run(EVALUATE, TASK, [1], generate(cap=1.0))
    assert service.sent == 18 + 6


def test_rows_without_an_answer_stop_it_unless_some_are_allowed(
    round_: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with LoopbackTeacher(fault="empty", share=0.1) as service:
        publish_address(service.url)
        chosen = generate(attempts=1)
        with pytest.raises(UserError, match=r"of 18 rows were not answered"):
            run(EVALUATE, TASK, [1], chosen)
        run(EVALUATE, TASK, [1], chosen.model_copy(update={"unanswered": 0.9}))
    lines = Path("data/evaluate/predictions/teacher.jsonl").read_text().splitlines()
    unanswered = [one for one in map(json.loads, lines) if one["finish"] == "unanswered"]
    assert unanswered and all(one["scores"]["verifier"] == 0 for one in unanswered)


def test_without_a_price_no_break_even_is_claimed(round_: Path) -> None:
    run(EVALUATE, TASK, [1], GenerateParams(backend=OpenAI(type="openai")))
    cost = read("reports/cost.json")
    assert cost["cost_per_million_tokens"]["teacher"] is None
    assert cost["break_even_tokens"] is None and cost["break_even_requests"] is None
    assert "no price of the teacher is given" in Path("reports/report.html").read_text()
