import json
import math
from pathlib import Path

import pytest
import torch

from cohobate.data.messages import Message
from cohobate.data.records import (
    FILTER,
    LABELLED,
    TRAIN,
    UNLABELLED,
    VERDICT,
    Response,
    Row,
    read_rows,
    row_id,
    write_json,
    write_rows,
)
from cohobate.data.tokenized import encode
from cohobate.models import checkpoints
from tasks.hard_examples.stage import HARD_EXAMPLES, HARDEST, HardExamplesParams, run


def response(prompt: str, answer: str, logprob: float | None, sample: int = 0) -> Response:
    return Response(
        id=row_id(prompt), prompt=prompt, answer=answer, group="g", origin="teacher",
        teacher="main", finish="stop", logprob=logprob, sample=sample,
    )  # fmt: skip


def loss(model, tokenizer, row: Row) -> float:
    """The mean of −log q over the answer and its end, in float64, straight from the logits."""
    encoded = encode(tokenizer, row)
    ids = torch.tensor([encoded.ids])
    logp = model.double()(ids).logits[0].log_softmax(-1)
    judged = range(len(encoded.prompt_ids), len(encoded.ids))
    return -sum(float(logp[at - 1, encoded.ids[at]]) for at in judged) / len(judged)


@pytest.fixture
def student(project: Path, model, tokenizer):
    write_rows(LABELLED, [])
    write_rows(UNLABELLED, [])
    checkpoints.save(model, tokenizer, TRAIN / "kd/seed-2", {})
    write_json(VERDICT, {"seed": 2})
    return model


def test_the_prompts_with_the_widest_gap_come_first(student, tokenizer) -> None:
    answers = {"one two": "a", "three": "bb", "four five six": "ccc", "seven": "d"}
    logprobs = [-0.1, -4.0, -0.5, None]
    rows = [response(p, a, lp) for (p, a), lp in zip(answers.items(), logprobs, strict=True)]
    write_rows(FILTER / "kept.jsonl", rows)
    run(HardExamplesParams(rows=3), "kd")
    regret = {row.id: loss(student, tokenizer, row) + (row.logprob or 0.0) for row in rows}
    expected = sorted(regret, key=lambda name: -regret[name])[:3]
    hardest = list(read_rows(HARDEST, Row))
    assert [row.id for row in hardest] == expected
    assert all(row.answer is None and row.origin == "none" for row in hardest)
    summary = json.loads((HARD_EXAMPLES / "summary.json").read_text())
    assert math.isclose(summary["mean_regret"], sum(regret.values()) / 4, abs_tol=0.05)  # bfloat16


def test_a_prompt_with_several_answers_is_kept_once(student) -> None:
    rows = [response("one", answer, -1.0, n) for n, answer in enumerate(("a", "b", "c"))]
    write_rows(FILTER / "kept.jsonl", rows)
    run(HardExamplesParams(rows=10), "kd")
    assert [row.prompt for row in read_rows(HARDEST, Row)] == ["one"]


def test_a_prompt_is_mined_without_the_prefix_and_the_rationale_of_its_row(student) -> None:
    answer = response("one", "a", -1.0).prefixed("[label] ")
    rationale = {"prefix": "[rationale] ", "target": "rationale", "answer": "because"}
    write_rows(FILTER / "kept.jsonl", [answer, answer.model_copy(update=rationale)])
    run(HardExamplesParams(rows=10), "kd")
    assert [row.full_prompt for row in read_rows(HARDEST, Row)] == ["one"]
    assert json.loads((HARD_EXAMPLES / "summary.json").read_text())["looked_at"] == 1


def test_prompts_are_mined_as_they_were_collected_and_labelled_ones_are_not(student) -> None:
    turns = (Message(role="system", content="Explain."), Message(role="user", content="one"))
    conversation = response("one", "a", -1.0).model_copy(update={"prompt": turns})
    write_rows(
        FILTER / "kept.jsonl", [conversation, response("two", "b", -9.0), response("three", "c", 0)]
    )
    write_rows(UNLABELLED, [Row(id=row_id("one"), prompt="one", group="g")])
    write_rows(LABELLED, [Row(id=row_id("two"), prompt="two", answer="b")])
    run(HardExamplesParams(rows=10), "kd")
    assert {row.prompt for row in read_rows(HARDEST, Row)} == {"one", "three"}


def test_nothing_is_computed_when_no_row_is_wanted(project: Path) -> None:
    run(HardExamplesParams(rows=0), "kd")
    assert HARDEST.read_bytes() == b""
