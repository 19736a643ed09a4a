"""Vocabulary: rows are cut as before, other text still comes through, and all comes back."""

import pytest
import torch

from cohobate.data.records import (
    ADAPT,
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
from cohobate.data.tokenized import encode_all
from cohobate.errors import UserError
from cohobate.models import checkpoints
from cohobate.models.vocabularies import ids_within
from cohobate.students.vocabulary_trimming import restore, trim, trimmed_tokenizer
from cohobate.teachers.signal_store.settings import CaptureParams
from cohobate.teachers.teacher import Teacher
from tasks.capture.stage import run as capture

TEXTS = ["a small plant", "Definition: a person", " animal animal", "small Category:"]
ROWS = [Row(id=row_id(t), prompt=t, answer=" animal") for t in TEXTS]
STRANGE = "naïve 漢字 \t «Zebra» 2+2=4\n Definition: plants <|end|>"


@pytest.fixture
def whole(model, tokenizer, tmp_path):
    folder = tmp_path / "whole"
    checkpoints.save(model, tokenizer, folder, {})
    return folder


def ids_of(tokenizer, text: str) -> list[int]:
    return tokenizer(text)["input_ids"]


def test_rows_are_cut_as_before_and_other_text_into_smaller_pieces(model, tokenizer) -> None:
    trimmed = trim(model, tokenizer, ROWS[:2])
    assert 256 < len(trimmed) < len(tokenizer)
    back = ids_within(tokenizer.get_vocab(), trimmed.get_vocab())
    assert list(back) == sorted(back)
    for text in TEXTS[:2]:
        assert back[ids_of(trimmed, text)].tolist() == ids_of(tokenizer, text)
    for text in (*TEXTS, STRANGE):
        assert trimmed.decode(ids_of(trimmed, text)) == text
    assert len(ids_of(trimmed, " animal")) > len(ids_of(tokenizer, " animal")) - 1
    assert trimmed.eos_token == tokenizer.eos_token
    assert trimmed.chat_template == tokenizer.chat_template
    assert trimmed.eos_token_id == back.tolist().index(tokenizer.eos_token_id)


def test_the_model_says_of_the_kept_ids_what_it_said(model, tokenizer) -> None:
    ids = torch.tensor([ids_of(tokenizer, TEXTS[0])])
    with torch.no_grad():
        before = model(ids).logits
    trimmed = trim(model, tokenizer, ROWS)
    back = torch.from_numpy(ids_within(tokenizer.get_vocab(), trimmed.get_vocab()))
    with torch.no_grad():
        after = model(torch.tensor([ids_of(trimmed, TEXTS[0])])).logits
    torch.testing.assert_close(after, before[..., back])
    assert model.config.vocab_size == len(trimmed) == len(model.lm_head.weight)
    assert model.config.eos_token_id == trimmed.eos_token_id
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize("tied", [True, False])
def test_the_whole_vocabulary_comes_back_and_the_answers_stay(
    make_model, tokenizer, tmp_path, tied
) -> None:
    model = make_model(tokenizer, tie_word_embeddings=tied)
    checkpoints.save(model, tokenizer, tmp_path / "whole", {})
    options = {"max_new_tokens": 6, "do_sample": False}

    def answers(model, tokenizer) -> list[str]:
        examples = []
        for text in TEXTS:
            ids = torch.tensor([ids_of(tokenizer, text)])
            made = model.generate(ids, attention_mask=torch.ones_like(ids), **options)
            examples.append(tokenizer.decode(made[0]))
        return examples

    trimmed = trim(model, tokenizer, ROWS)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(1.1)  # as if it had learnt
    checkpoints.save(model, trimmed, tmp_path / "trimmed", {})
    student, its = checkpoints.load(tmp_path / "trimmed")
    expected = answers(student, its)
    full = restore(student, its, tmp_path / "whole")
    assert full.get_vocab() == tokenizer.get_vocab()
    checkpoints.save(student, full, tmp_path / "restored", {})
    restored, its = checkpoints.load(tmp_path / "restored")
    assert answers(restored, its) == expected
    assert ids_of(its, STRANGE) == ids_of(tokenizer, STRANGE)


def test_it_is_given_back_only_by_the_model_it_came_from(
    model, tokenizer, make_tokenizer, make_model, tmp_path
) -> None:
    other = make_tokenizer(special=["<|pad|>", "<|end|>"], vocabulary=262)
    checkpoints.save(make_model(other), other, tmp_path / "other", {})
    trimmed = trim(model, tokenizer, ROWS)
    with pytest.raises(UserError, match="part of"):
        restore(model, trimmed, tmp_path / "other")


def test_a_vocabulary_that_is_not_merged_is_refused(tokenizer) -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"a": 0, "?": 1}, unk_token="?")),
        eos_token="?",
    )
    with pytest.raises(UserError, match="WordLevel vocabulary cannot be trimmed"):
        trimmed_tokenizer(words, {0})


@pytest.mark.parametrize(
    ("signals", "term"),
    [
        ({"type": "top_k", "k": 64}, {"type": "reverse_kl"}),
        ({"type": "sampled", "draws": 2048}, {"type": "forward_kl"}),
        ({"type": "hidden"}, {"type": "jensen_shannon"}),
    ],
    ids=["top_k", "sampled", "hidden"],
)
def test_a_trimmed_student_learns_from_the_whole_teachers_signals(
    project, make_model, tokenizer, signals, term
) -> None:
    from pydantic import TypeAdapter

    from cohobate.methods.train import Method
    from tasks.train.stage import run

    kept = [
        Response(**r.model_dump(exclude={"origin"}), teacher="main", finish="stop") for r in ROWS
    ]
    write_rows(FILTER / "kept.jsonl", kept)
    lessons = [TrainingRow(**row.model_dump(), difficulty=0.0, stage=0) for row in kept]
    write_rows(CURRICULUM / "train.jsonl", lessons)
    teacher = make_model(tokenizer, seed=1)
    checkpoints.save(teacher, tokenizer, ADAPT / "main", {})
    capture("main", Teacher(model="tiny"), CaptureParams(signals=signals, precision="float32"))
    student = make_model(tokenizer, seed=2, layers=2)
    checkpoints.save(student, trim(student, tokenizer, kept), INIT_STUDENT, {})

    def distance(folder) -> float:
        model, its = checkpoints.load(folder)
        back = torch.from_numpy(ids_within(tokenizer.get_vocab(), its.get_vocab()))
        total = 0.0
        for row in encode_all(its, kept):
            ids = torch.tensor([row.ids[:-1]])
            with torch.no_grad():
                p = teacher(back[ids]).logits[0, -2:, back].log_softmax(-1)
                q = model(ids).logits[0, -2:].log_softmax(-1)
            total += float((p.exp() * (p - q)).sum())
        return total

    phase = {
        "method": "kd", "from": "init_student", "rows": "data/curriculum/train.jsonl",
        "targets": "data/capture/main", "updates": 40, "batch_size": 4, "learning_rate": 0.01,
        "threads": 1, "precision": "float32", "freeze": {"embeddings": False}, "terms": [term],
    }  # fmt: skip
    run("kd", TypeAdapter(Method).validate_python(phase), seeds=[1])
    assert distance(TRAIN / "kd/seed-1") < distance(INIT_STUDENT) / 2
