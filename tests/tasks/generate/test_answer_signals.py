"""Signals that come with the answers: those of a pass, kept once, and never of other tokens."""

import json
import shutil

import numpy as np
import pytest
import torch

from cohobate.backends import signal_log
from cohobate.backends.ledger import Ledger
from cohobate.backends.ledger_storage import LEDGER
from cohobate.backends.settings import GenerateParams
from cohobate.backends.templates import RowText, Step, Template
from cohobate.backends.transformers import Transformers
from cohobate.data.examples import examples_of, row_key
from cohobate.data.messages import Message
from cohobate.data.records import (
    ADAPT,
    ANSWER_SIGNALS,
    CAPTURE,
    FILTER,
    GENERATE,
    UNLABELLED,
    Response,
    Row,
    read_rows,
    row_id,
    write_rows,
)
from cohobate.data.tokenized import encode_all
from cohobate.generation.requests import Batching, Decoding
from cohobate.models import checkpoints
from cohobate.teachers.signal_store import teacher_pass
from cohobate.teachers.signal_store.settings import CaptureParams
from cohobate.teachers.signal_store.store import SignalStore
from cohobate.teachers.teacher import Teacher
from tasks.capture.stage import run as run_capture
from tasks.generate import stage
from tasks.generate.stage import run

TEACHER = Teacher(model="tiny")
RESPONSES = GENERATE / "main" / "responses.jsonl"
SIGNALS, LOGS = ANSWER_SIGNALS / "main", LEDGER / "signals"
CHAT = (Message(role="user", content="hi"),)


def generate_params(precision="float32", tokens=8, **changes):
    backend = Transformers(precision=precision, batching=Batching(rows=4), threads=1)
    decoding = Decoding(max_tokens=tokens, temperature=changes.pop("temperature", 0))
    return GenerateParams(backend=backend, decoding=decoding, window=16, **changes)


def capture_params(k=4, temperatures=(1.0, 2.0), precision="float32", **changes):
    form = {"type": "top_k", "k": k, "temperatures": temperatures}
    return CaptureParams(signals=form, precision=precision, threads=1, **changes)


@pytest.fixture
def teacher(project, make_model, tokenizer):
    """A teacher that generates a few words and often ends its answer."""
    model = make_model(tokenizer, tie_word_embeddings=False)
    words = [*tokenizer(" animal plant person")["input_ids"], tokenizer.eos_token_id]
    with torch.no_grad():
        model.lm_head.weight[tokenizer.eos_token_id] *= 2
    # they are suppressed when it generates, and have their probability in its signals
    model.generation_config.suppress_tokens = sorted(set(range(len(tokenizer))) - set(words))
    checkpoints.save(model, tokenizer, ADAPT / "main", {"from": "a test"})
    prompts = [f"Definition: a small {'animal ' * (n % 5)}{n}\nCategory:" for n in range(24)]
    write_rows(UNLABELLED, [Row(id=row_id(p), prompt=p) for p in [*prompts, CHAT]])
    return model


def generated(params=None, capture=None):
    run("main", params or generate_params(), None, TEACHER, capture or capture_params())
    return json.loads((SIGNALS / "summary.json").read_text())


def captured(capture=None, keep=None):
    rows = list(read_rows(RESPONSES, Response))
    write_rows(FILTER / "kept.jsonl", rows if keep is None else [r for r in rows if keep(r)])
    run_capture("main", TEACHER, capture or capture_params())
    summary = json.loads((CAPTURE / "main" / "summary.json").read_text())
    return SignalStore(CAPTURE / "main"), summary


