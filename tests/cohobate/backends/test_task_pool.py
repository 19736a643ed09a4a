"""The growing pool: what is novel, what requests draw from, and that a rerun buys nothing."""

import json
import random
import shutil
from itertools import product

import pytest

from cohobate.backends.ledger_storage import LEDGER
from cohobate.backends.openai import OpenAI
from cohobate.backends.settings import GenerateParams, GrowingPool
from cohobate.backends.task_pool import TaskPool
from cohobate.backends.templates import Step
from cohobate.data.records import GENERATE, UNLABELLED, Response, Row, read_rows, row_id, write_rows
from cohobate.errors import UserError
from cohobate.generation.requests import Decoding
from cohobate.scoring.metrics import Rouge
from tasks.generate.stage import run
from tests.loopback_teacher import LoopbackTeacher, publish_address

SEEDS = [f"Name {n} kinds of weather in the {n} north" for n in range(8)]
RESPONSES = GENERATE / "main" / "responses.jsonl"


@pytest.fixture
def requests(project, monkeypatch):
    """The prompts that were sent to a service, which makes up a task of each that asks for some."""
    write_rows(UNLABELLED, [Row(id=row_id(seed), prompt=seed) for seed in SEEDS])
    sent: list[str] = []

    def good(service, body, path):
        prompt = body["messages"][-1]["content"]
        sent.append(prompt)
        text = "An answer."
        if prompt.startswith("Come up with"):
            words = random.Random(prompt).sample("abcdefghijklmnopq", 12)
            # one that is new, and one that is the last of the examples again
            text = f" {' '.join(words)}.\nTask: {prompt.splitlines()[-2][6:]}\n"
        message = {"role": "assistant", "content": text}
        return json.dumps({"choices": [{"finish_reason": "stop", "message": message}]}).encode()

    monkeypatch.setattr(LoopbackTeacher, "good", good)
    # one service for all runs of a test: the ledger is that of its address
    with LoopbackTeacher(times=0) as service:
        publish_address(service.url)
        yield sent


def answers(**more):
    given = {"template": "alpaca", "pool": GrowingPool(waves=3), "decoding": Decoding()} | more
    run("main", GenerateParams(backend=OpenAI(type="openai"), **given))
    return list(read_rows(RESPONSES, Response))


def test_a_task_is_novel_where_no_task_of_the_pool_is_much_like_it():
    pool = TaskPool(["List three kinds of weather.", "写一首诗"], novelty=0.7)
    assert not pool.add("List four kinds of weather!")  # 4 of 5 words
    assert pool.add("What is the weather like in the three kingdoms?")
    assert not pool.add("What is the weather like in the two kingdoms?")
    # without Latin letters only the same text is alike
    assert not pool.add("写一首诗") and pool.add("写一封信")
    assert pool.summary() == {"tasks_made": 5, "novel_tasks": 2} and pool.drawn == ()
    pool.end_wave("wave 1")
    assert list(pool.drawn) == pool.made


def test_the_bound_on_common_words_decides_as_rouge_does():
    rng, rouge = random.Random(0), Rouge(type="rouge_l")
    texts = [" ".join(rng.choices("abcd", k=rng.randint(1, 6))) for _ in range(60)]
    for one, other in product(texts, texts):
        novel = one != other and rouge.f_measure(one, other) < 0.7
        assert TaskPool([one], 0.7).add(other) == novel, (one, other)


def test_novel_tasks_are_answered_and_later_waves_are_made_after_them(requests):
    rows = answers()
    asked = [prompt for prompt in requests if prompt.startswith("Come up with")]
    first, later = asked[: len(SEEDS)], asked[len(SEEDS) :]
    assert len(asked) == 3 * len(SEEDS) and all(text.count("Task: ") == 8 for text in asked)
    made = {row.prompt.split("\n")[1] for row in rows}
    assert len(made) == len(rows) and not made & {*SEEDS}
    drawn = [sum(f"Task: {task}\n" in text for task in made) for text in later]
    assert not any(task in text for task in made for text in first) and drawn == [2] * len(later)
    assert rows[0].prompt.startswith("### Instruction:\n") and rows[0].answer == "An answer."
    assert [row.sample for row in rows] == sorted(row.sample for row in rows)
    summary = json.loads((GENERATE / "main/summary.json").read_text())
    assert summary["tasks_made"] == 6 * len(SEEDS) and summary["novel_tasks"] == len(rows)


def test_a_rerun_asks_nothing_and_windows_change_nothing(requests):
    answers()
    clean, sent = RESPONSES.read_bytes(), len(requests)
    answers()
    assert RESPONSES.read_bytes() == clean and len(requests) == sent
    shutil.rmtree(LEDGER)
    answers(window=3)
    assert RESPONSES.read_bytes() == clean


def test_a_wave_without_all_its_answers_is_the_last(requests, monkeypatch):
    clean = answers()
    shutil.rmtree(LEDGER)
    requests.clear()
    good = LoopbackTeacher.good

    def filtered(service, body, path):
        if f"series of tasks:\nTask: {SEEDS[2]}" not in body["messages"][-1]["content"]:
            return good(service, body, path)
        message = {"role": "assistant", "content": ""}
        choice = {"finish_reason": "content_filter", "message": message}
        return json.dumps({"choices": [choice]}).encode()

    monkeypatch.setattr(LoopbackTeacher, "good", filtered)
    with pytest.raises(UserError, match="were not answered"):
        answers()
    asked = [prompt for prompt in requests if prompt.startswith("Come up with")]
    assert len(asked) == len(SEEDS) - 1
    monkeypatch.setattr(LoopbackTeacher, "good", good)
    assert answers(refused="ask_again") == clean


def test_without_a_pool_every_task_is_answered_once(requests):
    rows = answers(pool=None)
    assert len(rows) == 2 * len(SEEDS) and {row.sample for row in rows} == {0}


def test_a_pool_needs_a_template_that_makes_tasks(requests):
    with pytest.raises(UserError, match="makes up no tasks"):
        answers(template="answer")
    with pytest.raises(ValueError, match="no group 'task'"):
        Step(pattern="(?P<text>.*)", new_task="task")
