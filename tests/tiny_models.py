"""A byte-level tokenizer and Llamas of a few thousand parameters, made on the spot: no hub."""

from typing import Any

CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ["<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]


def make_tokenizer(**overrides: Any) -> Any:
    """Build a tokenizer of every byte and a few merges; `<|end|>` ends an answer."""
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


def make_encoder_tokenizer() -> Any:
    """Build a tokenizer with a mask token, for encoders."""
    return make_tokenizer(special=[*SPECIAL, "<|mask|>"], mask_token="<|mask|>")


def make_model(tokenizer: Any, *, seed: int = 0, layers: int = 4, **config: Any) -> Any:
    """Build a Llama with random weights, the same for the same arguments."""
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
        return LlamaForCausalLM(LlamaConfig(num_hidden_layers=layers, **(options | config))).eval()


def make_encoder(tokenizer: Any, *, seed: int = 0, layers: int = 2, **config: Any) -> Any:
    """Build a BERT without a head, with random weights, the same for the same arguments."""
    import torch
    from transformers import BertConfig, BertModel

    options = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_attention_heads": 4,
        "max_position_embeddings": 256,
        "pad_token_id": tokenizer.pad_token_id,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return BertModel(BertConfig(num_hidden_layers=layers, **(options | config))).eval()
