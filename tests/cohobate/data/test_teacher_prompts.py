"""Rows whose teacher reads another prompt: collected, encoded, captured, learnt live and stored."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cohobate.backends.templates import Conversation, Step, template_of
from cohobate.data.contamination import Contamination
from cohobate.data.examples import Example, examples_of, fingerprint
from cohobate.data.messages import Message
from cohobate.data.records import (
    ADAPT,
    CAPTURE,
    CURRICULUM,
    FILTER,
    INIT_STUDENT,
    TRAIN,
    Response,
    Row,
    TrainingRow,
    row_id,
    write_rows,
)
from cohobate.data.teacher_prompts import as_teacher_reads, teacher_examples
from cohobate.data.tokenized import encode_all
from cohobate.errors import UserError
from cohobate.generation.requests import Answer
from cohobate.losses.divergences import ForwardKL
from cohobate.methods.train import Method
from cohobate.models import checkpoints
from cohobate.params import validated
from cohobate.scoring.verifiers import Task
from cohobate.students.vocabulary_trimming import trim
from cohobate.teachers.signal_store.settings import CaptureParams
from cohobate.teachers.signal_store.store import SignalStore
from cohobate.teachers.target_sources import LiveSource, map_vocabulary
from cohobate.teachers.teacher import Teacher
from cohobate.training.batches import MicroBatches
from cohobate.training.model_loss import CausalLMLoss
from tasks.capture.stage import run as capture
from tasks.filter.base_filter import Context, Drop
from tasks.filter.filters import ContaminationFilter
from tasks.train.stage import run as train

HINT = "A small definition of animals and plants.\n"
TOP = {"type": "top_k", "k": 400}


def responses(hinted: tuple[int, ...] = (0, 1, 2, 4, 5)) -> list[Response]:
    """Six rows, of which some have a longer prompt for the teacher."""
    rows = []
    for n in range(6):
        prompt = f"Definition: a small thing {n}\nCategory:"
        rows.append(
            Response(
                id=row_id(prompt),
                prompt=prompt,
                teacher_prompt=f"{HINT}{prompt}" if n in hinted else None,
                answer=" animal" if n % 2 else " a small plant",
                teacher="main",
                finish="stop",
            )
        )
    return rows


def examples(tokenizer: Any, rows: list[Any]) -> list[Example]:
    return examples_of(rows, encode_all(tokenizer, rows))


def logprobs(model: Any, tokenizer: Any, row: Row, prompt: Any) -> torch.Tensor:
    """Return the model's distributions at the answer of a row, behind a prompt."""
    before = tokenizer(prompt)["input_ids"]
    answer = [*tokenizer(row.answer)["input_ids"], tokenizer.eos_token_id]
    with torch.no_grad():
        logits = model(torch.tensor([before + answer])).logits[0]
    return logits[len(before) - 1 : -1].double().log_softmax(-1)


def forward_kl(student: Any, teacher: Any, tokenizer: Any, rows: list[Response]) -> float:
    parts = []
    for row in rows:
        logq = logprobs(student, tokenizer, row, row.prompt)
        logp = logprobs(teacher, tokenizer, row, row.prompt_of_teacher)
        parts.append((logp.exp() * (logp - logq)).sum(-1))
    return float(torch.cat(parts).mean())


def loss_of(student: Any, source: LiveSource, read: list[Example]) -> float:
    batch = MicroBatches(read, [range(len(read))], len(read), source)[0]
    loss, _ = CausalLMLoss(student, [ForwardKL()], 7, source)(
        **batch, divisor=len(batch["labels_N"])
    )
    return float(loss)


def test_rows_without_one_keep_their_bytes(tmp_path: Path, tokenizer: Any) -> None:
    plain = responses(())
    write_rows(tmp_path / "rows.jsonl", plain)
    assert "teacher_prompt" not in (tmp_path / "rows.jsonl").read_text()
    assert plain[0].for_teacher() is plain[0]
    read = examples(tokenizer, plain)
    assert teacher_examples(tokenizer, plain, read) == {}
    assert as_teacher_reads({}, read[0]).ids is not None
    other = examples(tokenizer, responses())
    assert fingerprint(read) != fingerprint(other)
    assert fingerprint([replace(row, teacher_prompt=0) for row in other]) == fingerprint(read)


def test_the_teacher_is_requested_with_its_own_prompt() -> None:
    row = responses()[0]
    plain = row.model_copy(update={"teacher_prompt": None})
    step = template_of("answer").steps[0]
    assert step.prompt_for(Conversation(row, 0), ()) == row.teacher_prompt
    assert step.prompt_for(Conversation(plain, 0), ()) == row.prompt
    worded = Step(text="{{ prompt }}!")
    assert worded.prompt_for(Conversation(row, 0), ()) == f"{row.teacher_prompt}!"
    chat = Step(messages=(Message(role="system", content="Think."), "turns"))
    assert chat.prompt_for(Conversation(row, 0), ())[1].content == row.teacher_prompt  # type: ignore[union-attr]
    (after,) = step.on_reply(Conversation(row, 0), "x", Answer(" animal", "stop", -0.1))
    written = template_of("answer").rows[0].response(after, "main", "keep")
    assert (written.prompt, written.teacher_prompt) == (row.prompt, row.teacher_prompt)