def content(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def read(store, tokenizer, rows):
    examples = store.attach(examples_of(rows, encode_all(tokenizer, rows)), tokenizer)
    return store.read([example.signal for example in examples])


def assert_alike(one, other, bound):
    """The same ids but for near ties at the last, the same numbers within `bound` nats."""
    same_N = (one["ids_NK"] == other["ids_NK"]).all(1)
    assert same_N.float().mean() > 0.95
    for name in ("logp_NK", "rest_logprob_NQ"):
        difference = (one[name] - other[name])[same_N].abs()
        assert difference.max() <= bound, name


def finished(row):
    return row.finish == "stop"


def no_pass(monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("the teacher was loaded")

    monkeypatch.setattr(teacher_pass, "load_frozen", refuse)


@pytest.mark.parametrize("tokens", [8, 24])  # decoded together, and in slots of their own
def test_they_are_those_of_a_pass_and_the_teacher_is_not_loaded(
    teacher, tokenizer, monkeypatch, tokens
):
    summary = generated(generate_params(tokens=tokens))
    rows = [row for row in read_rows(RESPONSES, Response) if finished(row)]
    assert 10 < summary["rows"] == len(rows)
    by_pass, about = captured(capture_params(batch_tokens=60, shard_rows=16), finished)
    assert about["rows_with_answers"] == about["rows"] == len(rows)
    shutil.move(SIGNALS, "aside")
    by_pass, about = captured(keep=finished)
    assert about["rows_with_answers"] == 0
    expected = read(by_pass, tokenizer, rows)
    shutil.move("aside", SIGNALS)
    no_pass(monkeypatch)
    copied, _ = captured(keep=finished)
    # a code of the store is a step of its scale, at most 2/255 of the widest gap
    assert_alike(read(copied, tokenizer, rows), expected, 0.02)


def test_exact_numbers_are_those_of_a_pass(teacher, tokenizer, monkeypatch):
    """In float32, before anything is packed."""
    from cohobate.backends import answer_signals
    from cohobate.teachers.signal_store.capture import compute_signals

    packs = []
    real = answer_signals.AnswerSignals.pack

    def keep(self, requests, completions):
        packs.append((self.origin, requests, completions))
        return real(self, requests, completions)

    monkeypatch.setattr(answer_signals.AnswerSignals, "pack", keep)
    generated()
    tokens = 0
    for origin, requests, completions in packs:
        for request, completion in zip(requests, completions, strict=True):
            ids = np.array([*request.ids, *completion.ids], np.int32)
            example = answer_signals.Example.with_answer("row", ids, len(request.ids))
            head = answer_signals.Head.of(teacher, len(tokenizer))
            own = compute_signals(teacher, head, origin, 512, [example])
            for n, token in enumerate(completion.signals):
                tokens += 1
                torch.testing.assert_close(token["logp_NK"], own["logp_NK"][n], atol=2e-5, rtol=0)
                rest = own["rest_logprob_NQ"][n]
                torch.testing.assert_close(token["rest_logprob_NQ"], rest, atol=2e-5, rtol=0)
                assert torch.equal(token["ids_NK"], own["ids_NK"][n])
    assert tokens > 60


def test_a_pass_computes_only_what_has_none(teacher, tokenizer, capfd):
    kept = generated()["rows"]
    store, about = captured()
    assert about["rows"] == 25 and about["rows_with_answers"] == kept < 25
    assert f"the signals of {kept:.0f} of 25 rows came with the answers" in capfd.readouterr().err
    rows = list(read_rows(RESPONSES, Response))
    whole = read(store, tokenizer, rows)
    shutil.rmtree(SIGNALS)
    assert_alike(whole, read(captured()[0], tokenizer, rows), 0.02)


def test_rows_are_changed_between_the_stages(teacher, monkeypatch):
    """A kept row with the key of a stored one and another answer is computed."""
    generated()
    rows = list(read_rows(RESPONSES, Response))
    other = [r.model_copy(update={"answer": " plant plant", "finish": "stop"}) for r in rows[:3]]
    write_rows(FILTER / "kept.jsonl", other)
    run_capture("main", TEACHER, capture_params())
    about = json.loads((CAPTURE / "main" / "summary.json").read_text())
    assert about["rows_with_answers"] == sum(a == b for a, b in zip(other, rows, strict=False))


def test_cut_rows_are_computed(teacher):
    generated()
    size = 12
    _, about = captured(capture_params(max_tokens=size, too_long="truncate_left"), finished)
    rows = [row for row in read_rows(RESPONSES, Response) if finished(row)]
    tokenizer = checkpoints.load_tokenizer(ADAPT / "main")
    short = sum(len(one.ids) <= size for one in encode_all(tokenizer, rows))
    assert about["rows"] == len(rows) and about["rows_with_answers"] == short < len(rows)


class Killed(BaseException):
    pass


@pytest.mark.parametrize("after", [0, 1, 5])
@pytest.mark.parametrize("where", ["before the answers", "within the signals"])
def test_a_run_that_is_killed_and_resumed_writes_the_same(teacher, monkeypatch, after, where):
    generated()
    clean = content(SIGNALS), RESPONSES.read_bytes()
    shutil.rmtree(LEDGER)
    kind = Ledger if where == "before the answers" else signal_log.SignalLog
    real, left = kind.append, [after]

    def dies(self, batch):
        if not left[0]:
            if kind is signal_log.SignalLog:
                with self.storage.path.open("ab") as file:
                    file.write(b"COB1 the beginning of a batch")
            raise Killed
        left[0] -= 1
        real(self, batch)

    monkeypatch.setattr(kind, "append", dies)
    with pytest.raises(Killed):
        generated()
    monkeypatch.setattr(kind, "append", real)
    generated()
    assert (content(SIGNALS), RESPONSES.read_bytes()) == clean
    # and from the ledger alone
    generated()
    assert (content(SIGNALS), RESPONSES.read_bytes()) == clean


def test_answers_of_an_old_ledger_are_not_generated_again(teacher, monkeypatch):
    generated(generate_params(signals="off"))
    before = RESPONSES.read_bytes()
    assert not LOGS.exists() and list(SIGNALS.iterdir()) == [SIGNALS / "summary.json"]
    monkeypatch.setattr(stage.TeacherRun, "_open", None)
    assert generated() == {"rows": 0, "tokens": 0}
    assert RESPONSES.read_bytes() == before
    assert captured()[1]["rows_with_answers"] == 0


@pytest.mark.parametrize("damage", ["tail", "header", "records", "all"])
def test_a_damaged_log_loses_rows_and_nothing_else(teacher, tokenizer, damage, capfd):
    whole = generated()["rows"]
    (path,) = LOGS.iterdir()
    data = bytearray(path.read_bytes())
    third = [n for n in range(len(data)) if data[n : n + 4] == b"COB1"][2]
    if damage == "tail":
        del data[-5:]
    elif damage == "header":
        data[third + 30] ^= 1
    elif damage == "records":
        data[third - 1] ^= 1
    else:
        data = bytearray(b"something else")
    path.write_bytes(data)
    rows = generated()["rows"]
    assert rows < whole and (rows > 0) == (damage != "all")
    assert ("incomplete or damaged" in capfd.readouterr().err) == (damage != "records")
    about = captured(keep=finished)[1]
    assert (about["rows"], about["rows_with_answers"]) == (whole, rows)
    # what was cut off does not stand in the way of what comes
    assert generated()["rows"] == rows


def test_fewer_ids_come_of_more_and_more_of_a_pass(teacher, tokenizer, monkeypatch):
    kept = generated(capture=capture_params(k=16))["rows"]
    assert generated(capture=capture_params(k=32))["rows"] == 0
    assert generated(capture=capture_params(k=4, temperatures=(2.0, 3.0)))["rows"] == 0
    narrow = capture_params(k=4, temperatures=(2.0,))
    assert generated(capture=narrow)["rows"] == kept
    rows = [row for row in read_rows(RESPONSES, Response) if finished(row)]
    with monkeypatch.context() as patch:
        no_pass(patch)
        copied = read(captured(narrow, finished)[0], tokenizer, rows)
        # a store of more ids serves a capture of fewer too
        generated(capture=capture_params(k=16))
        again = read(captured(narrow, finished)[0], tokenizer, rows)
    assert copied["ids_NK"].shape[1] == 4 and copied["rest_logprob_NQ"].shape[1] == 1
    assert torch.equal(again["ids_NK"], copied["ids_NK"])
    shutil.rmtree(SIGNALS)
    assert_alike(copied, read(captured(narrow, finished)[0], tokenizer, rows), 0.03)


def test_another_number_format_or_form_is_computed(teacher):
    generated()
    assert captured(capture_params(precision="bfloat16"), finished)[1]["rows_with_answers"] == 0
    hidden = CaptureParams(signals={"type": "hidden"}, precision="float32", threads=1)
    assert captured(hidden, finished)[1]["rows_with_answers"] == 0
    assert generated(capture=hidden) == {"rows": 0, "tokens": 0}
    # the log has float32 alone
    assert generated(generate_params("bfloat16"))["rows"] > 0
    assert generated()["rows"] > 0


def test_other_weights_have_signals_of_their_own(teacher, make_model, tokenizer):
    generated()
    shutil.move(SIGNALS, "aside")
    checkpoints.save(make_model(tokenizer, seed=5), tokenizer, ADAPT / "main", {})
    generated()
    shutil.rmtree(SIGNALS)
    shutil.move("aside", SIGNALS)
    assert captured()[1]["rows_with_answers"] == 0


def test_without_signals_nothing_is_kept(teacher):
    run("main", generate_params(), None, Teacher(model="tiny", signals=False), capture_params())
    assert not LOGS.exists() and list(SIGNALS.iterdir()) == [SIGNALS / "summary.json"]


def test_samples_have_signals_each(teacher):
    kept = generated(generate_params(temperature=1, samples=3))["rows"]
    _, about = captured(keep=finished)
    assert about["rows"] == about["rows_with_answers"] == kept > 30


REASONED = Template(
    about="a test",
    steps=(Step(name="draft"), Step(name="answer", text="{{ prompt }} {{ draft }} so:")),
    rows=(
        RowText(answer="{{ answer }}"),
        RowText(prompt="{{ prompt }} {{ draft }} so:", answer="{{ answer }}", target="again"),
        RowText(answer="{{ draft }}", target="draft"),
        RowText(prompt="{{ prompt }} other", answer="{{ draft }}", target="other"),
    ),
)


def test_rows_of_several_steps_have_them_where_their_tokens_are_those_generated(
    teacher, monkeypatch
):
    monkeypatch.setattr(stage, "template_of", lambda name: REASONED)
    write_rows(UNLABELLED, [row for row in read_rows(UNLABELLED, Row) if row.prompt != CHAT])
    generated()
    rows = list(read_rows(RESPONSES, Response))
    store = SignalStore(SIGNALS)
    examples = examples_of(rows, encode_all(checkpoints.load_tokenizer(ADAPT / "main"), rows))
    stored = [row for row, at in zip(rows, store.find(examples).tolist(), strict=True) if at >= 0]
    # the last answer has some where it is what was generated as the first, too
    drafts = {row.id: row.answer for row in rows if row.target == "draft"}
    assert all(row.answer == drafts[row.id] for row in stored if row.target is None)
    assert {row.target for row in stored} - {None} == {"again", "draft"}
    assert len({row_key(row) for row in stored}) == len(stored)


def test_a_conversation_has_them_with_its_reasoning_and_without_it_none(
    teacher, tokenizer, monkeypatch
):
    """The answer is generated between think tags; dropped, its tokens are not those generated."""
    generated()
    chat = [r for r in read_rows(RESPONSES, Response) if r.prompt == CHAT]
    find = SignalStore(SIGNALS).find
    (at,) = find(examples_of(chat, encode_all(tokenizer, chat)))
    assert (at >= 0) == finished(chat[0])
    with_reasoning = [chat[0].model_copy(update={"reasoning": "Hm."})]
    (at,) = find(examples_of(with_reasoning, encode_all(tokenizer, with_reasoning)))
    assert at < 0


@pytest.mark.parametrize("known", [False, True])
def test_they_are_of_the_prompt_that_the_teacher_reads(teacher, tokenizer, monkeypatch, known):
    if known:  # the log has signals behind the students' prompts
        generated()
    rows = [row for row in read_rows(UNLABELLED, Row) if isinstance(row.prompt, str)]
    own = [row.model_copy(update={"teacher_prompt": f"animal {row.prompt}"}) for row in rows]
    write_rows(UNLABELLED, own)
    summary = generated()
    kept = [row for row in read_rows(RESPONSES, Response) if finished(row)]
    assert 5 < summary["rows"] == len(kept) and all(row.teacher_prompt for row in kept)
    shutil.move(SIGNALS, "aside")
    expected = read(captured(keep=finished)[0], tokenizer, kept)
    shutil.move("aside", SIGNALS)
    no_pass(monkeypatch)
    assert_alike(read(captured(keep=finished)[0], tokenizer, kept), expected, 0.02)
