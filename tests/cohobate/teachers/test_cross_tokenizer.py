"""A teacher of another tokenizer: from a store, and over the student's own text."""

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from cohobate.data.examples import examples_of
from cohobate.data.generated_text import text_spans
from cohobate.data.messages import Message
from cohobate.data.records import (
    ADAPT,
    CAPTURE,
    CURRICULUM,
    FILTER,
    INIT_STUDENT,
    TRAIN,
    Response,
    TrainingRow,
    row_id,
    write_rows,
)
from cohobate.data.tokenized import encode_all, token_offsets
from cohobate.errors import UserError
from cohobate.losses.uld import Uld
from cohobate.methods.train import Method
from cohobate.models import checkpoints
from cohobate.teachers.cross_tokenizer import CrossTokenizerSource
from cohobate.teachers.signal_store.settings import CaptureParams
from cohobate.teachers.teacher import Teacher
from cohobate.teachers.token_alignment import TokenAlignment
from cohobate.training.batches import MicroBatches
from cohobate.training.model_loss import CausalLMLoss
from tasks.capture.stage import run as capture
from tasks.preflight.phases import check_phases
from tasks.train.stage import run
from tests.tiny_models import SPECIAL

PHASE = {
    "method": "kd",
    "from": "init_student",
    "rows": "data/curriculum/train.jsonl",
    "targets": "data/capture/main",
    "terms": [{"type": "uld"}],
    "teacher_precision": "float32",
    "updates": 20,
    "batch_size": 5,
    "learning_rate": 0.01,
    "threads": 1,
    "precision": "float32",
}
LIVE = {"targets": "models/adapt/main"}
OWN = {k: v for k, v in PHASE.items() if k != "teacher_precision"} | LIVE | {
    "method": "on_policy",
    "student_text": {"type": "constant", "share": 1},
    "sampling": {"decoding": {"max_tokens": 6, "temperature": 1}},
}  # fmt: skip


def kept(teacher_prompt: bool = False) -> list[Response]:
    rows = []
    for n in range(10):
        prompt = f"Definition: a small thing {n}\nCategory:"
        answer = " animal ü plant" if n % 3 else " a small person"
        own = f"A small definition.\n{prompt}" if teacher_prompt else None
        rows.append(
            Response(id=row_id(prompt), prompt=prompt, teacher_prompt=own, answer=answer,
                     teacher="main", finish="stop")
        )  # fmt: skip
    return rows


def written(rows: list[Response]) -> None:
    write_rows(FILTER / "kept.jsonl", rows)
    lessons = [TrainingRow(**row.model_dump(), difficulty=0.0, stage=0) for row in rows]
    write_rows(CURRICULUM / "train.jsonl", lessons)


def stored(**changes: Any) -> None:
    settings = {"precision": "float32", "threads": 1, "keep_tokenizer": True}
    capture("main", Teacher(model="tiny"), CaptureParams.model_validate(settings | changes))


def losses(name: str) -> list[float]:
    with (TRAIN / name / "seed-1/history.csv").open(newline="") as lines:
        return [float(line["loss"]) for line in csv.DictReader(lines)]


def phase(**changes: Any) -> Any:
    return TypeAdapter(Method).validate_python(PHASE | changes)


