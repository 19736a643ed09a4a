"""Embedders: what they learn, store, rank and become on disk."""

import json
from itertools import starmap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional as F

from cohobate import params
from cohobate.data.records import Response, Row, TrainingRow, row_id, write_rows
from cohobate.errors import UserError
from cohobate.evaluation.embedder_model import EmbedderModel
from cohobate.evaluation.model_under_test import open_model
from cohobate.generation.requests import Decoding
from cohobate.generation.retrieval import rank_correlations
from cohobate.methods.embed import Embed
from cohobate.models import checkpoints, embedders
from cohobate.models.static_embedding import principal_components
from cohobate.scoring.metrics import MRR, NDCG
from cohobate.scoring.verifiers import Ranking
from cohobate.students.base_initialization import PinnedModels
from cohobate.students.embedders import Embedder, StaticEmbedder
from cohobate.teachers.signal_store.settings import CaptureParams
from cohobate.teachers.teacher import Teacher
from cohobate.teachers.vector_store import VectorStore, capture_vectors, text_hash, texts_of
from cohobate.training.embedding_loss import EmbeddingLoss, split_texts
from cohobate.training.embedding_terms import Contrastive, SimilarityMatrix, Texts
from tests import tiny_models

PAIRS = [
    ("the mouse ran off", "a small rodent"),
    ("the oak was felled", "a large plant"),
    ("she met a man", "a human"),
    ("the rat hid", "a rodent larger than a mouse"),
]
FACTS = {"pooling": "mean", "max_tokens": None}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "encoder"
    tokenizer = tiny_models.make_tokenizer()
    tiny_models.make_encoder(tokenizer, layers=3).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoder: Path) -> Path:
    monkeypatch.chdir(tmp_path)
    config = {checkpoints.SENTENCE_EMBEDDING: FACTS}
    checkpoints.copy(encoder, Path("models/adapt/main"), {}, config=config)
    write_rows(Path("data/filter/kept.jsonl"), starmap(response, PAIRS))
    write_rows(Path("data/curriculum/train.jsonl"), starmap(training_row, PAIRS))
    return tmp_path


def response(query: str, document: str) -> Response:
    fields: dict[str, Any] = {"teacher": "main", "finish": "stop", "origin": "ground_truth"}
    return Response(id=row_id(query), prompt=query, answer=document, **fields)


def training_row(query: str, document: str) -> TrainingRow:
    return TrainingRow(**response(query, document).model_dump(), difficulty=0.0, stage=0)


def student(encoder: Path, **settings: Any) -> tuple[Any, Any]:
    pins = PinnedModels({}, {"revision": "", "fingerprint": checkpoints.fingerprint(encoder)})
    init = Embedder(type="embedder", model=str(encoder), **settings)
    return init.build({}, pins)


def phase(**settings: Any) -> Embed:
    fields: dict[str, Any] = {
        "method": "embed",
        "from": "init_student",
        "rows": "data/curriculum/train.jsonl",
        "targets": "data/capture/main",
        "terms": [{"type": "cosine"}, {"type": "similarity"}],
        "updates": 30,
        "batch_size": 4,
        "learning_rate": 0.01,
        "freeze": {"embeddings": False},
        "precision": "float32",
        "threads": 1,
    }
    return Embed(**(fields | settings))


def capture() -> dict[str, Any]:
    settings = CaptureParams(precision="float32", threads=1, shard_rows=3)
    folders = (Path("models/adapt/main"), Path("data/filter/kept.jsonl"), Path("data/capture/main"))
    return capture_vectors(*folders, settings, label="capture main")


def test_the_store_has_a_vector_of_each_text_and_resumes(project: Path) -> None:
    figures = capture()
    assert figures == {"texts": 8, "width": 32, "bytes_per_text": 72}
    store = VectorStore(Path("data/capture/main"))
    model, tokenizer = checkpoints.load(Path("models/adapt/main"))
    texts = [text for pair in PAIRS for text in pair]
    vectors = store.read(store.find(texts))
    expected = embedders.encode(model, tokenizer, texts)
    assert torch.allclose(vectors, expected, atol=1e-3)
    assert torch.allclose(vectors.norm(dim=-1), torch.ones(8), atol=1e-3)
    assert store.find(["another text"]) == [-1]
    before = {path.name: path.read_bytes() for path in store.folder.iterdir()}
    capture()
    assert {path.name: path.read_bytes() for path in store.folder.iterdir()} == before


