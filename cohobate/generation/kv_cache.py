"""A key-value cache that is allocated ahead: a new token does not copy all those before it.

The cache of transformers is copied whole for every token in every layer, which costs as much as the
weights' own pass once rows and prompts are many.
"""

from typing import TYPE_CHECKING, Any

from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_AHEAD = 64  # tokens of a buffer beyond those that it is allocated for


def preallocated_cache(model: "PreTrainedModel") -> DynamicCache:
    """Return an empty cache for a model; sliding windows and the like keep their own layers."""
    cache = DynamicCache(config=model.config)
    cache.layers = [PreallocatedLayer() if type(n) is DynamicLayer else n for n in cache.layers]
    return cache


def has_plain_cache(model: "PreTrainedModel") -> bool:
    """Say whether a model keeps keys and values alone, of which rows can be taken.

    Recurrent layers (Mamba, Griffin) keep a state that depends on how a prompt was cut.
    """
    if getattr(model, "_is_stateful", False):
        return False
    layers = DynamicCache(config=model.config).layers
    return all(
        hasattr(layer, "keys") and hasattr(layer, "batch_select_indices") for layer in layers
    )


class PreallocatedLayer(DynamicLayer):
    """The keys and values of one layer: a view of the filled part of two buffers."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Put new keys and values behind those that are there; return all."""
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._keys_BHSE = _allocated(key_states, end)
            self._values_BHSE = _allocated(value_states, end)
        elif end > self._keys_BHSE.shape[-2]:
            # copied only once in `_AHEAD` tokens
            self._keys_BHSE = _enlarged(self._keys_BHSE, start, end)
            self._values_BHSE = _enlarged(self._values_BHSE, start, end)
        self._keys_BHSE[:, :, start:end] = key_states
        self._values_BHSE[:, :, start:end] = value_states
        self._show(end)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows alone."""
        self._keys_BHSE = self._keys_BHSE[indices]
        self._values_BHSE = self._values_BHSE[indices]
        self._show(self.get_seq_length())

    def cut(self, length: int) -> None:
        """Keep only the newest `length` tokens."""
        start = self.get_seq_length() - length
        for full_BHSE in (self._keys_BHSE, self._values_BHSE):
            # a clone, as source and target overlap
            full_BHSE[:, :, :length] = full_BHSE[:, :, start : start + length].clone()
        self._show(length)

    def put(self, places: list[int], other: "PreallocatedLayer") -> None:
        """Put the rows of another layer at some places, aligned at the newest token."""
        # columns left of the new rows keep what stood there: the mask hides them
        end = self.get_seq_length()
        start = end - other.get_seq_length()
        self._keys_BHSE[places, :, start:end] = other.keys
        self._values_BHSE[places, :, start:end] = other.values

    def _show(self, end: int) -> None:
        self.keys = self._keys_BHSE[:, :, :end]
        self.values = self._values_BHSE[:, :, :end]


def _allocated(like_BHSE: Tensor, length: int) -> Tensor:
    rows, heads, _, width = like_BHSE.shape
    # what is not written yet is never shown
    return like_BHSE.new_empty(rows, heads, length + _AHEAD, width)


def _enlarged(full_BHSE: Tensor, filled: int, length: int) -> Tensor:
    larger_BHSE = _allocated(full_BHSE, length)
    larger_BHSE[:, :, :filled] = full_BHSE[:, :, :filled]
    return larger_BHSE
