"""Every form of a tiny model is written, opened by its own runtime, and answers as the original."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cohobate import params
from cohobate.data.messages import Message
from cohobate.data.records import Row
from cohobate.errors import UserError
from cohobate.models import checkpoints
from tasks.export.form import Form, Questions
from tasks.export.safetensors import greedy_answers, read_losses
from tasks.export.stage import AnyForm

WORDS = ["a small", " animal", " plant", "Definition:", " person", "q", " zz", "naïve 漢字", "1 23"]
PROMPTS = [f"{one}{two}\nCategory:" for one in WORDS for two in WORDS[:3]]


def form(**fields: Any) -> Form:
    return params.validated(AnyForm, fields, "export.forms")


def through(chosen: Form, student: Path, folder: Path, prompts: Any = tuple(PROMPTS)) -> list[str]:
    folder.mkdir()
    chosen.write(student, folder)
    return chosen.answers(folder, Questions(prompts, 6, 1))


def original(student: Path, prompts: Any = tuple(PROMPTS)) -> list[str]:
    return greedy_answers(student, "float32", Questions(prompts, 6, 1))


def readable(text: str) -> str:
    """Random weights also write special tokens and halves of letters; runtimes show those apart."""
    return re.sub(r"<\|\w+\|>|\ufffd", "", text).strip()


def agreement(answers: list[str], others: list[str]) -> float:
    pairs = zip(answers, others, strict=True)
    return sum(readable(a) == readable(b) for a, b in pairs) / len(answers)


def test_the_prompts_tell_models_apart(
    checkpoint: Path, make_model: Callable[..., Any], tokenizer: Any, tmp_path: Path
) -> None:
    checkpoints.save(make_model(tokenizer, seed=5), tokenizer, tmp_path / "other", {})
    assert agreement(original(checkpoint), original(tmp_path / "other")) < 0.2


def test_safetensors_are_the_checkpoint_to_the_byte(checkpoint: Path, tmp_path: Path) -> None:
    answers = through(form(type="safetensors", precision="float32"), checkpoint, tmp_path / "out")
    assert answers == original(checkpoint)
    weights = (tmp_path / "out/model.safetensors").read_bytes()
    assert weights == (checkpoint / "model.safetensors").read_bytes()


class TestGguf:
    @pytest.fixture(autouse=True)
    def _llama_cpp(self) -> None:
        pytest.importorskip("xllamacpp")

    @pytest.mark.parametrize(("numbers", "least"), [("F32", 1.0), ("F16", 0.9), ("Q8_0", 0.6)])
    def test_llama_cpp_answers_as_the_original(
        self, checkpoint: Path, tmp_path: Path, numbers: str, least: float
    ) -> None:
        answers = through(form(type="gguf", quantisation=numbers), checkpoint, tmp_path / "out")
        assert agreement(answers, original(checkpoint)) >= least

    def test_a_conversation_goes_through_the_chat_template(
        self, checkpoint: Path, tmp_path: Path
    ) -> None:
        chats = [(Message(role="user", content=word),) for word in WORDS]
        answers = through(
            form(type="gguf", quantisation="F32"), checkpoint, tmp_path / "out", chats
        )
        assert agreement(answers, original(checkpoint, chats)) == 1

    @pytest.mark.parametrize("kind", ["Qwen2", "Qwen3"])
    def test_other_architectures_and_an_untied_head(
        self, tokenizer: Any, tmp_path: Path, one_thread: None, kind: str
    ) -> None:
        import transformers

        config = getattr(transformers, f"{kind}Config")(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256,
            initializer_range=0.2, tie_word_embeddings=False, head_dim=8,
            eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
            bos_token_id=None,
        )  # fmt: skip
        torch.manual_seed(0)
        model = getattr(transformers, f"{kind}ForCausalLM")(config)
        checkpoints.save(model, tokenizer, tmp_path / "student", {})
        answers = through(
            form(type="gguf", quantisation="F32"), tmp_path / "student", tmp_path / "out"
        )
        assert agreement(answers, original(tmp_path / "student")) == 1

    @pytest.mark.parametrize("cut", ["digits", "qwen2", "llama-bpe"])
    def test_text_is_cut_as_the_tokenizer_cuts_it(
        self, make_model: Callable[..., Any], tokenizer: Any, tmp_path: Path, cut: str
    ) -> None:
        from tokenizers import Regex, pre_tokenizers

        from tasks.export.gguf_vocabulary import _CUTS

        pattern = {name: steps[0] for steps, name in _CUTS.items()}.get(cut)
        bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)
        first = (
            pre_tokenizers.Split(Regex(pattern), "isolated")
            if pattern
            else pre_tokenizers.Digits(individual_digits=True)
        )
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([first, bytes_only])
        checkpoints.save(make_model(tokenizer), tokenizer, tmp_path / "student", {})
        answers = through(
            form(type="gguf", quantisation="F32"), tmp_path / "student", tmp_path / "out"
        )
        assert agreement(answers, original(tmp_path / "student")) == 1

    def test_the_same_model_is_the_same_file(self, checkpoint: Path, tmp_path: Path) -> None:
        for name in ("one", "two"):
            (tmp_path / name).mkdir()
            form(type="gguf").write(checkpoint, tmp_path / name)
        one, two = ((tmp_path / name / "model.gguf").read_bytes() for name in ("one", "two"))
        assert one == two


def test_what_gguf_has_no_name_for_is_refused(
    make_model: Callable[..., Any], tokenizer: Any, tmp_path: Path
) -> None:
    from tokenizers import pre_tokenizers

    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    checkpoints.save(make_model(tokenizer), tokenizer, tmp_path / "student", {})
    with pytest.raises(UserError, match=r"name for this tokenizer is not known \(BPE, cut by Whit"):
        form(type="gguf").write(tmp_path / "student", tmp_path)


def test_a_width_that_no_block_divides_is_refused(
    make_model: Callable[..., Any], tokenizer: Any, tmp_path: Path
) -> None:
    checkpoints.save(make_model(tokenizer, hidden_size=24), tokenizer, tmp_path / "student", {})
    with pytest.raises(UserError, match=r"embed_tokens.weight cannot be stored as Q8_0"):
        form(type="gguf").write(tmp_path / "student", tmp_path)


def test_rotary_positions_of_gguf_are_interleaved() -> None:
    from tasks.export.gguf import _interleaved

    rows = np.arange(8)[:, None]  # two heads of four rows: halves 0 1 | 2 3 and 4 5 | 6 7
    assert _interleaved(rows, 2)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


@pytest.mark.slow  # torch.onnx takes long to import
def test_onnxruntime_answers_as_the_original(checkpoint: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    assert through(form(type="onnx"), checkpoint, tmp_path / "out") == original(checkpoint)
    assert not [*(tmp_path / "out").glob("*.data")]  # one file


@pytest.mark.parametrize(
    ("fields", "least"),
    [
        ({"type": "int8"}, 0.999),
        ({"type": "int8", "dynamic": True}, 0.99),
        ({"type": "int4", "group": 16}, 0.8),
    ],
)
def test_torchao_is_near_the_original_after_a_reload(
    checkpoint: Path, tokenizer: Any, tmp_path: Path, fields: dict[str, Any], least: float
) -> None:
    pytest.importorskip("torchao")
    chosen = form(**fields)
    chosen.write(checkpoint, tmp_path)
    ids = torch.tensor([tokenizer(PROMPTS[0])["input_ids"]])
    with torch.inference_mode():
        one, other = (
            checkpoints.load(folder, precision="bfloat16")[0](ids).logits.float().flatten()
            for folder in (checkpoint, tmp_path)
        )
    assert least < torch.cosine_similarity(one, other, dim=0) < 1 - 1e-7
    assert len(chosen.answers(tmp_path, Questions(PROMPTS, 6, 1))) == len(PROMPTS)


def test_weights_that_are_published_rounded_are_not_rounded_once_more(
    model: Any, tokenizer: Any, tmp_path: Path
) -> None:
    phase = {"quantisation": {"type": "int4", "group_size": 32, "publish": "rounded"}}
    checkpoints.save(model, tokenizer, tmp_path / "rounded", {"params": phase})
    with pytest.raises(UserError, match="rounded once more for the form int4"):
        form(type="int4").write(tmp_path / "rounded", tmp_path / "int4")


@pytest.mark.parametrize("kind", ["safetensors", "onnx", "gguf"])
def test_losses_are_those_of_the_original_where_a_runtime_gives_them(
    checkpoint: Path, tmp_path: Path, kind: str
) -> None:
    from tasks.export.safetensors import read_losses

    pytest.importorskip({"onnx": "onnxruntime", "gguf": "xllamacpp"}.get(kind, "safetensors"))
    rows = [
        Row(id=prompt, prompt=prompt, answer=f" {word} b")
        for prompt in PROMPTS[:4]
        for word in WORDS[:2]
    ]
    chosen = form(type=kind, **({"precision": "float32"} if kind == "safetensors" else {}))
    (tmp_path / "out").mkdir()
    chosen.write(checkpoint, tmp_path / "out")
    losses = chosen.losses(tmp_path / "out", rows, 1)
    if kind == "gguf":
        assert losses is None
    else:
        assert losses == pytest.approx(read_losses(checkpoint, "float32", rows, 1), abs=1e-4)


@pytest.mark.slow  # torch.onnx takes long to import
class TestClassifier:
    @pytest.fixture
    def classifier(self, tokenizer: Any, tmp_path: Path, one_thread: None) -> Path:
        from transformers import AutoModelForSequenceClassification

        from cohobate.scoring.labels import LabelSet
        from cohobate.scoring.verifiers import Label
        from tests import tiny_models

        tiny_models.make_encoder(tokenizer).save_pretrained(tmp_path / "encoder")
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = AutoModelForSequenceClassification.from_pretrained(
                tmp_path / "encoder", num_labels=3
            )
            torch.nn.init.normal_(model.classifier.weight)
        LabelSet(("animal", "person", "plant"), Label(type="label")).write_into(model.config)
        checkpoints.save(model, tokenizer, tmp_path / "student", {})
        return tmp_path / "student"

    @pytest.mark.parametrize(
        ("weights", "least", "near"), [("float32", 1.0, 1e-4), ("int8", 0.9, 0.2)]
    )
    def test_onnxruntime_gives_the_labels_of_the_original(
        self, classifier: Path, tmp_path: Path, weights: str, least: float, near: float
    ) -> None:
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
        chosen = form(type="onnx", weights=weights)
        answers = through(chosen, classifier, tmp_path / "out")
        assert set(answers) > {"animal"}  # it tells texts apart
        assert agreement(answers, original(classifier)) >= least
        rows = [Row(id="0", prompt=p, answer=a) for p in PROMPTS[:6] for a in (" plant", " stone")]
        losses = chosen.losses(tmp_path / "out", rows, 1)
        tested = read_losses(classifier, "float32", rows, 1)
        np.testing.assert_allclose(losses[::2], tested[::2], atol=near)
        assert np.isinf(losses[1::2]).all()  # a stone is none of the labels
        assert checkpoints.is_classifier(tmp_path / "out")

    def test_the_graph_reads_a_padded_batch_as_its_card_says(
        self, classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
        chosen, out = form(type="onnx"), tmp_path / "out"
        answers = through(chosen, classifier, out)
        code = chosen.usage_of(out).removeprefix("```python\n").removesuffix("```")
        monkeypatch.chdir(out)
        printed: list[Any] = []
        exec(code, {"prompts": PROMPTS, "print": printed.append})
        assert printed == [answers]
