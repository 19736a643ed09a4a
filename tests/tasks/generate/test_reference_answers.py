"""generate.reference_answers: labelled rows and raw text are responses as they are."""

import json
import shutil

import pytest

from cohobate.backends.settings import GenerateParams
from cohobate.backends.transformers import Transformers
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
from cohobate.generation.requests import Decoding
from tasks.generate.stage import run

RESPONSES = GENERATE / "main" / "responses.jsonl"
FIELDS = {"backend": Transformers(threads=1), "decoding": Decoding(max_tokens=3)}


def row(prompt, answer=None, **fields):
    origin = "none" if answer is None else "ground_truth"
    fields = {"origin": origin} | fields
    return Row(id=row_id(prompt, answer), prompt=prompt, answer=answer, **fields)


def generated(**params):
    run("main", GenerateParams(**FIELDS, **params))
    return list(read_rows(RESPONSES, Response))


@pytest.fixture
def ready(project, checkpoint):
    shutil.copytree(checkpoint, ADAPT / "main")
    write_rows(LABELLED, [row("known", " yes"), row("", "raw text", cut=True)])
    write_rows(UNLABELLED, [row("one"), row("two")])


def test_kept_answers_come_first_and_the_rest_is_generated(ready):
    responses = generated(prompts="both", reference_answers="keep")
    assert [r.origin for r in responses] == ["ground_truth"] * 2 + ["teacher"] * 2
    known, raw = responses[:2]
    assert (known.answer, known.finish, known.logprob, known.teacher) == (
        " yes", "stop", None, "main",
    )  # fmt: skip
    assert (raw.prompt, raw.answer, raw.cut) == ("", "raw text", True)
    summary = json.loads((GENERATE / "main/summary.json").read_text())
    assert (summary["responses"], summary["reference_answers"]) == (4, 2)
    ids = [r.id for r in responses]
    assert [r.id for r in generated(prompts="both", reference_answers="keep", rows=3)] == ids[:3]


def test_text_alone_needs_no_prompt_and_runs_no_model(ready, monkeypatch):
    UNLABELLED.unlink()
    monkeypatch.delattr(Transformers, "open")
    assert len(generated(prompts="labelled", reference_answers="keep")) == 2


def test_raw_text_cannot_be_answered(ready):
    with pytest.raises(UserError, match="raw text has no prompt that a teacher could answer"):
        generated(prompts="labelled")


def test_unlabelled_rows_have_no_answer_to_keep():
    with pytest.raises(ValueError, match="prompts must be labelled or both"):
        GenerateParams(reference_answers="keep")
