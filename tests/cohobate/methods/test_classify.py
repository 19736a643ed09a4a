"""A classifier as student: its labels, its loss, its training, and what stages get of it."""

import json
from math import exp, inf
from pathlib import Path
from typing import Any

import pytest
import torch

from cohobate import params
from cohobate.data.records import Row, row_id, write_rows
from cohobate.errors import UserError
from cohobate.evaluation.model_under_test import ClassifierModel, open_model
from cohobate.generation.requests import Decoding
from cohobate.methods.train import Method, train_seeds
from cohobate.models import checkpoints
from cohobate.scoring.labels import LabelSet
from cohobate.scoring.verifiers import Label, Task
from cohobate.students.base_initialization import PinnedModels
from cohobate.students.initialization import StudentInit
from cohobate.training.classifier_loss import ClassifierLoss
from tests import tiny_models

LABELLED = Path("data/collect/labelled.jsonl")
TASK = Task(verifier=Label(type="label"))
TEXTS = {"fur paw": " Animal", "beast fur": " animal", "leaf root": " plant", "stem": " plant"}


def rows_of(texts: dict[str, str]) -> list[Row]:
    return [Row(id=row_id(text), prompt=text, answer=answer) for text, answer in texts.items()]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    tokenizer = tiny_models.make_tokenizer()
    tiny_models.make_encoder(tokenizer).save_pretrained("encoder")
    tokenizer.save_pretrained("encoder")
    write_rows(LABELLED, rows_of(TEXTS))
    init = params.validated(
        StudentInit, {"type": "classifier", "model": "encoder", "dropout": 0}, "init_student"
    )
    _, record = init.preview(None)
    model, tokenizer = init.build({}, PinnedModels({}, record), TASK)
    checkpoints.save(model, tokenizer, Path("models/init_student"), {})
    return tmp_path


def phase(**changes: Any) -> Any:
    fields = {"method": "classify", "from": "init_student", "rows": str(LABELLED)}
    fields |= {"targets": str(LABELLED), "updates": 30, "batch_size": 4, "learning_rate": 0.01}
    fields |= {"freeze": {"embeddings": False}, "threads": 1, "precision": "float32"}
    return params.validated(Method, fields | changes, "train.x")


def test_a_classifier_learns_and_gives_labels_with_their_probability(project: Path) -> None:
    train_seeds(Path("models/train/x"), phase(), [1])
    trained = Path("models/train/x/seed-1")
    tested = open_model(trained, "float32")
    assert isinstance(tested, ClassifierModel) and not tested.scores_tokens
    rows = rows_of(TEXTS)
    answers = dict(tested.answers([row.full_prompt for row in rows], Decoding()))
    assert [answers[n].text for n in range(4)] == ["animal", "animal", "plant", "plant"]
    losses = list(tested.answer_losses([*rows, Row(id="0", prompt="a", answer=" stone")]))
    for n in range(4):
        assert answers[n].logprob == pytest.approx(-losses[n], abs=1e-5)
        assert exp(-losses[n]) > 0.5
    assert losses[4] == inf
    config = json.loads((trained / "config.json").read_text())
    assert config["id2label"] == {"0": "animal", "1": "plant"}
    assert config["label_verifier"] == {"after": "", "casefold": True, "type": "label"}


def test_rows_whose_answer_is_no_label_are_left_out_and_counted(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_rows(Path("data/more.jsonl"), rows_of({"fur": " animal", "rock": " stone", "x": " anim"}))
    train_seeds(
        Path("models/train/x"), phase(rows="data/more.jsonl", targets="data/more.jsonl"), [1]
    )
    summary = json.loads(Path("models/train/x/summary.json").read_text())
    assert summary["rows"] == 1 and summary["labels without a row, seed 1"] == 1
    reason = "rows left out: the answer is none of the labels, seed 1"
    assert summary[reason] == 2  # the beginning of a label is another answer
    assert "no row has the label plant" in "".join(capsys.readouterr())


def test_the_same_seed_gives_the_same_bytes(project: Path) -> None:
    for name in ("x", "y"):
        train_seeds(Path("models/train") / name, phase(updates=3), [1])
    first, second = (Path(f"models/train/{name}/seed-1/model.safetensors") for name in "xy")
    assert first.read_bytes() == second.read_bytes()


def test_the_loss_is_that_of_transformers_whatever_the_padding(project: Path) -> None:
    model, tokenizer = checkpoints.load(Path("models/init_student"))
    examples = phase().labelled_examples(
        tokenizer, rows_of(TEXTS), LabelSet.of_config(model.config), "x"
    )
    from cohobate.training.batches import MicroBatches

    batch = MicroBatches(examples.examples, [range(4)], 4, None)[0]
    loss, losses_NF = ClassifierLoss(model)(**batch, divisor=4)
    encoded = tokenizer(list(TEXTS), padding=True, return_tensors="pt")
    labels = torch.tensor([0, 0, 1, 1])
    inputs = {name: encoded[name] for name in ("input_ids", "attention_mask")}
    assert float(loss) == pytest.approx(float(model(**inputs, labels=labels).loss), abs=1e-5)
    assert losses_NF.shape == (4, 1)


def test_soft_targets_of_the_students_own_distribution_cost_nothing(project: Path) -> None:
    model, _ = checkpoints.load(Path("models/init_student"))
    ids_BS, positions_N = torch.tensor([[9, 10, 11]]), torch.tensor([2])
    logp_BC = model(input_ids=ids_BS).logits.log_softmax(-1).detach()
    fields = {"ids_BS": ids_BS, "positions_N": positions_N, "divisor": 1}
    for t in (1.0, 3.0):
        loss, _ = ClassifierLoss(model, soft=1.0, temperature=t)(
            **fields, labels_N=torch.tensor([-1]), teacher_inputs={"labels_BC": logp_BC}
        )
        assert float(loss) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("answers", [[" a"] * 4, [" a", " b", " c", " d"]])
def test_rows_without_a_closed_set_of_answers_are_refused(answers: list[str]) -> None:
    rows = [Row(id=str(n), prompt=str(n), answer=answer) for n, answer in enumerate(answers)]
    with pytest.raises(UserError, match="distinct answers"):
        LabelSet.of_rows(rows, Label(type="label"), "rows")


def test_a_causal_model_is_no_encoder(project: Path) -> None:
    tokenizer = tiny_models.make_tokenizer()
    tiny_models.make_model(tokenizer).save_pretrained("causal")
    tokenizer.save_pretrained("causal")
    init = params.validated(StudentInit, {"type": "classifier", "model": "causal"}, "init_student")
    with pytest.raises(UserError, match="is no encoder"):
        init.preview(None)


def test_the_export_opens_with_a_pipeline(project: Path) -> None:
    from transformers import pipeline

    classifier = pipeline("text-classification", "models/init_student")
    (answer,) = classifier("fur paw")
    assert answer["label"] in ("animal", "plant")
