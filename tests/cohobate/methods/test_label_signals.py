"""Students that learn a teacher's distribution over labels: a classifier, and a causal LM."""

import json
from math import log
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cohobate import params
from cohobate.data.records import Response, Row, row_id, write_rows
from cohobate.errors import UserError
from cohobate.evaluation.model_under_test import open_model
from cohobate.generation.requests import Decoding
from cohobate.methods.train import Method, train_seeds
from cohobate.models import checkpoints
from cohobate.scoring.labels import LabelSet, LabelTexts
from cohobate.scoring.verifiers import Label
from cohobate.teachers.signal_store.label_capture import Scored, _publish, _write_shard
from cohobate.teachers.signal_store.label_form import StoredLabels
from cohobate.teachers.signal_store.label_store import LabelOrigin
from tests import tiny_models

ROWS, STORE = Path("data/curriculum/train.jsonl"), Path("data/capture/main")
PROMPTS = ["fur paw", "beast fur", "leaf root", "stem"]
NAMES = ("animal", "plant")
P_RC = np.array([[0.9, 0.1], [0.7, 0.3], [0.2, 0.8], [0.4, 0.6]])


def rows(answers: list[str]) -> list[Response]:
    return [
        Response(id=row_id(p), prompt=p, answer=answer, teacher="main", finish="stop")
        for p, answer in zip(PROMPTS, answers, strict=True)
    ]


def write_labels(
    names: tuple[str, ...] = NAMES, count: int = 4, p_RC: Any = P_RC, store: Path = STORE
) -> None:
    """Write a store of the first prompts' distributions, as `capture` does."""
    labels = LabelTexts(LabelSet(names, Label(type="label")), tuple(f" {n}" for n in names))
    origin = LabelOrigin.of(StoredLabels(type="labels"), "a test", labels, "float32")
    scored = Scored(rows([" animal"] * 4)[:count], np.log(p_RC[:count]), {}, [])
    _write_shard(Path("shard"), scored)
    _publish([Path("shard")], store, origin)


@pytest.fixture
def classifier(project: Path) -> Path:
    from transformers import AutoModelForSequenceClassification

    tokenizer = tiny_models.make_tokenizer()
    tiny_models.make_encoder(tokenizer).save_pretrained("encoder")
    model = AutoModelForSequenceClassification.from_pretrained("encoder", num_labels=2)
    LabelSet(NAMES, Label(type="label")).write_into(model.config)
    checkpoints.save(model, tokenizer, Path("models/init_student"), {})
    write_rows(ROWS, rows([" animal", " animal", " plant", " plant"]))
    write_labels()
    return project


def phase(**changes: Any) -> Any:
    fields = {"method": "classify", "from": "init_student", "rows": str(ROWS)}
    fields |= {"targets": str(STORE), "updates": 40, "batch_size": 4, "learning_rate": 0.01}
    fields |= {"freeze": {"embeddings": False}, "threads": 1, "precision": "float32"}
    return params.validated(Method, fields | changes, "train.x")


def probabilities(folder: str = "models/train/x/seed-1") -> torch.Tensor:
    tested = open_model(Path(folder), "float32")
    asked = [Row(id="0", prompt=p, answer=" animal") for p in PROMPTS]
    losses = torch.tensor(list(tested.answer_losses(asked)))
    return (-losses).exp()


def test_a_classifier_learns_the_teachers_distribution(classifier: Path) -> None:
    train_seeds(Path("models/train/x"), phase(), [1])
    learnt = probabilities()
    torch.testing.assert_close(learnt, torch.tensor(P_RC[:, 0]).float(), atol=0.1, rtol=0)


def test_rows_without_a_label_are_learnt_from_signals_alone(classifier: Path) -> None:
    write_rows(ROWS, rows([" odd", " odd", " odd", " odd"]))
    train_seeds(Path("models/train/x"), phase(), [1])
    assert json.loads(Path("models/train/x/summary.json").read_text())["rows"] == 4
    assert probabilities()[0] > 0.8
    with pytest.raises(UserError, match="no row has an answer"):
        train_seeds(Path("models/train/y"), phase(soft=0.5), [1])


def test_the_history_has_both_terms(classifier: Path) -> None:
    train_seeds(Path("models/train/x"), phase(updates=2, soft=0.25, temperature=2.0), [1])
    header, first, *_ = Path("models/train/x/seed-1/history.csv").read_text().splitlines()
    assert header.startswith("step,loss,hard,soft,")
    fields = dict(zip(header.split(","), first.split(","), strict=True))
    total = float(fields["hard"]) + float(fields["soft"])
    assert float(fields["loss"]) == pytest.approx(total, abs=1e-5)  # six digits are written
    # an untrained head is near even: (1 − soft) · log 2
    assert float(fields["hard"]) == pytest.approx(0.75 * log(2), abs=0.1)


def test_a_trained_classifier_teaches_another(classifier: Path) -> None:
    train_seeds(Path("models/train/x"), phase(), [1])
    train_seeds(Path("models/train/y"), phase(targets="models/train/x"), [1])
    taught = probabilities("models/train/y/seed-1")
    torch.testing.assert_close(taught, probabilities(), atol=0.05, rtol=0)


def test_a_store_of_other_labels_is_refused(classifier: Path) -> None:
    write_labels(("animal", "stone"))
    with pytest.raises(UserError, match="'plant' is a label of the student alone"):
        train_seeds(Path("models/train/x"), phase(), [1])


