"""Shared fixtures: a byte-level tokenizer and Llamas of a few thousand parameters, no hub."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ["<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]


@pytest.fixture
def make_tokenizer() -> Callable[..., Any]:
    """Build a tokenizer of every byte and a few merges; `<|end|>` ends an answer."""

    def make(**overrides: Any) -> Any:
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
        from transformers import PreTrainedTokenizerFast

        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=overrides.pop("vocabulary", 300),
            special_tokens=overrides.pop("special", SPECIAL),
            initial_alphabet=sorted(alphabet),
            show_progress=False,
        )
        backend.train_from_iterator([" animal plant person Category: Definition: a small"], trainer)
        options = {"eos_token": "<|end|>", "pad_token": "<|pad|>", "chat_template": CHAT_TEMPLATE}
        return PreTrainedTokenizerFast(tokenizer_object=backend, **(options | overrides))

    return make


@pytest.fixture
def tokenizer(make_tokenizer: Callable[..., Any]) -> Any:
    return make_tokenizer()


@pytest.fixture
def make_model(one_thread: None) -> Callable[..., Any]:
    """Build a Llama with random weights, the same for the same arguments."""

    def make(tokenizer: Any, *, seed: int = 0, layers: int = 4, **config: Any) -> Any:
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        options = {
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 256,
            "tie_word_embeddings": True,
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            "initializer_range": 0.2,  # sharp enough that greedy answers differ between prompts
        }
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return LlamaForCausalLM(
                LlamaConfig(num_hidden_layers=layers, **(options | config))
            ).eval()

    return make


@pytest.fixture
def model(make_model: Callable[..., Any], tokenizer: Any) -> Any:
    return make_model(tokenizer)


@pytest.fixture
def checkpoint(model: Any, tokenizer: Any, tmp_path: Path) -> Path:
    """A published checkpoint of the tiny model, outside the project folder."""
    from tasks import checkpoints

    folder = tmp_path / "elsewhere" / "tiny"
    checkpoints.save(model, tokenizer, folder, {"from": "a test"})
    return folder


@pytest.fixture
def one_thread() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty project folder, made the current one; caches stay below it."""
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COHOBATE_CACHE", str(tmp_path / "cache"))
    return folder
