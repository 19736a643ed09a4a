"""Padding is not read, and a common prefix once; nothing but the time shows it."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
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

from cohobate.errors import UserError
from cohobate.fast import last_block, padding_free, row_attention
from cohobate.fast.forward_pass import forward
from cohobate.fast.packed_linear import pack, packed_bytes
from cohobate.fast.padding_free import PackedBatch, row_lengths
from cohobate.fast.prefix_cache import PrefixCache
from cohobate.fast.sparse_embedding_gradient import sparse_gradient

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


LENGTHS = [40, 31, 39, 24, 23, 33]


def rows(shared: int = SHARED) -> Tensor:
    """Rows of unequal length, padded on the right with 0, that begin alike."""
    rng = torch.Generator().manual_seed(1)
    ids_BS = torch.randint(1, WORDS, (ROWS, LENGTH), generator=rng)
    ids_BS[:, :shared] = ids_BS[:1, :shared]
    for n, length in enumerate(LENGTHS):
        ids_BS[n, length:] = 0
    return ids_BS


@pytest.fixture(autouse=True)
def always_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(padding_free, "_worth", lambda device, mode: 1)


def hidden_of(
    model: Any, ids_BS: Tensor, positions_N: Tensor, cache: PrefixCache | None = None
) -> Tensor:
    return forward(model, ids_BS, positions_N, prefix_cache=cache).last_hidden_ND


def everywhere() -> Tensor:
    """Where tokens of the rows are, counted through all with their padding."""
    real_BS = torch.arange(LENGTH) < torch.tensor(LENGTHS)[:, None]
    return real_BS.flatten().nonzero()[:, 0]


def widths(
    model: Any,
    ids_BS: Tensor,
    positions_N: Tensor | None = None,
    cache: PrefixCache | None = None,
) -> tuple[Tensor, list[Any]]:
    """What `forward` returns, and the shapes of the ids that the body was given."""
    positions_N = everywhere() if positions_N is None else positions_N
    if cache:  # it is made when first asked for
        hidden_of(model, ids_BS, positions_N, cache)
    if not (model.training and padding_free.has_dropout(model)):  # it is tried once
        padding_free.packing_mode(model)
        last_block._is_hooked(model)
    seen: list[tuple[int, ...]] = []
    keep = lambda module, inputs, options: seen.append(tuple(inputs[0].shape))  # noqa: E731
    handle = model.get_decoder().register_forward_pre_hook(keep, with_kwargs=True)
    hidden_ND = hidden_of(
        model, ids_BS, everywhere() if positions_N is None else positions_N, cache
    )
    handle.remove()
    return hidden_ND, seen


def gradients(model: Any) -> Tensor:
    return torch.cat([w.grad.flatten() for w in model.parameters() if w.grad is not None])


@pytest.mark.parametrize("every", [1, 5])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("sequence", [40, 60, 192])
@pytest.mark.parametrize("shared", [0, 5, SHARED])
@pytest.mark.parametrize("name", [n for n in ARCHITECTURES if n != "bloom"])
def test_hidden_states_and_gradients_are_those_of_one_pass(  # noqa: PLR0917
    name: str,
    shared: int,
    sequence: int,
    attention: str,
    every: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        padding_free, "_worth", lambda device, mode: -(10**6)
    )  # even where it costs
    monkeypatch.setattr(padding_free, "SEQUENCE", {"mask": sequence, "rows": sequence})
    model, ids_BS = made(ARCHITECTURES[name], attention).train(), rows(shared)
    positions_N = everywhere()[::every]
    grad_ND = torch.randn(len(positions_N), 32, generator=torch.Generator().manual_seed(2))
    whole_BSD = model.get_decoder()(ids_BS, use_cache=False).last_hidden_state
    whole_ND = whole_BSD.flatten(0, 1)[positions_N]
    (whole_ND * grad_ND).sum().backward()
    expected = gradients(model)
    model.zero_grad()
    hidden_ND, seen = widths(model, ids_BS, positions_N)
    (hidden_ND * grad_ND).sum().backward()
    assert len(seen) == 1
    torch.testing.assert_close(hidden_ND, whole_ND, atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(
        gradients(model), expected, atol=1e-5 * float(expected.abs().max()), rtol=1e-4
    )


@pytest.mark.parametrize("every", [1, 5])
@pytest.mark.parametrize("sequence", [40, 60, 192])
@pytest.mark.parametrize("known", [1, 5, 19])
@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2", "gpt_neox", "opt"])
def test_cached_tokens_are_not_read_again(
    name: str, known: int, sequence: int, every: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(padding_free.SEQUENCE, "rows", sequence)
    model, ids_BS = made(ARCHITECTURES[name], "sdpa").eval(), rows(shared=known + 2)
    positions_N = everywhere()
    positions_N = positions_N[positions_N % LENGTH >= known][::every]
    cache = PrefixCache(model, ids_BS[0, :known])
    with torch.inference_mode():
        whole_BSD = model.get_decoder()(ids_BS, use_cache=False).last_hidden_state
        for _ in range(2):  # what is known stays as it was
            found_ND, ((_, length),) = widths(model, ids_BS, positions_N, cache)
            wanted_ND = whole_BSD.flatten(0, 1)[positions_N]
            torch.testing.assert_close(found_ND, wanted_ND, atol=2e-6, rtol=1e-5)
        widest = max(len(ids) for ids in PackedBatch.of(ids_BS, LENGTHS, sequence).ids_AW)
    if every == 1:
        assert length <= widest - known
    assert cache.cache.get_seq_length() == known


def test_a_prefix_that_rows_do_not_have_or_that_is_selected_is_read() -> None:
    model, ids_BS = made(ARCHITECTURES["llama"], "sdpa").eval(), rows()
    other = PrefixCache(model, ids_BS[0, :7] + 1)
    longer = PrefixCache(model, ids_BS[0, : SHARED + 5])
    own = PrefixCache(model, ids_BS[0, :7])
    nothing = PrefixCache(model, ids_BS[0, :0])
    expected = widths(model, ids_BS)
    for cache in (other, longer, own, nothing):
        actual = widths(model, ids_BS, everywhere(), cache)
        assert actual[0].equal(expected[0]) and actual[1] == expected[1]
    behind = everywhere()[everywhere() % LENGTH >= 7]
    assert widths(model, ids_BS, behind, own)[1] != widths(model, ids_BS, behind)[1]


def test_a_row_of_which_nothing_is_looked_at_may_begin_as_the_others() -> None:
    model, ids_BS = made(ARCHITECTURES["llama"], "sdpa").eval(), rows()
    positions_N = everywhere()
    positions_N = positions_N[
        (positions_N % LENGTH >= 7) & (positions_N >= LENGTH)
    ]  # none of the first row
    found_ND, _ = widths(model, ids_BS, positions_N, PrefixCache(model, ids_BS[0, :7]))
    whole_BSD = model.get_decoder()(ids_BS, use_cache=False).last_hidden_state
    torch.testing.assert_close(found_ND, whole_BSD.flatten(0, 1)[positions_N], atol=2e-6, rtol=1e-5)


def test_only_a_model_that_goes_row_by_row_is_asked_for_a_cache() -> None:
    ids_BS, behind = rows(), everywhere()[everywhere() % LENGTH >= 7]
    window = made(MistralConfig(**GROUPED, sliding_window=16), "sdpa").eval()
    for model in (window, made(ARCHITECTURES["llama"], "eager").eval()):
        cache = PrefixCache(model, ids_BS[0, :7])
        actual = widths(model, ids_BS, behind, cache)
        assert actual[0].equal(widths(model, ids_BS, behind)[0])
        assert "cache" not in vars(cache)


def test_nothing_is_padding_and_the_cache_is_there_once() -> None:
    layout = PackedBatch.of(rows(), LENGTHS, 192)
    assert layout.ids_AW.shape == (1, SHARED + sum(LENGTHS) - ROWS * SHARED)
    assert (layout.row_AW < ROWS).all()


@pytest.mark.parametrize("sequence", [40, 90, 192])
def test_every_token_of_a_row_has_its_place(sequence: int) -> None:
    ids_BS = rows(5)
    layout = PackedBatch.of(ids_BS, LENGTHS, sequence)
    found_BS = layout.ids_AW.flatten()[layout.place_BS]
    for n, length in enumerate(LENGTHS):
        assert found_BS[n, :length].equal(ids_BS[n, :length])
        places = layout.place_BS[n, :length]
        assert layout.position_AW.flatten()[places].equal(torch.arange(length))
        seen = layout.mask().expand(-1, 1, -1, -1)[places // layout.ids_AW.shape[1]][:, 0]
        own = seen[torch.arange(length), places % layout.ids_AW.shape[1]]
        assert own.sum(-1).equal(torch.arange(1, length + 1))  # all before it, and no other


def test_lengths_are_as_far_as_one_looks() -> None:
    ids_BS = torch.zeros(3, 5, dtype=torch.long)
    assert row_lengths(torch.tensor([1, 3, 2, 10]), ids_BS).tolist() == [4, 1, 1]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_frozen_model_says_the_same(attention: str, dtype: torch.dtype) -> None:
    model, ids_BS = made(ARCHITECTURES["llama"], attention).eval().to(dtype), rows()
    with torch.inference_mode():
        whole_BSD = model.get_decoder()(ids_BS, use_cache=False).last_hidden_state
        found_ND, seen = widths(model, ids_BS)
    assert len(seen) == 1
    assert seen != [tuple(ids_BS.shape)]
    bound = {"atol": 2e-6, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 0.05, "rtol": 0.05}
    torch.testing.assert_close(found_ND, whole_BSD.flatten(0, 1)[everywhere()], **bound)


def test_rows_that_are_all_the_same_are_read_once() -> None:
    model, ids_BS = made(ARCHITECTURES["llama"]).eval(), rows()[:1].repeat(3, 1)
    hidden_ND, seen = widths(model, ids_BS, torch.arange(3 * LENGTH))
    assert seen == [(1, LENGTH)]
    torch.testing.assert_close(hidden_ND[:LENGTH], hidden_ND[2 * LENGTH :])


def one_pass(model: Any, ids_BS: Tensor, positions_N: Tensor | None = None) -> bool:
    return widths(model, ids_BS, positions_N)[1] == [tuple(ids_BS.shape)]


def test_what_gains_too_little_is_read_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    model = made(ARCHITECTURES["llama"]).eval()
    assert one_pass(model, rows(shared=0), torch.arange(ROWS * LENGTH))
    assert one_pass(model, rows()[:1], torch.arange(LENGTH))
    monkeypatch.setattr(padding_free, "_worth", lambda device, mode: ROWS * LENGTH)
    assert one_pass(model, rows())


def test_a_window_dropout_and_a_bias_made_of_the_mask_rule_it_out() -> None:
    window = MistralConfig(**GROUPED, sliding_window=16)
    assert one_pass(made(window).eval(), rows())
    assert one_pass(made(ARCHITECTURES["bloom"]).eval(), rows())
    dropping = made(LlamaConfig(**GROUPED, attention_dropout=0.1))
    assert one_pass(dropping.train(), rows())
    assert not one_pass(dropping.eval(), rows())
    assert one_pass(made(OPTConfig(**OPT | {"dropout": 0.1})).train(), rows())
    adapted = made(ARCHITECTURES["llama"]).train()
    adapted.get_decoder().layers[0].mlp.act_fn = nn.Sequential(nn.SiLU(), nn.Dropout(0.1))
    assert one_pass(adapted, rows())


def test_activations_may_be_computed_again() -> None:
    plain, again = (made(ARCHITECTURES["llama"]).train() for _ in range(2))
    again.gradient_checkpointing_enable({"use_reentrant": False})
    for model in (plain, again):
        hidden_ND, seen = widths(model, rows())
        hidden_ND.square().sum().backward()
        assert seen != [(ROWS, LENGTH)]
    torch.testing.assert_close(gradients(again), gradients(plain))


def test_what_shows_its_inside_is_read_as_it_is() -> None:
    model = made(ARCHITECTURES["llama"]).eval()
    seen = forward(model, rows(), everywhere(), frozenset({"hidden", "values"}))
    assert {part.shape[1] for part in (*seen.hidden, *seen.values)} == {LENGTH}


def read(model: Any, positions_N: Tensor) -> tuple[list[int], bool]:
    """How many tokens the last MLP was given, and whether attention went row by row."""
    input_rows: list[int] = []
    keep = lambda module, inputs: input_rows.append(inputs[0].numel() // inputs[0].shape[-1])  # noqa: E731
    hidden_of(model, rows(), positions_N)  # the model is probed once
    batch, mode = PackedBatch.of(rows(), LENGTHS, 192), padding_free.packing_mode(model)
    row_index = batch.row_index() if mode == "rows" else None
    handle = model.get_decoder().layers[-1].mlp.act_fn.register_forward_pre_hook(keep)
    batch.forward(model, mode, positions_N, row_index=row_index)
    handle.remove()
    return input_rows, bool(row_index and row_index.used)


def test_the_last_mlp_reads_what_is_looked_at_alone() -> None:
    few = everywhere()[[3, 50, 51]]
    model = made(ARCHITECTURES["llama"], "sdpa").eval()
    assert read(model, few) == ([3], True)
    assert read(model, everywhere())[0] != [3]
    again = made(ARCHITECTURES["llama"]).train()
    again.gradient_checkpointing_enable({"use_reentrant": False})
    input_rows, by_rows = read(again, few)
    assert input_rows != [3] and not by_rows  # it would be computed again without being asked so


def test_an_mlp_that_looks_around_reads_all() -> None:
    model = made(ARCHITECTURES["llama"], "sdpa").eval()
    mlp = model.get_decoder().layers[-1].mlp
    mlp.register_forward_hook(lambda module, inputs, out: out + inputs[0].mean(1, keepdim=True))
    assert read(model, everywhere()[:3])[0] != [3]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_long_rows_are_compared_blockwise(dtype: torch.dtype, monkeypatch: Any) -> None:
    model = made(ARCHITECTURES["llama"], "sdpa").eval().to(dtype)
    with torch.inference_mode():
        whole_ND, _ = widths(model, rows())
        monkeypatch.setattr(row_attention, "_WHOLE", 8)
        torch.testing.assert_close(widths(model, rows())[0], whole_ND, atol=0.05, rtol=1e-5)


@pytest.mark.parametrize("whole", [4, 192], ids=["blockwise", "one matrix"])
def test_rows_of_any_length_are_trained_under_autocast(
    whole: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_attention, "_WHOLE", whole)
    model, ids_BS = made(ARCHITECTURES["llama"], "sdpa").train(), rows()
    positions_N = torch.tensor([30, LENGTH + 30, 2 * LENGTH + 38])
    with torch.autocast("cpu", torch.bfloat16):
        # rotary embeddings leave queries and keys in float32 there, and values in bfloat16
        hidden_ND = hidden_of(model, ids_BS, positions_N)
    hidden_ND.float().square().sum().backward()
    whole_BSD = model.model(ids_BS).last_hidden_state
    reference_ND = whole_BSD.flatten(0, 1)[positions_N]
    torch.testing.assert_close(hidden_ND.float(), reference_ND, rtol=0.1, atol=0.1)


def test_row_attention_without_rows_is_sdpa() -> None:
    batch = PackedBatch.of(rows(), LENGTHS, 192)
    query = torch.randn(1, 2, batch.ids_AW.shape[1], 8)
    expected = functional.scaled_dot_product_attention(query, query, query, attn_mask=batch.mask())
    index = batch.row_index()
    options = {"attention_mask": batch.mask(), "row_index": index}
    attend, module = row_attention.row_attention, nn.Module()
    plain, _ = attend(module, query, query, query, batch.mask(), scaling=8**-0.5)
    softcapless, _ = attend(module, query, query, query, **options)  # without a scale
    assert not index.used
    by_rows, _ = attend(module, query, query, query, scaling=8**-0.5, **options)
    assert index.used
    for actual in (plain, softcapless, by_rows):
        torch.testing.assert_close(actual.transpose(1, 2), expected)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_all_fast_paths_can_be_switched_off(
    attention: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gradient_and_hidden(switch: str) -> tuple[Tensor, Tensor, list[Any], str]:
        monkeypatch.setenv("COHOBATE_FAST", switch)
        model = made(LlamaConfig(**GROUPED, tie_word_embeddings=True), attention).train()
        few = everywhere()[::7]
        seen: list[tuple[int, ...]] = []
        keep = lambda module, inputs: seen.append(tuple(inputs[0].shape))  # noqa: E731
        forward(model, rows(), few)
        model.get_decoder().register_forward_pre_hook(keep)
        with sparse_gradient(model):
            hidden_ND = forward(model, rows(), few).last_hidden_ND
            model.lm_head(hidden_ND).square().mean().backward()
        return gradients(model), hidden_ND.detach(), seen, model.config._attn_implementation

    fast, plain = gradient_and_hidden("on"), gradient_and_hidden("off")
    torch.testing.assert_close(fast[0], plain[0], atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(fast[1], plain[1], atol=2e-6, rtol=1e-5)
    assert fast[2] != [(ROWS, LENGTH)] and plain[2] == [(ROWS, LENGTH)]
    assert fast[3] == ("row_attention" if attention == "sdpa" else "eager")
    assert plain[3] == attention
    monkeypatch.setenv("COHOBATE_FAST", "fast")
    with pytest.raises(UserError, match="COHOBATE_FAST"):
        forward(made(ARCHITECTURES["llama"]), rows(), everywhere())


def test_a_frozen_model_and_its_prefix_are_plain_when_switched_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COHOBATE_FAST", "off")
    model, ids_BS = made(ARCHITECTURES["llama"], "sdpa").eval(), rows()
    pack(model, 1 << 30)
    assert packed_bytes(model) == 0
    behind = everywhere()[everywhere() % LENGTH >= 7]
    cache = PrefixCache(model, ids_BS[0, :7])
    assert widths(model, ids_BS, behind, cache)[1] == [(ROWS, LENGTH)]
    assert "cache" not in vars(cache)
