"""Keys and values of the tokens that all rows of a run begin with, for a frozen model.

Rows of one chat template begin alike: the system's turn, and where the question starts. A frozen
teacher computes the same for these tokens in every update. Here their keys and values are computed
once, and each pass reads what lies behind them. The cache is a function of the model and the prefix
alone, so that an update is the same whichever came before it.
"""

from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache, DynamicLayer

from cohobate.models.layers import body_of


class PrefixCache:
    """The keys and values of a prefix, P tokens, in each layer of a model."""

    def __init__(self, model: PreTrainedModel, ids_P: Tensor) -> None:
        self.model, self.ids_P = model, ids_P.to(model.device)

    @cached_property
    def cache(self) -> DynamicCache:
        """Keys and values; computed at the first use, as not every model can use them."""
        cache = DynamicCache(config=self.model.config)
        # else each pass would append its own keys
        cache.layers = [PrefixLayer() for _ in cache.layers]
        with torch.no_grad(), torch.autocast(self.ids_P.device.type, enabled=False):
            body_of(self.model)(self.ids_P[None], past_key_values=cache, use_cache=True)
        return cache

    def cached_tokens(self, ids_BS: Tensor, positions_N: Tensor) -> int:
        """Return how many first tokens of the rows need not be read: P or 0.

        It is 0 where a row does not begin with the prefix, where nothing lies behind it, and where
        a selected token lies in it.
        """
        count, width = len(self.ids_P), ids_BS.shape[1]
        if not 0 < count < width or not (ids_BS[:, :count] == self.ids_P).all():
            return 0
        # position in its row
        return count if (positions_N % width >= count).all() else 0


class PrefixLayer(DynamicLayer):
    """The keys and values that came first: later passes see them, and leave them as they are."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Keep the first keys and values; return later ones behind them without keeping any."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = key_states, value_states
            return key_states, value_states
        # one row of keys and values serves all rows
        shape = len(key_states), -1, -1, -1
        keys: Tensor = torch.cat([self.keys.expand(shape), key_states], 2)
        values: Tensor = torch.cat([self.values.expand(shape), value_states], 2)
        return keys, values