def of_gemmas_kind(make_tokenizer: Any) -> Any:
    """Build a tokenizer as Gemma's is: `▁` for blanks, bytes where a character has no token."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, trainers
    from tokenizers import pre_tokenizers as pre
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.pre_tokenizer = pre.Split(" ", "merged_with_previous")
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    names = [*SPECIAL, "<unk>", *(f"<0x{n:02X}>" for n in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=names, show_progress=False)
    letters = "abcdefghijklmnopqrstuvwxyz CD:0123456789"
    backend.train_from_iterator(
        [" animal plant person Definition: a small thing", letters], trainer
    )
    plain = make_tokenizer()
    options = {"eos_token": plain.eos_token, "pad_token": plain.pad_token, "unk_token": "<unk>"}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, chat_template=plain.chat_template, **options
    )
    assert isinstance(backend.get_added_tokens_decoder()[0], AddedToken)
    return tokenizer


@pytest.fixture(params=["bytes", "gemma"])
def tokenizers(make_tokenizer: Any, request: pytest.FixtureRequest) -> tuple[Any, Any]:
    if request.param == "gemma":
        return make_tokenizer(), of_gemmas_kind(make_tokenizer)
    return make_tokenizer(), make_tokenizer(vocabulary=280, special=SPECIAL[::-1])


@pytest.fixture
def ready(project: Any, make_model: Any, tokenizers: tuple[Any, Any]) -> tuple[Any, Any]:
    ours, theirs = tokenizers
    written(kept())
    checkpoints.save(make_model(theirs, seed=1), theirs, ADAPT / "main", {})
    checkpoints.save(make_model(ours, seed=2, layers=2), ours, INIT_STUDENT, {})
    return tokenizers


@pytest.mark.parametrize("own_prompts", [False, True])
@pytest.mark.parametrize("form", [{"type": "hidden"}, {"type": "top_k", "k": 500}])
def test_a_store_gives_the_loss_of_the_live_teacher(
    ready: Any, form: dict[str, Any], own_prompts: bool
) -> None:
    written(kept(own_prompts))
    stored(signals=form)
    run("stored", phase(), seeds=[1])
    run("live", phase(**LIVE), seeds=[1])
    # as far as the store rounds; what is rounded grows from update to update
    assert losses("stored")[:2] == pytest.approx(losses("live")[:2], rel=0.01)
    assert losses("stored") == pytest.approx(losses("live"), rel=0.15)
    assert np.mean(losses("stored")[-3:]) < 0.8 * np.mean(losses("stored")[:3])


def test_a_few_ids_teach_too(ready: Any) -> None:
    stored(signals={"type": "top_k", "k": 64})
    run("stored", phase(), seeds=[1])
    assert np.mean(losses("stored")[-3:]) < 0.8 * np.mean(losses("stored")[:3])


def test_what_a_store_cannot_give_is_refused(ready: Any, make_tokenizer: Any) -> None:
    stored(signals={"type": "sampled", "draws": 8})
    with pytest.raises(UserError, match="uld has no unbiased estimate"):
        run("stored", phase(), seeds=[1])
    stored(signals={"type": "top_k", "k": 8}, keep_tokenizer=False)
    assert not list(CAPTURE.glob("main/tokenizer*"))
    with pytest.raises(UserError, match="does not have the teacher's tokenizer") as caught:
        run("stored", phase(), seeds=[1])
    assert "capture.keep_tokenizer=true" in (caught.value.fix or "")
    stored(signals={"type": "top_k", "k": 8})
    with pytest.raises(UserError, match="at temperature 2"):
        run("stored", phase(terms=[{"type": "uld", "temperature": 2}]), seeds=[1])
    changed = [row.model_copy(update={"answer": " plant"}) for row in kept()]
    lessons = [TrainingRow(**row.model_dump(), difficulty=0.0, stage=0) for row in changed]
    write_rows(CURRICULUM / "train.jsonl", lessons)
    with pytest.raises(UserError, match="token ids have changed"):
        run("stored", phase(), seeds=[1])


def test_preflight_says_that_the_tokenizer_is_needed() -> None:
    settings, teachers = CaptureParams(), {"main": Teacher(model="tiny")}
    with pytest.raises(UserError, match="needs the teacher's tokenizer in the store"):
        check_phases({"train.kd": phase(**{"from": "init_student"})}, teachers, settings.signals)
    check_phases({"train.kd": phase()}, teachers, settings.signals, keep_tokenizer=True)


def test_the_student_learns_on_its_own_text(ready: Any) -> None:
    own = TypeAdapter(Method).validate_python(OWN | {"updates": 40})
    run("own", own, seeds=[1])
    # its own texts change from update to update: compared on the same given ones
    assert given_loss(TRAIN / "own/seed-1") < 0.95 * given_loss(INIT_STUDENT)


def given_loss(folder: Path) -> float:
    """The loss of a student over the kept answers."""
    (student, ours), (teacher, theirs) = checkpoints.load(folder), checkpoints.load(ADAPT / "main")
    rows = kept()
    examples = examples_of(rows, encode_all(ours, rows))
    source = CrossTokenizerSource(teacher, theirs, ours)
    source.attach(rows, examples)
    batch = MicroBatches(examples, [range(len(rows))], len(rows), source)[0]
    return float(
        CausalLMLoss(student, [Uld(type="uld")], 7, source)(**batch, divisor=1)[0].detach()
    )


def test_given_and_own_text_may_be_mixed(ready: Any) -> None:
    mixed = OWN | {"student_text": {"type": "constant", "share": 0.5}, "updates": 8}
    run("mixed", TypeAdapter(Method).validate_python(mixed), seeds=[1])
    assert np.isfinite(losses("mixed")).all()


def test_own_answers_get_the_loss_of_the_same_text_given(
    make_model: Any, tokenizers: tuple[Any, Any]
) -> None:
    ours, theirs = tokenizers
    student, teacher = make_model(ours, seed=2, layers=2), make_model(theirs, seed=1)
    for rows in (kept(), kept(teacher_prompt=True), chats()):
        given = examples_of(rows, encode_all(ours, rows))
        own = [replace(row, by_student=True) for row in given]
        figures = []
        for read in (given, own):
            source = CrossTokenizerSource(teacher, theirs, ours)
            source.attach(rows, given, rollouts=True)
            batch = MicroBatches(read, [range(len(read))], len(read), source)[0]
            loss_fn = CausalLMLoss(student, [Uld(type="uld")], 7, source)
            figures.append(float(loss_fn(**batch, divisor=30)[0].detach()))
        assert figures[0] == pytest.approx(figures[1], rel=1e-6)


def chats() -> list[Response]:
    turns = (Message(role="user", content="a small thing"),)
    row = {"id": "1" * 16, "prompt": turns, "teacher": "main", "finish": "stop"}
    return [Response.model_validate(row | {"answer": "animal ü plant"})]


def test_tokens_are_shared_by_their_bytes_and_by_what_they_close() -> None:
    def tokenizer(words: list[str], decoder: Any, eos: str) -> Any:
        vocabulary = {word: n for n, word in enumerate([eos, *words])}
        backend = Tokenizer(models.WordLevel(vocabulary, unk_token=eos))
        backend.decoder = decoder
        return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=eos)

    ours = tokenizer(["Ġanimal", "ü", "Ã¼", "plant"], decoders.ByteLevel(), "<|im_end|>")
    theirs = tokenizer(["plant", "ü", "▁animal", "▁of"], decoders.Metaspace(), "<eos>")
    shared = zip(*(ids.tolist() for ids in TokenAlignment(theirs, ours).shared_ids), strict=True)
    names = {
        (ours.convert_ids_to_tokens(n), theirs.convert_ids_to_tokens(other)) for n, other in shared
    }
    assert names == {
        ("<|im_end|>", "<eos>"),
        ("Ġanimal", "▁animal"),
        ("Ã¼", "ü"),
        ("plant", "plant"),
    }


def test_masked_and_unfinished_answers(make_model: Any, tokenizers: tuple[Any, Any]) -> None:
    ours, theirs = tokenizers
    rows = kept()
    given = examples_of(rows, encode_all(ours, rows))
    cut = replace(given[0], ids=given[0].ids[:-2], by_student=True,
                  spans=((given[0].prompt_length, len(given[0].ids) - 2),))  # fmt: skip
    masked = replace(given[1], spans=((len(given[1].ids),) * 2,), by_student=True)
    alignment = TokenAlignment(theirs, ours)
    alignment.add_prompts(rows, given)
    own = alignment.of(cut)
    assert len(own.student_groups) == cut.length
    assert own.student_groups[-1] == own.teacher_groups[-1]
    assert theirs.eos_token_id not in own.example.ids
    nothing = alignment.of(masked)
    assert nothing.student_groups == nothing.teacher_groups == []
    assert nothing.example.length == 0
    groups = alignment.groups([nothing, own, nothing])
    assert groups["group_N"].tolist() == own.student_groups
    source = CrossTokenizerSource(make_model(theirs, seed=1), theirs, ours)
    source.attach(rows, given, rollouts=True)
    batch = MicroBatches([masked, cut], [range(2)], 2, source)[0]
    loss_fn = CausalLMLoss(make_model(ours, seed=2), [Uld(type="uld")], 7, source)
    assert torch.isfinite(loss_fn(**batch, divisor=9)[0])


@pytest.mark.parametrize(
    "text", [" animal ü plant", "漢字 naïve — ok", "a", "", "tabs\t\n  lines", "😀😀x"]
)
def test_spans_of_generated_ids_are_a_tokenizers_offsets(tokenizers: Any, text: str) -> None:
    for tokenizer in tokenizers:
        ids = tokenizer(text)["input_ids"]
        spans = text_spans(tokenizer, ids, tokenizer("b: ")["input_ids"])
        assert spans.text == text
        ends = [end for _, end in spans.spans]
        assert ends == [end for _, end in token_offsets(tokenizer, text)]


def test_ids_that_no_tokenizer_would_choose_keep_their_places(tokenizers: Any) -> None:
    ours, _ = tokenizers
    # " animal" letter by letter, an incomplete character, and a letter
    letters = [ours(one)["input_ids"][0] for one in " animal"]
    half = ours("ü")["input_ids"][:1]
    read = text_spans(ours, [*letters, *half, *letters[1:2]])
    assert read.text.startswith(" animal") and len(read.spans) == 9
    assert read.spans[:7] == [(n, n + 1) for n in range(7)]
    assert read.spans[7] == read.spans[8] == (7, len(read.text))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"terms": [{"type": "uld"}, {"type": "reverse_kl"}]}, "give uld alone"),
        ({"too_long": "truncate_left"}, "too_long must be drop"),
    ],
)
def test_mistakes_in_params_are_explained(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TypeAdapter(Method).validate_python(OWN | changes)
