"""Capture: the store says what the teacher says, whatever the batches."""

import json

import pytest
import torch

from cohobate.data.examples import examples_of
from cohobate.data.messages import Message
from cohobate.data.records import ADAPT, CAPTURE, FILTER, Response, row_id, write_rows
from cohobate.data.row_length import LengthLimit
from cohobate.data.tokenized import encode_all
from cohobate.errors import UserError
from cohobate.models import checkpoints
from cohobate.teachers.signal_store.settings import CaptureParams
from cohobate.teachers.signal_store.store import SignalStore
from cohobate.teachers.teacher import Teacher
from tasks.capture.stage import run

TEACHER = Teacher(model="tiny")
WORDS = ["animal", "plant", "a small person", "category", "definition of plants"]


def responses() -> list[Response]:
    prompts = [f"Definition: {' '.join(WORDS[: n % 5 + 1])} {n}\nCategory:" for n in range(12)]
    return [
        Response(
            id=row_id(prompt),
            prompt=prompt,
            answer=" animal" if n % 2 else " a small plant",
            teacher="main",
            finish="stop",
        )
        for n, prompt in enumerate(prompts)
    ]


@pytest.fixture
def teacher(project, model, tokenizer):
    write_rows(FILTER / "kept.jsonl", responses())
    checkpoints.save(model, tokenizer, ADAPT / "main", {"from": "a test"})
    return model


def captured(**changes) -> SignalStore:
    signals = {"type": "top_k", "k": 4, "temperatures": changes.pop("temperatures", (1.0,))}
    options = {"signals": signals, "precision": "float32", "threads": 1, "shard_rows": 5}
    run("main", TEACHER, CaptureParams(**(options | changes)))
    return SignalStore(CAPTURE / "main")


def expected(model, tokenizer, row: Response, temperature: float = 1.0) -> torch.Tensor:
    """The model's own logits at each token of the answer, one row alone."""
    prompt = tokenizer(row.prompt)["input_ids"]
    answer = [*tokenizer(row.answer)["input_ids"], tokenizer.eos_token_id]
    with torch.no_grad():
        logits = model(torch.tensor([prompt + answer])).logits[0]
    return (logits[len(prompt) - 1 : -1].double() / temperature).log_softmax(-1)


def stored(store: SignalStore, tokenizer, row: Response):
    (example,) = store.attach(examples_of([row], encode_all(tokenizer, [row])), tokenizer)
    return store.targets(store.read([example.signal]))


@pytest.mark.parametrize("batch_tokens", [1, 60, 2048])
def test_the_store_says_what_the_teacher_says(teacher, tokenizer, batch_tokens) -> None:
    store = captured(batch_tokens=batch_tokens, chunk_tokens=3, temperatures=(1.0, 2.0))
    for row in responses():
        signals = stored(store, tokenizer, row)
        for temperature in (1.0, 2.0):
            logp = expected(teacher, tokenizer, row, temperature)
            at = signals.outcomes(temperature, "bucket").double()
            others = logp.scatter(-1, signals.ids_NK, -torch.inf).logsumexp(-1, keepdim=True)
            reference = torch.cat([logp.gather(-1, signals.ids_NK), others], -1)
            torch.testing.assert_close(at, reference, rtol=3e-3, atol=3e-3)
        likeliest = expected(teacher, tokenizer, row).topk(4).indices
        assert torch.equal(signals.ids_NK, likeliest.sort().values)


def test_every_learnt_turn_of_a_conversation_is_stored(teacher, tokenizer) -> None:
    turns = ("user", "a small animal"), ("assistant", "a plant"), ("user", "person")
    prompt = tuple(Message(role=role, content=content) for role, content in turns)
    row = Response(
        id="chat", prompt=prompt, answer="animal", learn="all", teacher="main", finish="stop"
    )
    write_rows(FILTER / "kept.jsonl", [*responses(), row])
    store = captured()
    (encoded,) = encode_all(tokenizer, [row])
    with torch.no_grad():
        logp = teacher(torch.tensor([encoded.ids])).logits[0].double().log_softmax(-1)
    positions = [n - 1 for start, end in encoded.spans for n in range(start, end)]
    assert len(encoded.spans) == 2 and len(positions) == len(stored(store, tokenizer, row).ids_NK)
    likeliest = logp[positions].topk(4).indices.sort().values
    assert torch.equal(stored(store, tokenizer, row).ids_NK, likeliest)
    with pytest.raises(UserError, match="chat/main/0"):
        stored(store, tokenizer, row.model_copy(update={"learn": None}))


