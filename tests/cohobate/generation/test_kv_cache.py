"""The cache with room holds what the cache of transformers holds."""

import pytest
import torch
from transformers import DynamicCache, MistralConfig
from transformers.cache_utils import DynamicSlidingWindowLayer

from cohobate.generation import kv_cache
from cohobate.generation.kv_cache import PreallocatedLayer, preallocated_cache


def test_it_holds_what_the_plain_cache_holds(model, monkeypatch):
    monkeypatch.setattr(kv_cache, "_AHEAD", 3)
    roomy, plain = preallocated_cache(model), DynamicCache(config=model.config)
    draw = torch.Generator().manual_seed(0)
    for step, width in enumerate((5, 1, 1, 1, 1, 2, 1)):
        rows = 4 if step < 4 else 2
        new = [torch.randn(rows, 2, width, 8, generator=draw) for _ in range(2)]
        for layer in range(4):
            got, want = (cache.update(*new, layer) for cache in (roomy, plain))
            assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
        assert roomy.get_seq_length() == plain.get_seq_length()
        if step == 3:
            for cache in (roomy, plain):
                cache.batch_select_indices(torch.tensor([3, 1]))


def test_a_token_more_moves_nothing(model):
    cache = preallocated_cache(model)
    first, _ = cache.update(torch.ones(2, 2, 5, 8), torch.ones(2, 2, 5, 8), 0)
    more, _ = cache.update(torch.ones(2, 2, 1, 8), torch.ones(2, 2, 1, 8), 0)
    assert more.data_ptr() == first.data_ptr()


@pytest.mark.parametrize(
    ("window", "kind"), [(8, DynamicSlidingWindowLayer), (None, PreallocatedLayer)]
)
def test_layers_of_other_kinds_stay_as_they_are(model, window, kind):
    model.config = MistralConfig(num_hidden_layers=1, sliding_window=window)
    assert type(preallocated_cache(model).layers[0]) is kind
