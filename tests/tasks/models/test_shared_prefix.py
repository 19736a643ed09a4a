"""What rows have in common is computed once, and nothing but the time shows it."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    Qwen3Config,
)

from tasks.models import shared_prefix
from tasks.models.seen import look
from tasks.models.shared_prefix import last_hidden

WORDS, ROWS, LENGTH, SHARED = 97, 6, 40, 23
SIZES = {"vocab_size": WORDS, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
GROUPED = SIZES | {"num_key_value_heads": 2, "intermediate_size": 64}
STILL = {"resid_pdrop": 0, "embd_pdrop": 0, "attn_pdrop": 0, "bos_token_id": 1, "eos_token_id": 2}
OPT = SIZES | {"ffn_dim": 64, "word_embed_proj_dim": 32, "dropout": 0.0}
ARCHITECTURES: dict[str, Any] = {
    "llama": LlamaConfig(**GROUPED),
    "qwen3": Qwen3Config(**GROUPED, head_dim=8),
    "gpt2": GPT2Config(vocab_size=WORDS, n_embd=32, n_layer=2, n_head=4, **STILL),
    "gpt_neox": GPTNeoXConfig(**SIZES, intermediate_size=64, eos_token_id=2),
    "opt": OPTConfig(**OPT),
    "bloom": BloomConfig(vocab_size=WORDS, hidden_size=32, n_layer=2, n_head=4),
}


def made(config: Any, attention: str = "eager") -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config, attn_implementation=attention)


def rows(shared: int = SHARED) -> Tensor:
    """Rows of unequal length, padded on the right with 0, that begin alike."""
    dice = torch.Generator().manual_seed(1)
    ids_BS = torch.randint(1, WORDS, (ROWS, LENGTH), generator=dice)
    ids_BS[:, :shared] = ids_BS[:1, :shared]
    for n in range(ROWS):
        ids_BS[n, LENGTH - n :] = 0
    return ids_BS


@pytest.fixture(autouse=True)
def always_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(shared_prefix.WORTH, "cpu", 1)


def widths(model: Any, ids_BS: Tensor) -> tuple[Tensor, list[tuple[int, ...]]]:
    """What `last_hidden` returns, and the shapes of the ids that the body was given."""
    seen: list[tuple[int, ...]] = []
    keep = lambda module, inputs, options: seen.append(tuple(inputs[0].shape))  # noqa: E731
    handle = model.get_decoder().register_forward_pre_hook(keep, with_kwargs=True)
    hidden_BSD = last_hidden(model, ids_BS)
    handle.remove()
    return hidden_BSD, seen


def gradients(model: Any) -> Tensor:
    return torch.cat([w.grad.flatten() for w in model.parameters() if w.grad is not None])


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_hidden_states_and_gradients_are_those_of_one_pass(name: str) -> None:
    model, ids_BS = made(ARCHITECTURES[name]).train(), rows()
    slope_BSD = torch.randn(ROWS, LENGTH, 32, generator=torch.Generator().manual_seed(2))
    whole_BSD = model.get_decoder()(ids_BS, use_cache=False).last_hidden_state
    whole_BSD.backward(slope_BSD)
    wanted = gradients(model)
    model.zero_grad()
    hidden_BSD, seen = widths(model, ids_BS)
    hidden_BSD.backward(slope_BSD)
    assert seen == [(1, SHARED), (ROWS, LENGTH - SHARED)]
    torch.testing.assert_close(hidden_BSD, whole_BSD, atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(
        gradients(model), wanted, atol=1e-5 * float(wanted.abs().max()), rtol=1e-4
    )


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_packed_or_not_a_frozen_model_says_the_same(attention: str) -> None:
    model, ids_BS = made(ARCHITECTURES["llama"], attention).eval(), rows()
    with torch.inference_mode():
        whole_BSD = model.get_decoder()(ids_BS, use_cache=False).last_hidden_state
        torch.testing.assert_close(last_hidden(model, ids_BS), whole_BSD, atol=2e-6, rtol=1e-5)


def test_rows_that_are_all_the_same_keep_a_column_to_themselves() -> None:
    model, ids_BS = made(ARCHITECTURES["llama"]).eval(), rows()[:1].repeat(3, 1)
    hidden_BSD, seen = widths(model, ids_BS)
    assert seen == [(1, LENGTH - 1), (3, 1)]
    torch.testing.assert_close(hidden_BSD[0], hidden_BSD[2])


def one_pass(model: Any, ids_BS: Tensor) -> bool:
    return widths(model, ids_BS)[1] == [tuple(ids_BS.shape)]


def test_what_gains_too_little_is_read_in_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    model = made(ARCHITECTURES["llama"]).eval()
    assert one_pass(model, rows(shared=0))
    assert one_pass(model, rows()[:1])
    monkeypatch.setitem(shared_prefix.WORTH, "cpu", SHARED * (ROWS - 1) + 1)
    assert one_pass(model, rows())


def test_a_window_dropout_and_recomputed_activations_rule_it_out() -> None:
    window = MistralConfig(**GROUPED, sliding_window=16)
    assert one_pass(made(window).eval(), rows())
    dropping = made(LlamaConfig(**GROUPED, attention_dropout=0.1))
    assert one_pass(dropping.train(), rows())
    assert not one_pass(dropping.eval(), rows())
    assert one_pass(made(OPTConfig(**OPT | {"dropout": 0.1})).train(), rows())
    adapted = made(ARCHITECTURES["llama"]).train()
    adapted.get_decoder().layers[0].mlp.act_fn = nn.Sequential(nn.SiLU(), nn.Dropout(0.1))
    assert one_pass(adapted, rows())
    recomputing = made(ARCHITECTURES["llama"]).train()
    recomputing.gradient_checkpointing_enable()
    assert one_pass(recomputing, rows())
    assert not one_pass(recomputing.eval(), rows())


def test_what_shows_its_inside_is_read_in_one_pass() -> None:
    seen = look(made(ARCHITECTURES["llama"]).eval(), rows(), frozenset({"hidden", "values"}))
    assert {part.shape[1] for part in (*seen.hidden, *seen.values)} == {LENGTH}
