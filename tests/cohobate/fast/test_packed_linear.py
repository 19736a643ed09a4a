"""Packed layers give what plain ones give, and step aside wherever something could learn."""

import platform
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from cohobate.fast import packed_linear
from cohobate.fast.frozen import PACKED_BYTES
from cohobate.fast.packed_linear import PackedLinear, pack

pytestmark = pytest.mark.skipif(
    platform.machine() not in {"x86_64", "AMD64"}
    or not torch.ops.mkldnn._is_mkldnn_bf16_supported(),
    reason="nothing is packed on this processor",
)


@pytest.fixture(autouse=True)
def small_layers_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_linear, "_LARGE", 1)


def layer_of(
    dtype: torch.dtype, bias: bool = False, largest: int = PACKED_BYTES
) -> tuple[nn.Linear, Any]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(96, 160, bias=bias)).to(dtype).eval()
    weight, offset = model[0].weight.detach().clone(), model[0].bias
    pack(model, largest)
    return model[0], lambda x: nn.functional.linear(x, weight, offset)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1,), (1, 1), (7, 1), (3, 9), (64,), (300,), (2, 700)])
def test_a_packed_layer_gives_what_a_plain_one_gives(
    dtype: torch.dtype, shape: tuple[int, ...], bias: bool
) -> None:
    layer, plain = layer_of(dtype, bias)
    assert type(layer) is PackedLinear
    x = torch.randn(*shape, 96, dtype=dtype)
    with torch.no_grad():
        actual, expected = layer(x), plain(x)
    assert actual.shape == expected.shape and actual.dtype == dtype
    close = 1e-5 if dtype is torch.float32 else 2e-2
    torch.testing.assert_close(actual, expected, rtol=close, atol=close)


def test_the_packed_weight_is_what_is_used() -> None:
    layer, plain = layer_of(torch.float32)
    layer.weight.data.zero_()
    x = torch.randn(16, 96)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), plain(x), rtol=1e-5, atol=1e-5)
        assert not layer(x[:1]).any()  # so few rows gain nothing: the weight as it lies


def test_weights_that_were_changed_or_replaced_are_taken_as_they_lie() -> None:
    layer, plain = layer_of(torch.float32)
    x = torch.randn(16, 96)
    with torch.no_grad():
        layer.weight.mul_(2)
        torch.testing.assert_close(layer(x), 2 * plain(x), rtol=1e-5, atol=1e-5)
        layer.weight.data = torch.zeros(200, 96)  # as a resized vocabulary does
        assert layer(x).shape == (16, 200)
        layer.weight = nn.Parameter(torch.zeros(300, 96))
        assert layer(x).shape == (16, 300)


def test_what_learns_is_left_to_autograd() -> None:
    layer, plain = layer_of(torch.float32)
    x = torch.randn(16, 96, requires_grad=True)
    layer(x).square().sum().backward()
    slope, x.grad = x.grad, None
    plain(x).square().sum().backward()
    torch.testing.assert_close(slope, x.grad)


def test_another_precision_and_autocast_are_left_alone() -> None:
    layer, _ = layer_of(torch.float32)
    x = torch.randn(16, 96)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype is torch.bfloat16
    with torch.no_grad():
        assert layer.double()(x.double()).dtype is torch.float64


def test_float32_is_packed_in_large_layers_with_avx512_alone(monkeypatch) -> None:
    monkeypatch.setattr(packed_linear, "_LARGE", 96 * 160 + 1)
    assert type(layer_of(torch.float32)[0]) is nn.Linear
    assert type(layer_of(torch.bfloat16)[0]) is PackedLinear
    monkeypatch.setattr(packed_linear, "_LARGE", 1)
    monkeypatch.setattr(packed_linear, "flags", lambda: frozenset({"avx2"}))
    assert type(layer_of(torch.float32)[0]) is nn.Linear


def test_a_model_that_fills_the_memory_is_not_held_twice() -> None:
    layer, _ = layer_of(torch.float32, largest=1000)
    assert type(layer) is nn.Linear


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_packed_model_answers_as_before(
    make_model: Callable[..., Any], tokenizer: Any, dtype: torch.dtype
) -> None:
    model = make_model(tokenizer).to(dtype)
    ids_BS = torch.randint(3, 200, (8, 12))
    with torch.no_grad():
        expected = model(input_ids=ids_BS).logits
        pack(model, PACKED_BYTES)
        actual = model(input_ids=ids_BS).logits
    assert any(type(layer) is PackedLinear for layer in model.modules())
    close = 1e-4 if dtype is torch.float32 else 3e-2
    torch.testing.assert_close(actual, expected, rtol=close, atol=close)


def test_weights_with_products_of_their_own_are_left_alone() -> None:
    class Own(torch.Tensor):
        """As torchao's quantised weights are."""

    layer = nn.Linear(2048, 2048, bias=False).requires_grad_(False)
    layer.weight = nn.Parameter(layer.weight.data.as_subclass(Own), requires_grad=False)
    model = nn.Sequential(layer)
    packed_linear.pack(model, 1 << 30)
    assert type(layer) is nn.Linear