def test_rows_that_were_not_captured_are_refused(classifier: Path) -> None:
    write_labels(count=3)
    with pytest.raises(UserError, match="no signals of 1 of 4 rows"):
        train_seeds(Path("models/train/x"), phase(), [1])
    missing = {"key": row_id(PROMPTS[3]), "reason": "none of the teacher's answers is a label"}
    (STORE / "missing.jsonl").write_text(json.dumps(missing) + "\n")
    train_seeds(Path("models/train/x"), phase(updates=1), [1])
    summary = json.loads(Path("models/train/x/summary.json").read_text())
    assert summary["rows"] == 3
    assert summary["rows left out: they have no signals, seed 1"] == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"targets": "data/filter/kept.jsonl"},
        {"targets": str(ROWS), "soft": 0.5},
        {"targets": str(ROWS), "temperature": 2.0},
        {"soft": 1.5},
    ],
)
def test_settings_that_mean_nothing_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        phase(**changes)


def test_hard_labels_have_the_params_that_they_had() -> None:
    assert not {"soft", "temperature"} & phase(targets=str(ROWS)).params().keys()


@pytest.fixture
def causal(project: Path, model: Any, tokenizer: Any) -> Any:
    checkpoints.save(model, tokenizer, Path("models/init_student"), {})
    write_rows(ROWS, rows([" animal", " animal", " plant", " plant"]))
    write_labels()
    return tokenizer


def kd(**changes: Any) -> Any:
    fields = {"method": "kd", "terms": [{"type": "forward_kl"}], "learning_rate": 0.003}
    return phase(**(fields | changes))


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_a_causal_student_learns_the_labels_texts(causal: Any, temperature: float) -> None:
    terms = [{"type": "forward_kl", "temperature": temperature}]
    train_seeds(Path("models/train/x"), kd(terms=terms, updates=80), [1])
    tested = open_model(Path("models/train/x/seed-1"), "float32")
    given = dict(tested.answers(PROMPTS, Decoding(max_tokens=8, temperature=0)))
    assert [given[n].text for n in range(4)] == [" animal", " animal", " plant", " plant"]
    p = {}
    for name in NAMES:
        asked = [Row(id="0", prompt=text, answer=f" {name}") for text in PROMPTS]
        units = torch.tensor(tested.answer_units(asked))
        p[name] = (-torch.tensor(list(tested.answer_losses(asked))) * units).exp()
    share = p["animal"] / (p["animal"] + p["plant"])
    torch.testing.assert_close(share, torch.tensor(P_RC[:, 0]).float(), atol=0.12, rtol=0)


def test_a_causal_student_leaves_out_answers_that_are_no_label(causal: Any) -> None:
    write_rows(ROWS, rows([" animal", " Animal", " odd", " plant"]))
    train_seeds(Path("models/train/x"), kd(updates=1), [1])
    assert json.loads(Path("models/train/x/summary.json").read_text())["rows"] == 2
    write_rows(ROWS, rows([" odd"] * 4))
    with pytest.raises(UserError, match="to the letter"):
        train_seeds(Path("models/train/x"), kd(updates=1), [1])


def test_a_label_that_begins_as_another_ends_by_its_closing_token(causal: Any) -> None:
    from cohobate.data.examples import examples_of
    from cohobate.data.tokenized import encode_all
    from cohobate.teachers.label_source import StoredLabelSource
    from cohobate.teachers.signal_store.label_store import LabelStore

    write_labels(("plant", "plants"))
    write_rows(ROWS, rows([" plant"] * 4))
    read = rows([" plant"] * 4)
    source = StoredLabelSource(LabelStore(STORE))
    examples = source.attach(read, examples_of(read, encode_all(causal, read)), causal)
    given = source.collate(examples[:1])
    # until they part both are one; then .9 ends here
    assert given["logp_NK"].exp()[:-1, 0] == pytest.approx(1, abs=1e-6)
    last = dict(zip(given["ids_NK"][-1].tolist(), given["logp_NK"][-1].exp(), strict=True))
    assert float(last[causal.eos_token_id]) == pytest.approx(0.9, abs=2e-3)
    assert all(len(set(ids)) == len(ids) for ids in given["ids_NK"].tolist())


OTHER_RC = np.array([[0.5, 0.5], [0.1, 0.9], [0.6, 0.4], [0.2, 0.8]])


def test_the_mean_of_stores_is_by_weight_and_by_the_labels_names(causal: Any) -> None:
    from cohobate.teachers.signal_store.label_mean import MeanLabelStore
    from cohobate.teachers.signal_store.label_store import LabelStore

    other = Path("data/capture/other")
    write_labels(NAMES[::-1], p_RC=OTHER_RC[:, ::-1], store=other)
    stores = [LabelStore(STORE), LabelStore(other)]
    read = rows([" animal"] * 4)[::-1]
    for average in ("probabilities", "logits"):
        mean = MeanLabelStore(stores, (3, 1), average)
        given = mean.logprobs(mean.places(read)).exp()
        wanted = 0.75 * P_RC + 0.25 * OTHER_RC
        if average == "logits":
            wanted = P_RC**0.75 * OTHER_RC**0.25
            wanted /= wanted.sum(1, keepdims=True)
        assert given.numpy() == pytest.approx(wanted[::-1], abs=2e-3)


def test_a_causal_student_learns_the_mean_of_two_teachers(causal: Any) -> None:
    write_labels(p_RC=OTHER_RC, store=Path("data/capture/other"))
    teachers = {"main": 1, "other": 1}
    mean = kd(targets="data/capture", teachers=teachers, updates=1)
    train_seeds(Path("models/train/x"), mean, [1])
    assert json.loads(Path("models/train/x/summary.json").read_text())["rows"] == 4
    with pytest.raises(UserError, match="averaged over teachers"):
        route = {"type": "route", "groups": {"*": "main"}}
        changed = kd(targets="data/capture", teachers=teachers, combine=route)
        train_seeds(Path("models/train/y"), changed, [1])