def test_what_the_teacher_saw_of_an_evaluation_prompt_drops_the_row() -> None:
    leaked = "one two three four five six seven eight nine"
    rows = [*responses(), responses()[0].model_copy(update={"teacher_prompt": f"See: {leaked}"})]
    context = Context(
        Task.model_validate({"verifier": {"type": "label"}}), {}, Contamination([leaked])
    )
    verdicts = list(ContaminationFilter().verdicts(rows, context))  # type: ignore[arg-type]
    assert [isinstance(verdict, Drop) for verdict in verdicts] == [False] * 6 + [True]


@pytest.mark.parametrize("prefix", [True, False])
def test_a_live_teacher_reads_its_own_prompts(
    make_model: Any, tokenizer: Any, prefix: bool
) -> None:
    student, teacher = make_model(tokenizer, seed=1, layers=2), make_model(tokenizer, seed=2)
    rows = responses(tuple(range(6)) if prefix else (0, 2))
    read = examples(tokenizer, rows)
    source = LiveSource({"main": teacher}, len(tokenizer), tokenizers={"main": tokenizer})
    source.attach(rows, read)
    expected = forward_kl(student, teacher, tokenizer, rows)
    assert loss_of(student, source, read) == pytest.approx(expected, rel=1e-4)
    # the long beginning that all share is read once
    assert len(source._prefixes["main"]) > len(tokenizer(HINT)["input_ids"]) - 2 or not prefix
    plain = LiveSource({"main": teacher}, len(tokenizer))
    assert loss_of(student, plain, read) != pytest.approx(expected, rel=1e-2)


def test_a_student_of_fewer_tokens_needs_none_of_the_teachers_prompt(
    make_model: Any, tokenizer: Any
) -> None:
    teacher = make_model(tokenizer, seed=2)
    rows = responses()
    plain = [Row(id="1", prompt=row.prompt, answer=row.answer) for row in rows]
    student = make_model(tokenizer, seed=1, layers=2)
    trimmed = trim(student, tokenizer, plain)
    count, ids_V = map_vocabulary(trimmed, tokenizer, "here")
    assert ids_V is not None and count < len(tokenizer)
    source = LiveSource(
        {"main": teacher}, count, teacher_ids={"main": ids_V}, tokenizers={"main": tokenizer}
    )
    read = examples(trimmed, rows)
    source.attach(rows, read)
    parts = []
    for row in rows:
        logq = logprobs(student, trimmed, row, row.prompt)
        logp = logprobs(teacher, tokenizer, row, row.prompt_of_teacher)[:, ids_V].log_softmax(-1)
        parts.append((logp.exp() * (logp - logq)).sum(-1))
    assert loss_of(student, source, read) == pytest.approx(float(torch.cat(parts).mean()), rel=1e-4)


def test_the_students_own_answers_are_scored_behind_the_teachers_prompt(
    make_model: Any, tokenizer: Any
) -> None:
    student, teacher = make_model(tokenizer, seed=1, layers=2), make_model(tokenizer, seed=2)
    rows = responses()
    read = examples(tokenizer, rows)
    source = LiveSource({"main": teacher}, len(tokenizer), tokenizers={"main": tokenizer})
    source.attach(rows, read)
    own = [tokenizer(" person")["input_ids"], tokenizer(" plant plant")["input_ids"]]
    written, expected = [], []
    for row, example, answer in zip(rows, read, own, strict=False):
        start = example.prompt_length
        ids = np.array([*example.ids[:start], *answer], dtype=np.int32)
        written.append(replace(example, ids=ids, spans=((start, len(ids)),), by_student=True))
        sides = []
        for model, prompt in ((student, row.prompt), (teacher, row.prompt_of_teacher)):
            before = tokenizer(prompt)["input_ids"]
            with torch.no_grad():
                logits = model(torch.tensor([before + answer])).logits[0, len(before) - 1 : -1]
            sides.append(logits.double().log_softmax(-1))
        expected.append((sides[1].exp() * (sides[1] - sides[0])).sum(-1))
    assert loss_of(student, source, written) == pytest.approx(
        float(torch.cat(expected).mean()), rel=1e-4
    )
    masked = [replace(one, spans=((len(one.ids),) * 2,)) for one in written]
    batch = MicroBatches([masked[0], written[1]], [range(2)], 2, source)[0]
    assert len(batch["teacher_inputs"]["views"]["main"]["positions_N"]) == len(own[1])


def test_an_answer_of_other_tokens_is_refused_by_name(tokenizer: Any) -> None:
    other = make_other(tokenizer)
    rows = [row.model_copy(update={"teacher_prompt": (Message(role="user", content="Q"),)})
            for row in responses()]  # fmt: skip
    read = examples(other, rows)
    with pytest.raises(UserError, match="other tokens behind the teacher's prompt") as caught:
        teacher_examples(other, rows, read)
    assert rows[0].id in (caught.value.where or "")


