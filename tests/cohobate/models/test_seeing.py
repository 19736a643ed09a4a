"""A model that sees gives the same numbers here as by transformers' own processor and model."""

from pathlib import Path

import pytest
import torch

from cohobate.data.images import load_image
from cohobate.data.messages import ImagePrompt
from cohobate.data.records import IMAGES, Row
from cohobate.data.tokenized import encode_all
from cohobate.errors import UserError
from cohobate.evaluation.answer_logprobs import AnswerLogprobs
from cohobate.evaluation.model_under_test import open_model
from cohobate.generation.requests import Decoding
from cohobate.models import checkpoints
from cohobate.students.seeing import choose_image_token, vision_parameters, with_vision
from cohobate.students.vision_tower import VisionTower
from tests import tiny_models
from tests.tiny_pictures import picture

VISION = VisionTower(image_size=16, patch_size=8, layers=1, width=16, heads=2)


@pytest.fixture
def student(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint of a tiny model that sees, and six pictures of rows."""
    monkeypatch.chdir(tmp_path)
    tokenizer = tiny_models.make_tokenizer()
    text = tiny_models.make_model(tokenizer, layers=2)
    token = choose_image_token(tokenizer)
    before = text.num_parameters()
    model = with_vision(text, tokenizer, VISION, token, seed=0)
    assert model.num_parameters() == before + vision_parameters(VISION, 32)
    checkpoints.save(model, tokenizer, Path("student"), {})
    for number, category in enumerate(["animal", "plant", "person"] * 2):
        picture(IMAGES / f"{number}.png", category, number)
    return Path("student")


def rows() -> list[Row]:
    prompts = ["Category:", "A small category:", "Category:", "Definition: a Category:"]
    images = [("0.png",), ("1.png",), ("2.png",), ("3.png", "4.png")]
    pairs = zip(prompts, images, strict=True)
    return [
        Row(id=str(n), prompt=prompt, images=own, answer=" animal")
        for n, (prompt, own) in enumerate(pairs)
    ]


def by_transformers(folder: Path, row: Row, tokens: int) -> tuple[list[int], float]:
    """Return greedy ids, and the mean loss of the answer, as a user of transformers gets them."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    pictures = [load_image(name) for name in row.images]
    text = processor.image_token * len(pictures) + row.prompt
    inputs = processor(images=pictures, text=text, return_tensors="pt")
    inputs = {name: inputs[name] for name in ("input_ids", "pixel_values")}
    with torch.no_grad():
        whole = model.generate(**inputs, max_new_tokens=tokens, do_sample=False)
        answer = torch.tensor(
            [[*processor.tokenizer(row.answer).input_ids, processor.tokenizer.eos_token_id]]
        )
        ids = torch.cat([inputs["input_ids"], answer], -1)
        logits = model(input_ids=ids, pixel_values=inputs["pixel_values"]).logits[0]
    start = inputs["input_ids"].shape[1]
    loss = torch.nn.functional.cross_entropy(logits[start - 1 : -1], answer[0])
    return whole[0, start:].tolist(), float(loss)


@pytest.mark.parametrize("tokens", [4, 24])
def test_answers_and_losses_are_those_of_transformers(student: Path, tokens: int) -> None:
    tested = open_model(student, "float32")
    prompts = [row.full_prompt for row in rows()]
    answers = dict(tested.answers(prompts, Decoding(max_tokens=tokens)))
    losses = list(tested.answer_losses(rows()))
    texts = set()
    for n, row in enumerate(rows()):
        ids, loss = by_transformers(student, row, tokens)
        text = tested.tokenizer.decode(ids, skip_special_tokens=False)
        assert text.startswith(answers[n].text)
        assert losses[n] == pytest.approx(loss, abs=2e-5)
        texts.add(losses[n])
    assert len(texts) == 4  # the picture counts


def test_rows_that_differ_in_their_picture_alone_have_their_own_figures(student: Path) -> None:
    tested = open_model(student, "float32")
    alike = [Row(id=n, prompt="Category:", images=(f"{n}.png",), answer=" animal") for n in "012"]
    logprobs = AnswerLogprobs(tested.model, tested.tokenizer)
    figures = logprobs.answer_log_probs(list(encode_all(tested.tokenizer, alike))).reshape(3, -1)
    assert len({tuple(row.tolist()) for row in figures}) == 3
    expected = [-float(row.mean()) for row in figures]
    assert list(tested.answer_losses(alike)) == pytest.approx(expected, abs=1e-5)


def test_a_prompt_is_equal_only_with_its_pictures() -> None:
    one, same, other = (ImagePrompt("a", (name,)) for name in ("x", "x", "y"))
    assert one == same and hash(one) == hash(same)
    assert one != other
    assert one != str(one)
    import pickle

    assert pickle.loads(pickle.dumps(one)) == one


def test_pictures_are_refused_by_a_model_of_text_and_a_text_with_their_token(
    student: Path,
) -> None:
    tokenizer = tiny_models.make_tokenizer()
    checkpoints.save(tiny_models.make_model(tokenizer, layers=1), tokenizer, Path("text"), {})
    with pytest.raises(UserError, match="does not see"):
        dict(open_model(Path("text"), "float32").answers([rows()[0].full_prompt], Decoding()))
    with pytest.raises(UserError, match="no teacher_prompt"):
        rows()[0].for_teacher()
    tested = open_model(student, "float32")
    token = tested.model.processor.image_token
    with pytest.raises(UserError, match="stands for a part of a picture"):
        dict(tested.answers([ImagePrompt(f"{token} Category:", ("0.png",))], Decoding()))
    with pytest.raises(UserError, match="cannot be read"):
        dict(tested.answers([ImagePrompt("Category:", ("absent.png",))], Decoding()))
