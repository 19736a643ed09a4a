"""Capture of label distributions: what the store has, resumes, and refuses."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from cohobate import params
from cohobate.data.messages import Message
from cohobate.data.records import (
    ADAPT,
    CAPTURE,
    FILTER,
    GENERATE,
    LABELLED,
    Response,
    Row,
    row_id,
    write_rows,
)
from cohobate.errors import UserError
from cohobate.models import checkpoints
from cohobate.scoring.labels import LabelSet
from cohobate.scoring.verifiers import Exact, Label, Task
from cohobate.teachers.signal_store import label_capture
from cohobate.teachers.signal_store.label_store import LabelStore
from cohobate.teachers.signal_store.settings import CaptureParams
from cohobate.teachers.signal_store.store import SignalStore
from cohobate.teachers.teacher import Teacher
from tasks.capture.stage import run

TASK = Task(verifier=Label(type="label"))
LABELS = {"animal": " animal", "plant": " Plant"}
PROMPTS = [f"Definition: {word} {n}\nCategory:" for n, word in enumerate(["fur", "leaf"] * 4)]


def responses(samples: int = 1) -> list[Response]:
    answers = [" animal", " Plant", " plant", " odd"]
    return [
        Response(
            id=row_id(prompt),
            prompt=prompt,
            answer=answers[(n + sample) % 4],
            teacher="main",
            sample=sample,
            finish="stop",
        )
        for n, prompt in enumerate(PROMPTS)
        for sample in range(samples)
    ]


@pytest.fixture
def teacher(project: Path, model: Any, tokenizer: Any) -> Any:
    texts = ["fur paw", "beast", "leaf", "root", "stem"]
    answers = [" animal", " animal", " Plant", " plant", " Plant"]
    rows = [Row(id=row_id(t), prompt=t, answer=a) for t, a in zip(texts, answers, strict=True)]
    write_rows(LABELLED, rows)
    write_rows(FILTER / "kept.jsonl", responses())
    checkpoints.save(model, tokenizer, ADAPT / "main", {"from": "a test"})
    return model


def captured(teacher: Teacher | None = None, **changes: Any) -> LabelStore:
    options = {"signals": {"type": "labels"}, "precision": "float32", "shard_rows": 3}
    settings = params.validated(CaptureParams, options | changes, "capture")
    run("main", teacher or Teacher(model="tiny"), settings, TASK)
    return LabelStore(CAPTURE / "main")


def expected(model: Any, tokenizer: Any, prompt: str) -> torch.Tensor:
    logps = []
    for text in LABELS.values():
        ids = tokenizer(prompt)["input_ids"]
        label = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
        with torch.no_grad():
            logits = model(torch.tensor([ids + label])).logits[0].double()
        logps.append(logits.log_softmax(-1)[len(ids) - 1 : -1][range(len(label)), label].sum())
    return torch.stack(logps).log_softmax(-1)


def test_the_store_has_each_labels_likelihood(teacher: Any, tokenizer: Any) -> None:
    store = captured()
    rows = responses()
    logp_RC = store.logprobs(store.places(rows).tolist())
    assert store.origin.labels == ("animal", "plant")
    assert store.origin.texts == (" animal", " Plant")  # what most rows have
    for row, logp_C in zip(rows, logp_RC, strict=True):
        torch.testing.assert_close(
            logp_C.double(), expected(teacher, tokenizer, str(row.prompt)), rtol=2e-3, atol=2e-3
        )
    summary = json.loads((CAPTURE / "main/summary.json").read_text())
    assert (summary["rows"], summary["labels"]) == (8, 2)
    assert 0 <= summary["mean_mass_of_labels"] < 1
    # a key, the teacher's prompt, and two bytes a label; the headers of two files
    assert summary["bytes_per_row"] == 16 + 2 * 2 + 256 / 8


def test_batches_threads_and_shards_decide_nothing(teacher: Any) -> None:
    logp_RC = captured().logprobs(range(8))
    for changes in ({"batch_tokens": 1}, {"threads": 1, "shard_rows": 100}, {"chunk_tokens": 1}):
        torch.testing.assert_close(captured(**changes).logprobs(range(8)), logp_RC)


def test_a_killed_capture_resumes_after_its_last_shard(
    teacher: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = captured()
    before = {path.name: path.read_bytes() for path in whole.folder.iterdir()}
    write, calls = label_capture._write_shard, []

    def killed(shard: Path, scored: Any) -> Any:
        calls.append(shard)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return write(shard, scored)

    monkeypatch.setattr(label_capture, "_write_shard", killed)
    with pytest.raises(KeyboardInterrupt):
        captured()
    assert {path.name: path.read_bytes() for path in whole.folder.iterdir()} == before
    monkeypatch.setattr(label_capture, "_write_shard", write)
    captured()
    assert capsys.readouterr().err.count("is complete") == 2
    assert {path.name: path.read_bytes() for path in whole.folder.iterdir()} == before


def test_votes_are_counted_over_all_answers(teacher: Any) -> None:
    write_rows(GENERATE / "main/responses.jsonl", responses(samples=3))
    # text alone is enough
    only_text = Teacher(model="tiny", signals=False)
    store = captured(only_text, signals={"type": "labels", "by": "votes"})
    first = store.logprobs(store.find(responses()[:1]).tolist())
    torch.testing.assert_close(first.exp(), torch.tensor([[1 / 3, 2 / 3]]), atol=1e-3, rtol=1e-3)
    assert store.origin.number_format == "votes"


def test_prompts_without_a_vote_are_missing_by_name(teacher: Any) -> None:
    write_rows(GENERATE / "main/responses.jsonl", responses())
    store = captured(signals={"type": "labels", "by": "votes"})
    places = store.places(responses())
    assert [n for n, place in enumerate(places) if place < 0] == [3, 7]  # " odd" is no label


def test_the_teacher_reads_its_own_prompt(teacher: Any, tokenizer: Any) -> None:
    rows = [row.model_copy(update={"teacher_prompt": f"Hint. {row.prompt}"}) for row in responses()]
    write_rows(FILTER / "kept.jsonl", rows)
    store = captured()
    logp_RC = store.logprobs(store.places(rows).tolist())
    own = expected(teacher, tokenizer, str(rows[0].teacher_prompt))
    torch.testing.assert_close(logp_RC[0].double(), own, rtol=2e-3, atol=2e-3)
    with pytest.raises(UserError, match="no signals of 8 of 8 rows"):
        store.places(responses())  # captured behind another prompt


def test_a_conversation_is_rendered_by_the_chat_template(
    teacher: Any, make_tokenizer: Any, model: Any
) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    checkpoints.save(model, tokenizer, ADAPT / "main", {"from": "a test"})
    prompt = (Message(role="user", content="fur"),)
    row = responses()[0].model_copy(update={"id": row_id(prompt), "prompt": prompt})
    write_rows(FILTER / "kept.jsonl", [row, *responses()])
    store = captured()
    rendered = f"<user>fur{tokenizer.eos_token}<assistant>"
    (logp_C,) = store.logprobs(store.places([row]).tolist())
    own = expected(model, tokenizer, rendered)
    torch.testing.assert_close(logp_C.double(), own, rtol=2e-3, atol=2e-3)


def test_long_rows_are_missing_by_name(teacher: Any) -> None:
    long = responses()[0].model_copy(update={"id": "f" * 16, "prompt": "leaf " * 200})
    write_rows(FILTER / "kept.jsonl", [*responses(), long])
    store = captured(max_tokens=60)
    assert store.places([long]).tolist() == [-1]


def test_another_student_is_refused_by_name(teacher: Any) -> None:
    store = captured()
    store.check_labels(LabelSet(("animal", "plant"), Label(type="label")))
    with pytest.raises(UserError, match="'stone' is a label of the student alone"):
        store.check_labels(LabelSet(("animal", "plant", "stone"), Label(type="label")))
    with pytest.raises(UserError, match="different verifiers"):
        store.check_labels(LabelSet(("animal", "plant"), Exact(type="exact", casefold=False)))
    other = Row(id=row_id("other"), prompt="other")
    with pytest.raises(UserError, match="no signals of 1 of 1 rows"):
        store.places([other])
    with pytest.raises(UserError, match="distributions over labels, and those over tokens"):
        SignalStore(CAPTURE / "main")


def test_a_damaged_store_is_refused(teacher: Any) -> None:
    captured()
    path = CAPTURE / "main/logp.npy"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match="altered"):
        LabelStore(CAPTURE / "main")


def test_the_columns_follow_the_students_order(teacher: Any) -> None:
    store = captured()
    turned = store.logprobs(range(8), LabelSet(("plant", "animal"), Label(type="label")))
    assert torch.equal(turned.flip(-1), store.logprobs(range(8)))
