"""What all rows of a run begin with, read once by a model that does not change.

Of a chat template's rows the first tokens are the same: the system's turn, and where the question
begins. A frozen teacher makes the same of them in every update. Its attention's keys and values
are made once and shown to each pass, which reads the rest alone. They are a function of the model
and the beginning, so that an update is the same whichever came before it.

Shapes: B rows, S sequence, P tokens of the beginning, N tokens looked at.
"""

from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache, DynamicLayer

from cohobate.models.layers import body_of


class PrefixCache:
    """Tokens, and what a model's attention keeps of them."""

    def __init__(self, model: PreTrainedModel, ids_P: Tensor) -> None:
        self.model, self.ids_P = model, ids_P.to(model.device)

    @cached_property
    def cache(self) -> DynamicCache:
        """Keys and values of every block; made when first asked for, as not every model can."""
        cache = DynamicCache(config=self.model.config)
        cache.layers = [PrefixLayer() for _ in cache.layers]
        with torch.no_grad(), torch.autocast(self.ids_P.device.type, enabled=False):
            body_of(self.model)(self.ids_P[None], past_key_values=cache, use_cache=True)
        return cache

    def known_of(self, ids_BS: Tensor, at_N: Tensor) -> int:
        """Return how many tokens of rows need not be read: all of the beginning, or none."""
        count, width = len(self.ids_P), ids_BS.shape[1]
        if not 0 < count < width or not (ids_BS[:, :count] == self.ids_P).all():
            return 0
        return count if (at_N % width >= count).all() else 0


class PrefixLayer(DynamicLayer):
    """The keys and values that came first: they are shown to later passes and stay as they are."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Keep what comes first; put later keys and values behind it, and keep none of them."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = key_states, value_states
            return key_states, value_states
        shape = len(key_states), -1, -1, -1
        keys: Tensor = torch.cat([self.keys.expand(shape), key_states], 2)
        values: Tensor = torch.cat([self.values.expand(shape), value_states], 2)
        return keys, values
