"""A masked model as student: its masks, its loss, its training, and the classifier it becomes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cohobate import params
from cohobate.data.records import Row, row_id, write_rows
from cohobate.errors import UserError
from cohobate.evaluation.masked_model import MaskedModel
from cohobate.evaluation.model_under_test import ClassifierModel, open_model
from cohobate.generation.requests import Decoding
from cohobate.methods.train import Method, train_seeds
from cohobate.models import checkpoints
from cohobate.scoring.verifiers import Label, Task
from cohobate.students.base_initialization import PinnedModels
from cohobate.students.initialization import StudentInit
from cohobate.training.batches import MicroBatches
from cohobate.training.masked_loss import MaskedLoss
from cohobate.training.masking import MaskedTargets, Masker
from tests import tiny_models

TEXT = Path("data/collect/unlabelled.jsonl")
LABELLED = Path("data/collect/labelled.jsonl")
TASK = Task(verifier=Label(type="label"))
ANSWERS = {"fur paw": " animal", "beast fur": " animal", "leaf root": " plant", "stem": " plant"}
SIZES = {"num_hidden_layers": 1, "hidden_size": 16, "intermediate_size": 32}


def rows_of(texts: list[str]) -> list[Row]:
    return [Row(id=row_id(text), prompt=text) for text in texts]


def student(**fields: Any) -> None:
    """Write models/init_student."""
    init = params.validated(
        StudentInit,
        {"type": "masked", "model": "encoder", "rows": str(LABELLED)} | fields,
        "init_student",
    )
    _, record = init.preview(None)
    model, tokenizer = init.build({}, PinnedModels({}, record), TASK)
    assert model.num_parameters() >= record["parameters"] > 0
    checkpoints.save(model, tokenizer, Path("models/init_student"), {})


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    tokenizer = tiny_models.make_encoder_tokenizer()
    tiny_models.make_encoder(tokenizer, layers=4).save_pretrained("encoder")
    tokenizer.save_pretrained("encoder")
    answered = [Row(id=row_id(t), prompt=t, answer=a) for t, a in ANSWERS.items()]
    write_rows(LABELLED, answered)
    write_rows(
        TEXT, rows_of([f"{word} a small animal {n}" for n, word in enumerate("abcdefghijkl")])
    )
    student(layers=[0, 3])
    return tmp_path


def phase(**changes: Any) -> Any:
    fields = {"method": "mlm", "from": "init_student", "rows": str(TEXT), "targets": str(TEXT)}
    fields |= {"updates": 8, "batch_size": 4, "learning_rate": 0.01, "threads": 1}
    fields |= {"freeze": {"embeddings": False}, "precision": "float32"}
    return params.validated(Method, fields | changes, "train.x")


def masked(tokenizer: Any, share: float = 0.15, seed: int = 1) -> Masker:
    return Masker.of(tokenizer, share, seed)


def test_masks_depend_on_row_seed_and_copy_alone() -> None:
    tokenizer = tiny_models.make_encoder_tokenizer()
    ids = [1, *range(40, 140), 1]  # special ones around
    masker = masked(tokenizer)
    first = masker.mask("row", ids)
    assert np.array_equal(first.ids, masked(tokenizer).mask("row", ids).ids)
    assert len(first.positions) == 15 and first.labels.tolist() == [ids[n] for n in first.positions]
    others = [masker.mask("other", ids), masker.mask("row", ids, 1)]
    others += [masked(tokenizer, seed=2).mask("row", ids)]
    assert all(not np.array_equal(first.positions, other.positions) for other in others)
    untouched = np.delete(first.ids, first.positions)
    assert untouched.tolist() == [n for n in ids if n not in first.labels]


def test_most_chosen_tokens_are_masked_and_special_ones_never() -> None:
    tokenizer = tiny_models.make_encoder_tokenizer()
    ids = [*range(10), *range(40, 140)]
    texts = [masked(tokenizer, 0.5).mask(str(n), ids) for n in range(40)]
    places = [(text, n, m) for text in texts for m, n in enumerate(text.positions)]
    new = np.array([text.ids[n] for text, n, _ in places])
    old = np.array([text.labels[m] for text, _, m in places])
    assert (new == tokenizer.mask_token_id).mean() == pytest.approx(0.8, abs=0.03)
    assert (new == old).mean() == pytest.approx(0.1, abs=0.03)
    assert not set(old) & set(tokenizer.all_special_ids)
    (alone,) = [masked(tokenizer).mask("x", tokenizer.all_special_ids)]
    assert not len(alone.positions)


def test_a_tokenizer_without_a_mask_is_refused() -> None:
    with pytest.raises(UserError, match="no mask token"):
        Masker.of(tiny_models.make_tokenizer(), 0.15, 1)


def batch_of(tokenizer: Any) -> tuple[Any, dict[str, Any]]:
    rows = rows_of(["a small animal", "plant", "person, a small plant of the animal"])
    data = phase().masked_examples(tokenizer, rows, masked(tokenizer, 0.4), "x")
    return data, MicroBatches(data.examples, [range(3)], 3, MaskedTargets(data.labels))[0]


def test_the_loss_is_that_of_transformers_whatever_the_padding(project: Path) -> None:
    model, tokenizer = checkpoints.load(Path("models/init_student"))
    data, batch = batch_of(tokenizer)
    hard = phase().responses
    loss, losses_NF = MaskedLoss(model, hard)(**batch, divisor=len(batch["positions_N"]))
    width = batch["ids_BS"].shape[1]
    labels_BS = torch.full_like(batch["ids_BS"], -100)
    labels_BS.view(-1)[batch["positions_N"]] = batch["teacher_inputs"]["labels_N"]
    mask_BS = torch.arange(width) < batch["teacher_inputs"]["lengths_B"][:, None]
    theirs = model(input_ids=batch["ids_BS"], attention_mask=mask_BS.long(), labels=labels_BS)
    assert float(loss) == pytest.approx(float(theirs.loss), abs=1e-5)
    # a row alone has the same losses as in a batch
    first = MicroBatches(data.examples, [[0]], 1, MaskedTargets(data.labels))[0]
    _, alone_NF = MaskedLoss(model, hard)(**first, divisor=1)
    torch.testing.assert_close(alone_NF, losses_NF[: len(alone_NF)])


TERMS = [
    {"type": "forward_kl", "temperature": 2.0},
    {"type": "hidden_cosine", "layers": "last"},
    {"type": "hidden_mse", "layers": [[0, 0]]},
    {"type": "attention", "distance": "mse", "heads": "match"},
]
DISTILLED = {"targets": "models/adapt/masked", "terms": TERMS, "attention": "eager"}


def test_a_model_is_its_own_perfect_teacher(project: Path) -> None:
    checkpoints.copy(Path("models/init_student"), Path("models/adapt/masked"), {})
    learnt = phase(**DISTILLED, teacher_precision="float32")
    model, tokenizer = checkpoints.load(Path("models/init_student"), attention="eager")
    from cohobate.methods.encoder_teacher import EncoderTeacher

    teacher = EncoderTeacher.load(learnt, 1, tokenizer, needs_tokens=True)
    matching = teacher.matching(model, learnt.features, 1)
    _, batch = batch_of(tokenizer)
    loss, losses_NF = MaskedLoss(model, learnt.responses, teacher.model, matching)(
        **batch, divisor=1
    )
    assert losses_NF.shape[1] == 4 and float(loss) == pytest.approx(0, abs=1e-4)


def test_it_learns_and_a_classifier_starts_from_it(project: Path) -> None:
    checkpoints.copy(Path("models/init_student"), Path("models/adapt/masked"), {})
    student(sizes=SIZES)  # random, of another width
    train_seeds(Path("models/train/general"), phase(**DISTILLED, updates=30, masks=2), [1])
    general = Path("models/train/general/seed-1")
    tested = open_model(general, "float32")
    assert isinstance(tested, MaskedModel) and not tested.scores_tokens
    (first, *_) = dict(tested.answers(["a small", "b"], Decoding(), threads=2)).values()
    assert first.text and first.logprob and first.logprob < 0
    losses = list(
        tested.answer_losses([Row(id="0", prompt="", answer="a plant"), rows_of(["x"])[0]])
    )
    assert losses[0] > 0 and losses[1] == float("inf")
    lines = (general / "history.csv").read_text().splitlines()
    assert lines[0].startswith("step,loss,forward_kl,hidden_cosine,hidden_mse,attention")
    assert float(lines[-1].split(",")[1]) < 0.8 * float(lines[1].split(",")[1])
    summary = json.loads(Path("models/train/general/summary.json").read_text())
    assert summary["rows held out, seed 1"] == 1 and summary["rows"] == 11
    classify = {"method": "classify", "from": "train/general", "updates": 40}
    answers = {"rows": str(LABELLED), "targets": str(LABELLED)}
    train_seeds(Path("models/train/x"), phase(**classify, **answers), [1])
    classifier = open_model(Path("models/train/x/seed-1"), "float32")
    assert isinstance(classifier, ClassifierModel)
    labels = dict(classifier.answers(list(ANSWERS), Decoding()))
    assert [labels[n].text for n in range(4)] == [a.strip() for a in ANSWERS.values()]


def test_a_masked_model_without_labels_starts_no_classifier(project: Path) -> None:
    student(rows="data/preflight")
    classify = phase(method="classify", rows=str(LABELLED), targets=str(LABELLED))
    with pytest.raises(UserError, match="names no labels"):
        classify.load_initial_model(1)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"terms": [{"type": "forward_kl"}]}, "needs a teacher in memory"),
        ({"targets": "models/adapt/masked"}, "no term needs a teacher"),
        ({"terms": [{"type": "value_relation"}], "targets": "models/x"}, "is none of"),
        ({**DISTILLED, "attention": "auto"}, "attention: eager"),
        ({"adapter": {"type": "lora"}}, "no adapter"),
    ],
)
def test_what_does_not_fit_is_refused(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        phase(**fields)


def test_a_causal_model_and_another_tokenizer_are_refused(project: Path) -> None:
    tokenizer = tiny_models.make_tokenizer()
    checkpoints.save(
        tiny_models.make_model(tokenizer), tokenizer, Path("models/train/c/seed-1"), {}
    )
    with pytest.raises(UserError, match="predicts no masked tokens"):
        phase(**{"from": "train/c"}).load_initial_model(1)
    with pytest.raises(UserError, match="predicts no masked tokens"):
        train_seeds(Path("models/train/x"), phase(**DISTILLED | {"targets": "models/train/c"}), [1])
    other = tiny_models.make_tokenizer(
        vocabulary=280, special=[*tiny_models.SPECIAL, "<|mask|>"], mask_token="<|mask|>"
    )
    tiny_models.make_encoder(other).save_pretrained("other")
    other.save_pretrained("other")
    from cohobate.models.encoder_heads import with_token_head

    model, tokenizer, is_new = with_token_head(Path("other"), 0)
    assert is_new
    checkpoints.save(model, tokenizer, Path("models/adapt/masked"), {})
    with pytest.raises(UserError, match="different tokenizers"):
        train_seeds(Path("models/train/x"), phase(**DISTILLED), [1])


def test_words_are_replaced_by_others_the_same_way_each_time(project: Path) -> None:
    from cohobate.data.examples import Example
    from cohobate.methods.word_replacement import WordReplacement

    tokenizer = tiny_models.make_encoder_tokenizer()
    ids = tokenizer(" animal plant, person small animalx 7")["input_ids"]
    examples = [
        Example.with_answer(str(n), np.array([*ids, n], dtype=np.int32), len(ids)) for n in range(3)
    ]
    table_VD = torch.randn(len(tokenizer), 8, generator=torch.Generator().manual_seed(0))
    replaced = WordReplacement(copies=3, share=0.5, nearest=2)
    several = replaced.augmented(examples, table_VD, tokenizer, 1)
    again = replaced.augmented(examples[::-1], table_VD, tokenizer, 1)
    by_key = {one.key: one.ids.tolist() for one in again}
    assert {one.key: one.ids.tolist() for one in several} == by_key and len(by_key) > 6
    words = {tokenizer.convert_tokens_to_ids(f"Ġ{word}") for word in ("animal", "plant", "person")}
    changed = [
        (one.ids[n], ids[n]) for one in several for n in range(len(ids)) if one.ids[n] != ids[n]
    ]
    assert changed and {int(old) for _, old in changed} <= words | {
        tokenizer.convert_tokens_to_ids("Ġsmall")
    }
    assert all(tokenizer.convert_ids_to_tokens(int(new)).startswith("Ġ") for new, _ in changed)
    assert {int(one.labels[0]) for one in several} == {0, 1, 2}