def test_a_killed_capture_keeps_its_complete_shards(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: list[int] = []
    encode = embedders.encode

    def counted(model: Any, tokenizer: Any, texts: list[str], threads: int) -> Any:
        counts.append(len(texts))
        if len(counts) == 2:
            raise KeyboardInterrupt
        return encode(model, tokenizer, texts, threads)

    monkeypatch.setattr(embedders, "encode", counted)
    with pytest.raises(KeyboardInterrupt):
        capture()
    capture()
    assert counts == [3, 3, 3, 2]  # the first shard of eight texts was kept


def test_training_brings_the_student_to_the_teachers_vectors(project: Path, encoder: Path) -> None:
    capture()
    model, tokenizer = student(encoder, layers=[0, 2])
    assert model.config.num_hidden_layers == 2
    rows = list(starmap(training_row, PAIRS))
    own = phase()
    trained = own.train(model, tokenizer, rows, seed=1, label="train embed")
    assert trained.history[-1].loss < trained.history[0].loss / 2
    assert set(trained.history[0].terms) == {"cosine", "similarity"}
    again, _ = student(encoder, layers=[0, 2])
    repeated = own.train(again, tokenizer, rows, seed=1, label="train embed")
    assert repeated.history == trained.history


def test_another_width_is_projected_and_the_projection_dropped(
    project: Path, encoder: Path
) -> None:
    capture()
    teachers = {"main": Teacher(model=str(encoder), kind="embedder")}
    pin = {"revision": "", "fingerprint": checkpoints.fingerprint(encoder)}
    init = StaticEmbedder(type="static_embedder", width=8, threads=1)
    model, tokenizer = init.build(teachers, PinnedModels({"main": pin}, {}))
    rows = list(starmap(training_row, PAIRS))
    trained = phase(terms=[{"type": "mse"}, {"type": "contrastive"}]).train(
        model, tokenizer, rows, seed=1, label="train embed"
    )
    assert trained.history[-1].loss < trained.history[0].loss
    checkpoints.save(model, tokenizer, Path("student"), {})
    assert checkpoints.is_embedder(Path("student"))
    tested = open_model(Path("student"), "float32")
    assert isinstance(tested, EmbedderModel)
    assert {*tested.model.state_dict()} == {"embedding.weight"}
    assert tested.model.state_dict()["embedding.weight"].shape == (len(tokenizer), 8)
    with pytest.raises(UserError, match="frozen"):
        phase(freeze={}).train(model, tokenizer, rows, seed=1, label="train embed")


def test_a_row_without_a_vector_is_refused(project: Path, encoder: Path) -> None:
    capture()
    model, tokenizer = student(encoder)
    rows = [training_row("a new query", "a new document")]
    with pytest.raises(UserError, match="without a vector of the teacher"):
        phase().train(model, tokenizer, rows, seed=1, label="train embed")


def test_texts_of_a_row_are_split_again() -> None:
    ids_BS = torch.tensor([[1, 2, 3, 4, 5], [6, 7, 0, 0, 0]])
    # a pair of two and three tokens, and raw text of two
    row_N, ids_NM, mask_NM = split_texts(ids_BS, torch.tensor([1, 4, 6]))
    assert row_N.tolist() == [0, 0, 1]
    assert ids_NM.tolist() == [[1, 2, 0], [3, 4, 5], [6, 7, 0]]
    assert mask_NM.tolist() == [[1, 1, 0], [1, 1, 1], [1, 1, 0]]


def texts(vectors: torch.Tensor, teacher: torch.Tensor | None, same: bool = False) -> Texts:
    ids = torch.arange(len(vectors))[:, None]
    if same:  # the documents of both pairs are one
        ids[3] = ids[1]
    return Texts(vectors, vectors, teacher, torch.tensor([0, 0, 1, 1]), ids)


def test_similarities_are_those_of_the_batch_without_the_text_itself() -> None:
    torch.manual_seed(0)
    student_ND, teacher_ND = (F.normalize(torch.randn(4, 6), dim=-1) for _ in range(2))
    student_ND.requires_grad_()
    term = SimilarityMatrix(type="similarity", temperature=0.1)
    losses_N = term.per_text(texts(student_ND, teacher_ND))
    p, q = (
        torch.stack([(row @ others.T / 0.1).softmax(-1) for row, others in without_self(x)])
        for x in (teacher_ND, student_ND)
    )
    assert torch.allclose(losses_N, (p * (p / q).log()).sum(-1), atol=1e-5)
    losses_N.sum().backward()
    assert student_ND.grad is not None
    assert student_ND.grad.isfinite().all()


def without_self(vectors: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    rows = range(len(vectors))
    return [(vectors[n], vectors[[m for m in rows if m != n]]) for n in rows]


def test_the_same_document_of_another_row_is_no_negative() -> None:
    torch.manual_seed(0)
    vectors = F.normalize(torch.randn(4, 6), dim=-1)
    term = Contrastive(type="contrastive", temperature=0.1)
    losses_N = term.per_text(texts(vectors, None))
    logits = vectors[[0, 2]] @ vectors[[1, 3]].T / 0.1
    both = [F.cross_entropy(x, torch.arange(2), reduction="none") for x in (logits, logits.T)]
    assert torch.allclose(losses_N, torch.stack(both, -1).flatten(), atol=1e-5)
    # a query has no other document left to be told from
    assert term.per_text(texts(vectors, None, same=True))[[0, 2]].abs().max() < 1e-6


def test_padding_does_not_change_a_vector(encoder: Path) -> None:
    model, tokenizer = student(encoder)
    loss = EmbeddingLoss(model, [])
    assert isinstance(loss.projection, torch.nn.Identity)
    alone = embedders.encode(model, tokenizer, ["a small rodent"])
    beside = embedders.encode(
        model, tokenizer, ["a small rodent", "a much longer text than it", ""]
    )
    assert torch.allclose(alone[0], beside[0], atol=1e-5)
    assert not beside[2].any()


def test_an_answer_is_the_ranking_of_the_documents(project: Path) -> None:
    tested = open_model(Path("models/adapt/main"), "float32")
    documents = [document for _, document in PAIRS]
    ranked = tested.with_documents([*documents, "a  small\nrodent"])
    answers = dict(ranked.answers([query for query, _ in PAIRS], Decoding()))
    assert sorted(answers[0].text.split("\n")) == sorted(documents)
    rows = [Row(id=row_id(query), prompt=query, answer=document) for query, document in PAIRS]
    losses = [*tested.answer_losses(rows)]
    assert all(0 < loss < 10 for loss in losses)
    assert tested.answer_units(rows) == [1] * 4


def test_scores_of_a_ranking() -> None:
    ranking, verifier = "one\ntwo  words\nthree", Ranking(type="ranking")
    ndcg, mrr = NDCG(type="ndcg"), MRR(type="mrr")
    assert ndcg.score(ranking, "one", verifier) == mrr.score(ranking, "one", verifier) == 1
    assert ndcg.score(ranking, "two\nwords", verifier) == pytest.approx(1 / np.log2(3))
    assert mrr.score(ranking, "three", verifier) == pytest.approx(1 / 3)
    assert ndcg.score(ranking, "four", verifier) == mrr.score("", "one", verifier) == 0
    assert verifier.correct(ranking, " one ")
    assert not verifier.correct(ranking, "three")
    assert verifier.shown(ranking, "one") == "one"
    assert verifier.shown(ranking, "three") == "one [its own document: rank 3]"
    assert verifier.shown(ranking, "four") == "one [its own document: rank above 10]"


def test_rank_correlations_are_spearmans() -> None:
    one = torch.tensor([[0.1, 0.5, 0.9], [0.1, 0.5, 0.9]])
    other = torch.tensor([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]])
    assert rank_correlations(one, other) == [1.0, -1.0]


def test_principal_components_keep_distances() -> None:
    vectors = torch.randn(20, 5, generator=torch.Generator().manual_seed(0))
    whole = principal_components(vectors, 5)
    assert torch.allclose(torch.cdist(whole, whole), torch.cdist(vectors, vectors), atol=1e-4)
    assert whole[:, 0].var() > whole[:, 4].var()


def test_the_pooling_of_a_folder_of_sentence_transformers_is_read(
    encoder: Path, tmp_path: Path
) -> None:
    def pooling(modules: list[str], config: dict[str, Any] | None) -> dict[str, Any]:
        listed = [{"type": f"sentence_transformers.models.{name}"} for name in modules]
        (tmp_path / "modules.json").write_text(json.dumps(listed))
        (tmp_path / "1_Pooling").mkdir(exist_ok=True)
        path = tmp_path / "1_Pooling" / "config.json"
        path.unlink(missing_ok=True)
        if config:
            path.write_text(json.dumps(config))
        return embedders.pooling_of("a", tmp_path, "auto", "params.yaml")

    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "sentence_bert_config.json").write_text('{"max_seq_length": 128}')
    first = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    assert pooling(["Transformer", "Pooling"], first) == {"pooling": "cls", "max_tokens": 128}
    assert pooling(["Transformer", "Pooling"], {"pooling_mode": "mean"})["pooling"] == "mean"
    with pytest.raises(UserError, match="Dense"):
        pooling(["Transformer", "Pooling", "Dense"], first)
    with pytest.raises(UserError, match="is not here"):
        pooling(["Transformer", "Pooling"], None)
    with pytest.raises(UserError, match="pools by"):
        pooling(["Transformer", "Pooling"], {"pooling_mode_max_tokens": True})


def test_texts_of_rows() -> None:
    assert texts_of(Row(id="0", prompt="a", answer="b")) == ["a", "b"]
    assert texts_of(Row(id="0", prompt="", answer="b")) == ["b"]
    assert texts_of(Row(id="0", prompt="a")) == ["a"]
    assert text_hash("a") != text_hash("b")


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"targets": "data/curriculum/train.jsonl"}, "needs a teacher"),
        ({"terms": [{"type": "contrastive"}]}, "no term needs a teacher"),
        ({"micro_batch_size": 2}, "with each other"),
        ({"workers": 2}, "with each other"),
        ({"adapter": {"type": "lora"}}, "whole embedder"),
        ({"terms": []}, "at least 1"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        phase(**settings)


def test_a_causal_student_is_refused(project: Path) -> None:
    tokenizer = tiny_models.make_tokenizer()
    model = tiny_models.make_model(tokenizer)
    with pytest.raises(UserError, match="gives no vectors"):
        phase().train(model, tokenizer, [], seed=1, label="train embed")


def test_only_an_embedder_pools() -> None:
    with pytest.raises(params.ParamsError, match="pooling"):
        params.validated(Teacher, {"model": "a", "pooling": "cls"}, "teachers.main")
