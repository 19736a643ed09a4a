"""generate: every prompt answered, none twice, and the same bytes after a kill."""

import json
import shutil

import pytest

from cohobate.backends import loaded_teacher
from cohobate.backends.ledger import Ledger
from cohobate.backends.ledger_storage import LEDGER
from cohobate.backends.settings import GenerateParams
from cohobate.backends.transformers import Transformers
from cohobate.data.messages import Message
from cohobate.data.records import (
    ADAPT,
    GENERATE,
    LABELLED,
    UNLABELLED,
    Response,
    Row,
    read_rows,
    row_id,
    write_rows,
)
from cohobate.errors import UserError
from cohobate.generation.requests import Batching, Decoding
from cohobate.models import checkpoints
from tasks.generate.stage import run

RESPONSES = GENERATE / "main" / "responses.jsonl"
PARAMS = GenerateParams(
    backend=Transformers(batching=Batching(rows=4), threads=1),
    decoding=Decoding(max_tokens=5),
    window=16,
)


@pytest.fixture
def rows():
    prompts = [f"Definition: a small {'animal ' * (n % 5)}{n}\nCategory:" for n in range(40)]
    prompts.append((Message(role="user", content="hi"),))
    return [Row(id=row_id(p), prompt=p, group=str(n % 3)) for n, p in enumerate(prompts)]


@pytest.fixture
def ready(project, checkpoint, rows):
    shutil.copytree(checkpoint, ADAPT / "main")
    write_rows(UNLABELLED, rows)
    return project


@pytest.fixture
def computed(monkeypatch):
    """The prompts that really went through the model, in order."""
    draws = []
    real = loaded_teacher.decode_batch

    def counting(model, requests, decoding, stop, batching, **options):
        draws.extend(request.draw for request in requests)
        return real(model, requests, decoding, stop, batching, **options)

    monkeypatch.setattr(loaded_teacher, "decode_batch", counting)
    return draws


def clean_run(params=PARAMS):
    shutil.rmtree(LEDGER.parent, ignore_errors=True)
    run("main", params)
    return RESPONSES.read_bytes()


def test_every_prompt_is_answered_in_order(ready, rows):
    run("main", PARAMS)
    responses = list(read_rows(RESPONSES, Response))
    assert [r.id for r in responses] == [row.id for row in rows]
    assert {(r.teacher, r.origin, r.sample) for r in responses} == {("main", "teacher", 0)}
    assert [r.group for r in responses] == [row.group for row in rows]
    assert all(r.logprob < 0 and r.answer is not None for r in responses)
    summary = json.loads((GENERATE / "main" / "summary.json").read_text())
    finished = sum(r.finish == "stop" for r in responses) / len(responses)
    assert summary["responses"] == 41 and summary["finished"] == pytest.approx(finished, abs=1e-4)


def test_labelled_prompts_are_answered_where_chosen(ready, rows):
    known = [Row(id=row_id(f"known {n}"), prompt=f"known {n}", answer="x") for n in range(3)]
    write_rows(LABELLED, known)

    def answered(**more):
        run("main", PARAMS.model_copy(update=more))
        return list(read_rows(RESPONSES, Response))

    assert [r.id for r in answered(prompts="labelled")] == [row.id for row in known]
    both = answered(prompts="both")
    assert [r.id for r in both] == [row.id for row in (*known, *rows)]
    assert {r.origin for r in both} == {"teacher"} and both[0].answer != "x"
    assert [r.id for r in answered(prompts="both", rows=5)] == [r.id for r in both[:5]]
    write_rows(LABELLED, [])
    with pytest.raises(UserError, match=r"no prompt to answer\n.*labelled.jsonl"):
        answered(prompts="labelled")


def test_a_rerun_computes_nothing_and_writes_the_same(ready, computed):
    first = clean_run()
    assert len(computed) == 41
    run("main", PARAMS)
    assert RESPONSES.read_bytes() == first
    assert len(computed) == 41


class Killed(BaseException):
    pass