def make_other(tokenizer: Any) -> Any:
    """Return the tokenizer with a text's end that is not a turn's."""
    from copy import deepcopy

    other = deepcopy(tokenizer)
    other.eos_token = "<|pad|>"
    return other


def test_several_learnt_turns_are_aligned(tokenizer: Any) -> None:
    turns = [Message(role=role, content=text) for role, text in
             (("user", "a"), ("assistant", "plant"), ("user", "b"))]  # type: ignore[arg-type] # fmt: skip
    system = Message(role="system", content="A small definition")
    row = Response(id="1" * 16, prompt=tuple(turns), teacher_prompt=(system, *turns), learn="all",
                   answer="animal", teacher="main", finish="stop")  # fmt: skip
    (read,) = examples(tokenizer, [row])
    view = teacher_examples(tokenizer, [row], [read])[read.key]
    assert len(view.spans) == 2 and view.labels.tolist() == read.labels.tolist()
    assert len(view.ids) > len(read.ids)


@pytest.fixture
def ready(project: Path, make_model: Any, tokenizer: Any) -> Any:
    write_rows(FILTER / "kept.jsonl", responses())
    rows = [TrainingRow(**r.model_dump(), difficulty=0.0, stage=0) for r in responses()]
    write_rows(CURRICULUM / "train.jsonl", rows)
    teacher = make_model(tokenizer, seed=1)
    checkpoints.save(teacher, tokenizer, ADAPT / "main", {})
    checkpoints.save(make_model(tokenizer, seed=2, layers=2), tokenizer, INIT_STUDENT, {})
    settings = CaptureParams.model_validate(
        {"signals": TOP, "precision": "float32", "threads": 1, "shard_rows": 4}
    )
    capture("main", Teacher(model="tiny"), settings)
    return teacher


def test_signals_are_captured_behind_the_teachers_prompt(ready: Any, tokenizer: Any) -> None:
    store = SignalStore(CAPTURE / "main")
    rows = responses()
    for example, row in zip(store.attach(examples(tokenizer, rows), tokenizer), rows, strict=True):
        targets: Any = store.targets(store.read([example.signal]))
        expected = logprobs(ready, tokenizer, row, row.prompt_of_teacher).gather(-1, targets.ids_NK)
        torch.testing.assert_close(targets.logp_NK.double(), expected, atol=0.15, rtol=0.02)
    changed = [row.model_copy(update={"teacher_prompt": f"Other: {row.prompt}"}) for row in rows]
    for read in (changed, responses(())):
        with pytest.raises(UserError, match="changed since the capture"):
            store.attach(examples(tokenizer, read), tokenizer)


PHASE = {
    "method": "kd",
    "from": "init_student",
    "rows": "data/curriculum/train.jsonl",
    "targets": "data/capture/main",
    "terms": [{"type": "forward_kl"}],
    "updates": 3,
    "batch_size": 6,
    "learning_rate": 0.01,
    "threads": 1,
    "precision": "float32",
}


def first_loss(name: str) -> float:
    with (TRAIN / name / "seed-1/history.csv").open(newline="") as lines:
        return float(next(csv.DictReader(lines))["loss"])


def test_stored_and_live_phases_learn_the_same(ready: Any, tokenizer: Any) -> None:
    live = {"targets": "models/adapt/main", "teacher_precision": "float32"}
    for name, changes in (("stored", {}), ("live", live)):
        train(name, validated(Method, PHASE | changes, "train.kd"), seeds=[1])
    student = checkpoints.load(INIT_STUDENT)[0].float()
    expected = forward_kl(student, ready, tokenizer, responses())
    assert first_loss("live") == pytest.approx(expected, rel=1e-3)
    assert first_loss("stored") == pytest.approx(expected, rel=2e-2)


def test_a_phase_on_policy_reads_prompts_without_answers(ready: Any) -> None:
    rows = [row.model_dump() | {"answer": None} for row in responses()]
    write_rows(Path("data/collect/unlabelled.jsonl"),
               [Row.model_validate({k: v for k, v in row.items() if k in Row.model_fields})
                for row in rows])  # fmt: skip
    fields = PHASE | {
        "method": "on_policy",
        "rows": "data/collect/unlabelled.jsonl",
        "targets": "models/adapt/main",
        "student_text": {"type": "constant", "share": 1},
        "sampling": {"decoding": {"max_tokens": 4, "temperature": 1}},
    }
    train("own", validated(Method, fields, "train.own"), seeds=[1])
    assert json.loads((TRAIN / "own/summary.json").read_text())["rows"] == 6


def test_features_do_not_go_with_it(ready: Any) -> None:
    terms = [{"type": "forward_kl"}, {"type": "hidden_mse", "layers": "last"}]
    fields = PHASE | {"targets": "models/adapt/main", "terms": terms}
    with pytest.raises(UserError, match="feature terms compare states at the same tokens"):
        train("features", validated(Method, fields, "train.features"), seeds=[1])
