"""How long the reasoning is, against what the evaluation allows a student that learns it."""

import json

import pytest

from cohobate.backends import loaded_teacher
from cohobate.backends.openai import OpenAI
from cohobate.backends.settings import GenerateParams
from cohobate.backends.transformers import Transformers
from cohobate.data.records import (
    ADAPT,
    GENERATE,
    LABELLED,
    UNLABELLED,
    Response,
    Row,
    row_id,
    write_rows,
)
from cohobate.errors import UserError
from cohobate.generation.requests import Answer, Decoding
from cohobate.models import checkpoints
from tasks.generate.reasoning_length import ReasoningLengths, warn_of_labelled
from tasks.generate.stage import run
from tests.loopback_teacher import LoopbackTeacher, publish_address, write_prompts
from tests.odd_replies import altered

LONG = "so it goes on and on. " * 40  # about 220 tokens


def response(reasoning):
    return Response(
        id=row_id("x"),
        prompt="x",
        answer="four",
        reasoning=reasoning,
        teacher="main",
        finish="stop",
    )


def test_a_limit_below_most_of_the_reasoning_is_refused_with_both_ways_out():
    lengths = ReasoningLengths()
    rows = [response(LONG), response(LONG), response("Hm."), response(None)]
    assert list(lengths.counted(rows)) == rows
    assert lengths.summary() == {
        "with_reasoning": 3,
        "reasoning_tokens_median": 220,
        "reasoning_tokens_most": 220,
    }
    with pytest.raises(UserError, match=r"has about 220 tokens .*max_tokens is 16") as refused:
        lengths.check("main", 16)
    assert "evaluate.decoding.max_tokens=320" in refused.value.fix
    assert "generate.reasoning=drop" in refused.value.fix
    lengths.check("main", 320)


def test_answers_without_reasoning_need_no_limit():
    lengths = ReasoningLengths()
    list(lengths.counted([response(None)]))
    lengths.check("main", 1)
    assert lengths.summary() == {}


def test_reasoning_of_labelled_rows_is_warned_of(project, capsys):
    rows = [Row(id=row_id(p), prompt=p, answer="4", reasoning=LONG) for p in ("a", "b")]
    write_rows(LABELLED, [*rows, Row(id=row_id("c"), prompt="c", answer="4")])
    warn_of_labelled(LABELLED, 400)
    assert capsys.readouterr().err == ""
    warn_of_labelled(LABELLED, 16)
    assert "the reasoning of 2 rows has about 220 tokens" in capsys.readouterr().err


def test_the_stage_stops_and_buys_nothing_anew_once_the_limit_is_raised(project):
    write_prompts(3)
    write_rows(LABELLED, [])
    odd = altered(message={"reasoning_content": LONG})
    params = GenerateParams(backend=OpenAI(type="openai"), decoding=Decoding(max_tokens=400))
    with LoopbackTeacher(odd=odd) as service:
        publish_address(service.url)
        with pytest.raises(UserError, match="would be cut off before it answers"):
            run("main", params, Decoding(max_tokens=8))
        run("main", params, Decoding(max_tokens=400))
        run("main", params.model_copy(update={"reasoning": "drop"}), Decoding(max_tokens=8))
        assert service.sent == 3
    summary = json.loads((GENERATE / "main/summary.json").read_text())
    assert "with_reasoning" not in summary and summary["responses"] == 3


def test_a_local_teacher_that_only_reasons_names_the_limit(project, checkpoint, monkeypatch):
    import shutil

    shutil.copytree(checkpoint, ADAPT / "main")
    write_rows(UNLABELLED, [Row(id=row_id(p), prompt=p) for p in ("one", "two")])
    cut = Answer("", "length", -1.0, reasoning="Hm, hm")
    answers = {"one": cut, "two": Answer("four", "stop", -1.0, reasoning="Hm.")}

    def to_answer(tokenizer, completion, request):
        return answers[tokenizer.decode(request.ids)]

    monkeypatch.setattr(loaded_teacher, "to_answer", to_answer)
    params = GenerateParams(
        backend=Transformers(threads=1), decoding=Decoding(max_tokens=5), unanswered=0.5
    )
    assert checkpoints.accelerator() == "cpu"
    run("main", params)
    (failed,) = (json.loads(line) for line in (GENERATE / "main/failed.jsonl").open())
    assert (failed["id"], failed["reply"]) == (row_id("one"), "Hm, hm")
    with pytest.raises(UserError, match="limit of 5 tokens went into reasoning") as stopped:
        run("main", params.model_copy(update={"unanswered": 0.0}))
    assert "--set generate.decoding.max_tokens=" in stopped.value.fix
