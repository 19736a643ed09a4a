"""An exported embedder opens by sentence-transformers, and ranks as the checkpoint does."""

import json
from pathlib import Path
from typing import Any

import pytest

from cohobate.errors import UserError
from cohobate.models import checkpoints, embedders
from cohobate.models.static_embedding import static_model
from tasks.export.form import Questions
from tasks.export.onnx import Onnx
from tasks.export.safetensors import Safetensors
from tasks.export.sentence_transformers import SentenceTransformers
from tests import tiny_models

DOCUMENTS = ["a small rodent", "a large plant", "a human being", "a tree that bears acorns"]
QUESTIONS = Questions(["a mouse", "an oak", "a man and a woman"], 8, 1, DOCUMENTS)


def checkpoint(folder: Path, kind: str) -> Path:
    import torch

    tokenizer = tiny_models.make_tokenizer()
    model: Any = tiny_models.make_encoder(tokenizer)
    facts: dict[str, Any] = {"pooling": kind, "max_tokens": 64}
    if kind == "static":
        rng = torch.Generator().manual_seed(0)
        model = static_model(torch.randn(len(tokenizer), 8, generator=rng))
        facts = {"pooling": "mean", "max_tokens": None}
    embedders.describe(model, facts)
    checkpoints.save(model, tokenizer, folder, {})
    return folder


@pytest.mark.parametrize("kind", ["mean", "cls", "static"])
def test_the_form_ranks_as_the_checkpoint(tmp_path: Path, kind: str) -> None:
    pytest.importorskip("sentence_transformers")
    source, form = (
        checkpoint(tmp_path / "student", kind),
        SentenceTransformers(type="sentence_transformers"),
    )
    with checkpoints.staged(tmp_path / "form") as partial:
        form.write(source, partial)
    checkpoints.verify(tmp_path / "form")  # the files of its modules too
    expected = Safetensors(type="safetensors", precision="float32").answers(source, QUESTIONS)
    assert form.answers(tmp_path / "form", QUESTIONS) == expected
    tokenizer, model = checkpoints.load_tokenizer(source), checkpoints.load(source)[0]
    from sentence_transformers import SentenceTransformer

    vectors = SentenceTransformer(str(tmp_path / "form")).encode(DOCUMENTS)
    own = embedders.encode(model, tokenizer, DOCUMENTS)
    assert vectors == pytest.approx(own.numpy(), abs=1e-5)


def test_without_the_library_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "sentence_transformers", None)
    with pytest.raises(UserError, match="sentence-transformers is not installed") as caught:
        SentenceTransformers(type="sentence_transformers").answers(tmp_path, QUESTIONS)
    assert "embedders" in (caught.value.fix or "")


def test_a_changed_file_of_a_module_is_noticed(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "student", "mean")
    with checkpoints.staged(tmp_path / "form") as partial:
        SentenceTransformers(type="sentence_transformers").write(source, partial)
    path = tmp_path / "form" / "1_Pooling" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pooling_mode_cls_token": True}))
    with pytest.raises(UserError, match="1_Pooling"):
        checkpoints.verify(tmp_path / "form")


@pytest.mark.slow  # torch.onnx takes long to import
@pytest.mark.parametrize("kind", ["mean", "cls", "static"])
@pytest.mark.parametrize("weights", ["float32", "int8"])
def test_onnxruntime_ranks_as_the_checkpoint(
    tmp_path: Path, kind: str, weights: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    source, form = checkpoint(tmp_path / "student", kind), Onnx(type="onnx", weights=weights)
    with checkpoints.staged(tmp_path / "form") as partial:
        form.write(source, partial)
    ranked = form.answers(tmp_path / "form", QUESTIONS)
    if weights == "float32":
        original = Safetensors(type="safetensors", precision="float32")
        assert ranked == original.answers(source, QUESTIONS)
    own = embedders.encode(
        checkpoints.load(source)[0], checkpoints.load_tokenizer(source), DOCUMENTS
    )
    # as the card says, in a batch of texts that differ in length
    code = form.usage_of(tmp_path / "form").removeprefix("```python\n").removesuffix("```")
    monkeypatch.chdir(tmp_path / "form")
    printed: list[Any] = []
    exec(code, {"texts": DOCUMENTS, "print": printed.append})
    near = 1e-5 if weights == "float32" else 0.1
    assert printed[0] == pytest.approx((own @ own.T).numpy(), abs=near)