@pytest.mark.parametrize("after", [0, 1, 5, 9])
def test_killed_and_taken_up_again_it_writes_what_a_clean_run_writes(
    ready, computed, monkeypatch, after
):
    clean = clean_run()
    shutil.rmtree(LEDGER)
    RESPONSES.unlink()
    computed.clear()
    real, left = Ledger.append, [after]

    def dies(ledger, batch):
        if not left[0]:
            with ledger.storage.path.open(
                "ab"
            ) as file:  # what a kill in the middle of a write leaves
                file.write(b'{"key": "half a li')
            raise Killed
        left[0] -= 1
        real(ledger, batch)

    monkeypatch.setattr(Ledger, "append", dies)
    with pytest.raises(Killed):
        run("main", PARAMS)
    assert not RESPONSES.exists()
    monkeypatch.setattr(Ledger, "append", real)
    run("main", PARAMS)
    assert RESPONSES.read_bytes() == clean
    twice = len(computed) - len(set(computed))
    assert twice <= 3 * 4  # what was in flight: two batches side by side, and one more in line


def test_a_longer_list_computes_only_what_was_added(ready, rows, computed):
    write_rows(UNLABELLED, rows[:25])
    run("main", PARAMS)
    before = {r.id: r for r in read_rows(RESPONSES, Response)}
    computed.clear()
    write_rows(UNLABELLED, rows[::-1])
    run("main", PARAMS)
    assert set(computed) == {f"{row.id}/0" for row in rows[25:]}
    after = {r.id: r for r in read_rows(RESPONSES, Response)}
    assert before.items() <= after.items() and len(after) == 41


def test_other_weights_or_another_decoding_are_asked_anew(ready, computed, make_model, tokenizer):
    run("main", PARAMS)
    longer = PARAMS.model_copy(update={"decoding": Decoding(max_tokens=6)})
    run("main", longer)
    assert len(computed) == 82
    checkpoints.save(make_model(tokenizer, seed=5), tokenizer, ADAPT / "main", {})
    run("main", longer)
    assert len(computed) == 123


def test_samples_differ_and_come_again(ready, rows):
    params = GenerateParams(
        backend=PARAMS.backend, decoding=Decoding(max_tokens=5, temperature=1), rows=6, samples=3
    )
    first = clean_run(params)
    responses = list(read_rows(RESPONSES, Response))
    assert [(r.id, r.sample) for r in responses] == [(r.id, n) for r in rows[:6] for n in range(3)]
    assert len({r.answer for r in responses}) > 6
    assert clean_run(params) == first
    with pytest.raises(UserError, match="greedy"):
        run("main", GenerateParams(samples=2))


def test_what_cannot_be_answered_is_said(ready, tokenizer, model):
    long = Row(id=row_id("x" * 300), prompt="x" * 300)
    write_rows(UNLABELLED, [long])
    run("main", PARAMS)
    (response,) = read_rows(RESPONSES, Response)
    assert (response.answer, response.finish, response.logprob) == ("", "length", None)
    write_rows(UNLABELLED, [])
    with pytest.raises(UserError, match="no prompt"):
        run("main", PARAMS)
    (ADAPT / "main" / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"tokenizer\.json is truncated"):
        run("main", PARAMS)


@pytest.mark.slow
def test_several_workers_write_the_rows_that_one_writes(ready):
    ray = pytest.importorskip("ray")
    alone = clean_run()
    several = PARAMS.backend.model_copy(update={"workers": 2})
    try:
        assert clean_run(PARAMS.model_copy(update={"backend": several})) == alone
    finally:
        ray.shutdown()


def test_prompts_of_a_task_go_to_its_teacher_alone(ready, checkpoint, rows):
    for teacher in ("nouns", "sums"):
        shutil.copytree(checkpoint, ADAPT / teacher)
    tasks = ["nouns", "sums", None]
    routed = [row.model_copy(update={"task": tasks[n % 3]}) for n, row in enumerate(rows)]
    write_rows(UNLABELLED, routed)
    params = PARAMS.model_copy(update={"routes": {"nouns": "nouns", "sums": "sums"}})
    answered = {}
    for teacher in ("main", "nouns", "sums"):
        run(teacher, params)
        responses = read_rows(GENERATE / teacher / "responses.jsonl", Response)
        answered[teacher] = {row.id for row in responses}
    of_task = {task: {row.id for row in routed if row.task == task} for task in tasks}
    # what no route names goes to all
    assert answered["main"] == of_task[None]
    assert answered["nouns"] == of_task["nouns"] | of_task[None]
    assert answered["sums"] == of_task["sums"] | of_task[None]