def test_raw_text_is_stored_at_every_token(teacher, tokenizer) -> None:
    text = "a small plant of a category"
    row = Response(
        id=row_id("", text), prompt="", answer=text, cut=True, teacher="main", finish="stop"
    )
    write_rows(FILTER / "kept.jsonl", [row])
    ids = [tokenizer.eos_token_id, *tokenizer(text)["input_ids"]]
    with torch.no_grad():
        logp = teacher(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    likeliest = logp[:-1].topk(4).indices.sort().values
    assert torch.equal(stored(captured(), tokenizer, row).ids_NK, likeliest)


@pytest.mark.parametrize("side", ["truncate_left", "truncate_right"])
def test_rows_that_are_too_long_are_stored_as_they_are_cut(teacher, tokenizer, side, capfd) -> None:
    rows = responses()
    lengths = sorted(len(one.ids) for one in encode_all(tokenizer, rows))
    size = lengths[-1] - 3
    store = captured(max_tokens=size, too_long=side)
    longer = sum(length > size for length in lengths)
    assert f"{longer} of 12 rows" in capfd.readouterr().err
    limit = LengthLimit(size, side)
    cut = examples_of(rows, limit.apply(encode_all(tokenizer, rows)))
    assert len(store.attach(cut, tokenizer)) == len(cut) == 12 - limit.dropped
    with pytest.raises(UserError, match="need the same max_tokens and too_long"):
        store.attach(examples_of(rows, encode_all(tokenizer, rows)), tokenizer)
    with pytest.raises(UserError, match=r"all 12 rows have more than 2 tokens.*\n.*max_tokens"):
        captured(max_tokens=2)


def test_stored_hidden_rows_are_the_whole_distribution(teacher, tokenizer) -> None:
    store = captured(signals={"type": "hidden"})
    for row in responses():
        stored_hidden = stored(store, tokenizer, row)
        logp = stored_hidden.head.logits(stored_hidden.hidden_ND).log_softmax(-1)
        reference = expected(teacher, tokenizer, row)
        assert (reference.exp() * (reference - logp)).sum(-1).max() < 1e-5


def test_draws_are_the_rows_own_whatever_the_batches(teacher, tokenizer) -> None:
    draws = {"type": "sampled", "draws": 500}
    runs = []
    for batch_tokens, shard_rows in ((1, 100), (2048, 5)):
        store = captured(signals=draws, batch_tokens=batch_tokens, shard_rows=shard_rows)
        runs.append([stored(store, tokenizer, row) for row in responses()])
    for row, one, other in zip(responses(), *runs, strict=True):
        assert torch.equal(one.ids_NK, other.ids_NK)
        assert torch.equal(one.share_NK, other.share_NK)
        share = torch.zeros(len(one.ids_NK), len(tokenizer)).scatter_add_(
            -1, one.ids_NK, one.share_NK
        )
        assert (share - expected(teacher, tokenizer, row).exp()).abs().max() < 0.005
    store = captured(signals=draws | {"seed": 1})
    again = [stored(store, tokenizer, row) for row in responses()]
    pairs = zip(again, runs[0], strict=True)
    assert any(not torch.equal(a.share_NK, b.share_NK) for a, b in pairs)


def test_every_token_of_every_answer_is_stored(teacher, tokenizer) -> None:
    store = captured()
    answers = [len(tokenizer(row.answer)["input_ids"]) + 1 for row in responses()]
    assert (store.origin.rows, store.origin.tokens) == (12, sum(answers))
    assert store.origin.teacher == checkpoints.fingerprint(ADAPT / "main")
    summary = json.loads((CAPTURE / "main" / "summary.json").read_text())
    assert summary["tokens"] == sum(answers) and 0 < summary["mean_mass_of_top_k"] < 1
    assert summary["bytes_per_token"] == store.origin.record.itemsize


def test_the_same_inputs_give_the_same_bytes(teacher) -> None:
    runs = []
    for _ in range(2):
        captured(precision="bfloat16")
        runs.append({p.name: p.read_bytes() for p in sorted((CAPTURE / "main").iterdir())})
    assert runs[0] == runs[1] and len(runs[0]) == 8


def test_more_ids_than_there_are_stores_them_all(teacher, tokenizer) -> None:
    store = captured(signals={"type": "top_k", "k": 10_000})
    assert store.origin.form.k == len(tokenizer)
    row = responses()[0]
    at = stored(store, tokenizer, row).outcomes(1.0, "bucket")
    assert at[:, -1].exp().max() < 1e-12
    torch.testing.assert_close(at.exp().sum(-1), torch.ones(len(at)))


def test_no_rows_is_a_readable_error(teacher) -> None:
    write_rows(FILTER / "kept.jsonl", [])
    with pytest.raises(UserError, match="no rows to capture"):
        captured()
    assert not (CAPTURE / "main").exists()


def test_a_teacher_without_signals_is_left_in_peace(project):
    run("main", Teacher(model="tiny", signals=False), CaptureParams())
    assert sorted(path.name for path in (CAPTURE / "main").iterdir()) == ["summary.json"]
