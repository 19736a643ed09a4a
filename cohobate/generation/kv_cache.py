"""A key-value cache with room ahead: a new token does not copy all those before it.

The cache of transformers is concatenated anew for every token of every layer, which costs as much
as the weights' own pass once rows and prompts are many.

Shapes: B rows, H key-value heads, S sequence, D head dimension.
"""

from typing import TYPE_CHECKING, Any

from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_ROOM = 64  # tokens that a buffer has room for beyond those that it is made for


def preallocated_cache(model: "PreTrainedModel") -> DynamicCache:
    """Return an empty cache; layers that do not simply grow (sliding windows) stay as they are."""
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
            self._keys_BHSD = _roomy(key_states, end)
            self._values_BHSD = _roomy(value_states, end)
        elif end > self._keys_BHSD.shape[-2]:
            self._keys_BHSD = _moved(self._keys_BHSD, start, end)
            self._values_BHSD = _moved(self._values_BHSD, start, end)
        self._keys_BHSD[:, :, start:end] = key_states
        self._values_BHSD[:, :, start:end] = value_states
        self._show(end)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows alone."""
        self._keys_BHSD = self._keys_BHSD[indices]
        self._values_BHSD = self._values_BHSD[indices]
        self._show(self.get_seq_length())

    def cut(self, length: int) -> None:
        """Keep only the newest `length` tokens."""
        start = self.get_seq_length() - length
        for full_BHSD in (self._keys_BHSD, self._values_BHSD):
            full_BHSD[:, :, :length] = full_BHSD[:, :, start : start + length].clone()
        self._show(length)

    def put(self, places: list[int], other: "PreallocatedLayer") -> None:
        """Put the rows of another layer in place of some, its newest token beside theirs."""
        end = self.get_seq_length()
        start = end - other.get_seq_length()
        self._keys_BHSD[places, :, start:end] = other.keys
        self._values_BHSD[places, :, start:end] = other.values

    def _show(self, end: int) -> None:
        self.keys = self._keys_BHSD[:, :, :end]
        self.values = self._values_BHSD[:, :, :end]


def _roomy(like_BHSD: Tensor, length: int) -> Tensor:
    rows, heads, _, width = like_BHSD.shape
    return like_BHSD.new_empty(rows, heads, length + _ROOM, width)


def _moved(full_BHSD: Tensor, filled: int, length: int) -> Tensor:
    roomy_BHSD = _roomy(full_BHSD, length)
    roomy_BHSD[:, :, :filled] = full_BHSD[:, :, :filled]
    return roomy_BHSD
